from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import textures, tiny_recipe

import selfsame.evals.probe as probing
from selfsame import plan as planning
from selfsame.api import pretrain
from selfsame.data import Images, open_source
from selfsame.encoder import Encoder, of_recipe
from selfsame.errors import DivergedError
from selfsame.evals.probe import Probe, neutral
from selfsame.plan import Choices
from selfsame.recipe import Recipe
from selfsame.run import RunDirectory
from selfsame.types import Norm

NORM = Norm((0.5, 0.4, 0.3), (0.12, 0.15, 0.1))


def encoder_of(recipe: Recipe) -> Encoder:
    plan = planning.make("simclr", textures(16), Choices(recipe=recipe), "cpu")
    return of_recipe(plan.build(), recipe, named=True)


def images_of(count: int = 40) -> Images:
    return Images(open_source(textures(count)), canvas=32)


def test_the_same_weights_give_the_same_numbers_whatever_the_seed_of_the_run() -> None:
    recipe = tiny_recipe("simclr")
    encoder = encoder_of(recipe)
    once = Probe(images_of(), recipe).measure(encoder)
    again = Probe(images_of(), recipe.model_copy(update={"seed": 5})).measure(encoder)
    assert once == again
    assert encoder.training, "the network is left in the mode that it was in"
    assert {"images": 40.0, "dim": 64.0}.items() <= once.items()
    assert all(isinstance(value, float) and value == value for value in once.values())
    assert 1 <= once["rankme"] <= 40
    assert 1 <= once["lidar"] <= 39.5


def test_measurements_in_parts_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny_recipe("simclr")
    encoder = encoder_of(recipe)
    whole = Probe(images_of(), recipe).measure(encoder)
    monkeypatch.setattr(probing, "CHUNK", 16)
    assert Probe(images_of(), recipe).measure(encoder) == pytest.approx(whole, rel=1e-4)


def test_the_views_are_the_recipe_s_whole_ones() -> None:
    recipe = tiny_recipe("dino")  # two kinds of global views, and small local ones
    views = Probe(images_of(), recipe).views
    assert [view.size for view in views] == [32] * 4
    assert [view.solarize for view in views] == [0.0, 0.2, 0.0, 0.2]


def test_collapsed_and_diverged_encoders() -> None:
    recipe = tiny_recipe("simclr")
    encoder = encoder_of(recipe)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    found = Probe(images_of(), recipe).measure(encoder)
    assert found["feature_std"] == found["view_match"] == found["neutral_match"] == 0
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(float("inf"))
    with pytest.raises(DivergedError, match="not finite"):
        Probe(images_of(), recipe).measure(encoder)


def test_neutral_images_have_the_same_colours_and_their_own_content() -> None:
    images = torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    images[0, :, :10, :8] = torch.randint(80, 160, (3, 10, 8), generator=generator)
    images[1, :, :10, :8] = images[0, :, :10, :8] // 2 + 30  # darker and flatter
    sizes = torch.tensor([[10, 8], [10, 8]])
    even = neutral(images, sizes, NORM)
    inside = even[:, :, :10, :8].double() / 255
    torch.testing.assert_close(
        inside.mean((2, 3)), torch.tensor([NORM.mean] * 2).double(), rtol=0, atol=0.02
    )
    torch.testing.assert_close(
        inside.std((2, 3)), torch.tensor([NORM.std] * 2).double(), rtol=0.1, atol=0
    )
    assert (inside[0] - inside[1]).abs().max() < 0.03
    assert even[:, :, 10:].eq(0).all()
    assert even[:, :, :, 8:].eq(0).all()
    many = neutral(images.repeat(5, 1, 1, 1), sizes.repeat(5, 1), NORM)  # a few at a time
    assert torch.equal(many, even.repeat(5, 1, 1, 1))
    constant = torch.full((1, 3, 4, 4), 9, dtype=torch.uint8)
    middle = neutral(constant, torch.tensor([[4, 4]]), NORM)[0, :, 0, 0].double() / 255
    torch.testing.assert_close(middle, torch.tensor(NORM.mean).double(), rtol=0, atol=2e-3)


