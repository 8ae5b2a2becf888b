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
    every = probe.affordable(64)
    assert probe.cost / (every * 64 * 2 * 3) <= 0.01 < probe.cost / ((every - 1) * 64 * 2 * 3)