def test_a_run_is_measured_before_during_and_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "SHARE", 1.0)
    recipe = tiny_recipe("simclr", steps=8)
    result = pretrain("simclr", textures(16), out=tmp_path / "run", recipe=recipe, quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run/eval.jsonl").read_text().splitlines()]
    assert [(row["step"], row["protocol"]) for row in rows] == [
        (0, "health"),
        *((step, "health") for step in (2, 4, 6)),
        (8, "health"),
        (8, "verdict"),
    ]
    assert rows[-2] == {"step": 8, "protocol": "health", **result.health}
    assert rows[-1] == {"step": 8, "protocol": "verdict", **result.verdict._asdict()}
    assert "verdict    " in (tmp_path / "run/log.txt").read_text()
    before = (tmp_path / "run/eval.jsonl").read_text()
    again = pretrain(
        "simclr", textures(16), out=tmp_path / "run", recipe=recipe, resume=True, quiet=True
    )
    assert (again.health, again.verdict) == (result.health, result.verdict)
    assert (tmp_path / "run/eval.jsonl").read_text() == before


def test_its_cost_is_bounded() -> None:
    """In images through the network: a backward pass counts as two forward passes."""
    recipe = tiny_recipe("simclr", batch_size=64)
    probe = Probe(images_of(2000), recipe)
    assert probe.cost == 1024 + 5 * 256
    assert probe.work == 64 * 2 * 3
    assert probe.cost / (probe.every * probe.work) <= 0.01
    assert probe.cost / ((probe.every - 1) * probe.work) > 0.01


class Timed:
    """An encoder whose images take time, longer at its first call."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.calls = seconds, 0.0, 0

    def features(self, images: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        self.now += self.seconds * len(images) + (2.0 if self.calls == 0 else 0.0)
        self.calls += 1
        return torch.zeros(len(images), 8)


@pytest.mark.parametrize(
    ("total", "seconds", "size"),
    [
        (600, 9.0, 1024),  # a hundredth of the work: 2,304 forward passes of 230,400
        (599, 9.0, 512),
        (300, 9.0, 512),
        (10, 9.0, 64),  # the least
        (10, 5 / 2304 * 0.99, 1024),  # five seconds, in any run
        (10, 5 / 2304 * 1.01, 512),
        (10, 0.01, 128),
        (300, 0.01, 512),
    ],
)
def test_a_run_is_measured_on_as_many_images_as_it_can_spare(
    total: int, seconds: float, size: int
) -> None:
    encoder, images = Timed(seconds), images_of(2000)
    recipe = tiny_recipe("simclr", batch_size=64)
    probe = Probe.affordable(images, recipe, encoder, total, lambda: encoder.now)  # type: ignore[arg-type]
    assert (len(probe.index), len(probe.viewed)) == (size, size // 4)
    assert (encoder.calls > 0) == (total < 600), "the clock is asked only where it counts"


@pytest.mark.parametrize("count", [10, 40, 100, 300, 3000])
@pytest.mark.parametrize("size", [1024, 512, 64])
def test_a_row_says_which_images_it_was_measured_on(count: int, size: int) -> None:
    images, recipe = images_of(count), tiny_recipe("simclr")
    probe = Probe(images, recipe, size)
    row = {"images": float(len(probe.index)), "viewed": float(len(probe.viewed))}
    again = Probe.again(images, recipe, row)
    assert (again.index, again.viewed) == (probe.index, probe.viewed)


def test_a_resumed_run_is_measured_on_the_images_of_its_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "SHARE", 1.0)
    monkeypatch.setattr(probing, "SECONDS", 0.0)
    images, recipe = textures(200), tiny_recipe("simclr", steps=8)
    stop = Path(tmp_path / "run")

    def measured() -> set[tuple[float, float]]:
        rows = [json.loads(line) for line in (stop / "eval.jsonl").read_text().splitlines()]
        return {(row["images"], row["viewed"]) for row in rows if row["protocol"] == "health"}

    def stopping(probe: Probe, encoder: Encoder) -> dict[str, float]:
        if len(RunDirectory(stop).rows("eval")) == 2:
            raise RuntimeError("stopped")
        return measure(probe, encoder)

    measure = Probe.measure
    monkeypatch.setattr(Probe, "measure", stopping)
    with pytest.raises(RuntimeError, match="stopped"):
        pretrain("simclr", images, out=stop, recipe=recipe, save_every=1, quiet=True)
    monkeypatch.setattr(Probe, "measure", measure)
    assert measured() == {(64.0, 16.0)}
    monkeypatch.setattr(probing, "SECONDS", 1e9)  # as on a machine that was busy and is no more
    result = pretrain("simclr", images, out=stop, recipe=recipe, resume=True, quiet=True)
    assert result.finished
    assert measured() == {(64.0, 16.0)}
