"""Every protocol on a small run: what it returns, beside its controls, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import textures, tiny_recipe, write_photos
from PIL import Image

import selfsame
from selfsame.data import Labelled, Subset, open_labelled
from selfsame.data.arrays import ArraySource
from selfsame.errors import DataError, UsageError
from selfsame.evals import EVALUATORS, Data, Subject, evaluators, find, score
from selfsame.evals.subject import subjects

QUICK = {
    "finetune": ["finetune.epochs=1", "finetune.batch_size=8"],
    "linear-sgd": ["linear-sgd.steps=20"],
    "lowshot": ["lowshot.draws=2", "lowshot.shots=[1,4]"],
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), count=60, classes=3)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_masked(tmp_path_factory.mktemp("masked"), count=10)


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    selfsame.pretrain("simclr", photos, out=out, recipe=tiny_recipe("simclr", steps=4), quiet=True)
    return out


def write_masked(folder: Path, count: int, side: int = 48) -> Path:
    """Textures with a bright disc each; the mask says where it is."""
    y, x = np.mgrid[:side, :side]
    rng = np.random.default_rng(1)
    for i, pixels in enumerate(textures(count, side)):
        part = "train" if i < 0.7 * count else "test"
        centre = rng.uniform(12, side - 12, 2)
        disc = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 10**2
        image = np.where(disc[..., None], 255 - pixels // 8, pixels // 2)
        for kind, array in (("images", image), ("masks", disc)):
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(folder / kind / part / f"{i:02d}.png")
    return folder


@pytest.mark.parametrize("name", EVALUATORS)
def test_a_protocol_gives_fractions_with_intervals_beside_controls(
    name: str, run: Path, photos: Path, masked: Path
) -> None:
    data = masked if name == "segment" else photos
    report = selfsame.evaluate(run, data, protocols=[name], settings=QUICK.get(name, []))
    controls = ["random init"] if name == "finetune" else ["random init", "raw pixels"]
    assert list(report["results"]) == ["model", *controls]
    facts = find(name).facts
    for scores in report["results"].values():
        assert next(iter(scores)) == name
        low, high = scores[f"{name}_interval"]
        assert low <= scores[name] <= high
        for key, value in scores.items():
            assert key == name or key.startswith((f"{name}_", f"{name}@")), key
            if key not in facts:
                values = value if isinstance(value, tuple) else (value,)
                assert all(-1 <= each <= 1 for each in values), (key, value)
    assert json.loads(json.dumps(report))["results"]["model"][name] == scores_of(report)[name]
    row = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])
    assert {"step", "protocol", "model", "data", "results"} <= row.keys()
    assert (row["step"], row["protocol"]) == (4, name)
    again = selfsame.evaluate(run, data, protocols=[name], settings=QUICK.get(name, []))
    assert again["results"] == report["results"], "the same call, the same numbers"


def scores_of(report: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    return report["results"]["model"]


def test_several_protocols_share_the_features(
    run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SELFSAME_CACHE", str(tmp_path / "cache"))
    first = selfsame.evaluate(run, photos, protocols=["knn", "retrieval", "cluster"])
    assert "0 of 4 sets of features reused" in first["cache"]
    second = selfsame.evaluate(run, photos, protocols=["retrieval"])
    assert "4 of 4 sets of features reused" in second["cache"]
    plain = selfsame.evaluate(run, photos, protocols=["retrieval"], cache=False)
    assert "cache" not in plain
    assert plain["results"] == second["results"]


def test_colours_that_are_the_classes_are_found_by_raw_pixels(photos: Path) -> None:
    subject = subjects(selfsame.load(tiny_encoder()), None)["raw pixels"]
    chosen = evaluators(["knn", "linear", "retrieval", "cluster", "lowshot"], QUICK["lowshot"])
    scores = score(subject, Data(photos), chosen.values())
    for name in ("knn", "linear", "cluster", "lowshot"):
        assert scores[name] > 0.9, (name, scores[name])
    assert scores["retrieval_recall@1"] > 0.9


def tiny_encoder() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 8, 8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )


def test_unreadable_images_count_for_no_score_and_are_counted(run: Path, tmp_path: Path) -> None:
    write_photos(tmp_path, count=30, classes=3)
    for part in ("class0/000.png", "class1/001.png"):
        (tmp_path / part).write_text("no picture")
    report = selfsame.evaluate(run, tmp_path, protocols=["knn"], controls=False)
    assert report["refused"] == 2


def test_ones_own_protocol_needs_no_table(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_protocol.py").write_text(
        "from selfsame.evals import Evaluator\n"
        "class Norm(Evaluator):\n"
        "    scale: float = 1.0\n"
        "    def __call__(self, subject, data):\n"
        "        x = subject.features(data.images)['pooled']\n"
        "        return {'norm': self.scale * x.norm(dim=1).mean().item()}\n"
        "wrong = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name = "own_protocol:Norm"
    one, two = (
        selfsame.evaluate(run, photos, protocols=[name], settings=[f"{name}.scale={k}"])
        for k in (1, 2)
    )
    assert two["results"]["model"]["norm"] == 2 * one["results"]["model"]["norm"]
    with pytest.raises(UsageError, match="is no Evaluator"):
        find("own_protocol:wrong")
    with pytest.raises(UsageError, match="cannot load the protocol"):
        find("own_protocol:Missing")


@pytest.mark.parametrize(
    ("names", "settings", "message", "tip"),
    [
        (["knnn"], [], "unknown protocol 'knnn'", "did you mean 'knn'"),
        ([], [], "no protocol", "legal values"),
        (["knn"], ["knn.kk=[3]"], "knn has no option 'kk'", "did you mean 'ks'"),
        (["knn"], ["knn.temperature=0"], "knn.temperature: Input should be greater", "0.07"),
        (["knn"], ["linear.seed=1"], "'linear.seed' is no option of knn", "--set knn.KEY=VALUE"),
        (["knn"], ["knn.ks"], "'knn.ks' is not a setting", "protocol.key=value"),
    ],
)
def test_wrong_names_and_options(
    names: list[str], settings: list[str], message: str, tip: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        evaluators(names, settings)
    assert tip in str(caught.value.tip)


def labelled(train: list[int], test: list[int], classes: int = 3) -> Labelled:
    names = [f"class{k}" for k in range(classes)]
    parts = [
        ArraySource(textures(len(y), seed=k), np.array(y), names)
        for k, y in enumerate((train, test))
    ]
    return Labelled(parts[0], parts[1], "made")


def test_data_that_cannot_be_scored() -> None:
    subject = Subject(selfsame.load(tiny_encoder(), image_size=32))

    def ask(name: str, data: Labelled, *settings: str) -> object:
        return evaluators([name], settings)[name](subject, Data(data))

    with pytest.raises(DataError, match="one class only") as caught:
        ask("knn", labelled([0] * 4, [0] * 2, classes=1))
    assert "copies" in str(caught.value.tip)
    for name in ("knn", "linear-sgd", "cluster"):
        with pytest.raises(DataError, match="class 'class2' has test images but no readable"):
            ask(name, labelled([0, 1, 0, 1], [0, 1, 2]))
    with pytest.raises(DataError, match="class 'class1' has 2 training images, fewer than the 5"):
        ask("lowshot", labelled([0] * 9 + [1, 1], [0, 1], classes=2), "lowshot.shots=[5]")
    with pytest.raises(DataError, match="no query has another image of its class"):
        ask("retrieval", labelled([0, 1, 2], [0, 1, 2]), "retrieval.leave_one_out=true")
    one = ArraySource(textures(1))
    with pytest.raises(DataError, match="two images or more"):
        evaluators(["copies"])["copies"](subject, Data(one))
    with pytest.raises(DataError, match="labels"):
        Data(ArraySource(textures(4))).labelled  # noqa: B018
    with pytest.raises(UsageError, match="segment needs a network that returns tokens"):
        evaluators(["segment"])["segment"](subject, Data(labelled([0, 1], [0, 1])))


def test_low_shot_leaves_out_what_the_smallest_class_cannot_give() -> None:
    data = labelled([0] * 12 + [1] * 12 + [2] * 6, [0, 1, 2] * 4)
    subject = Subject(selfsame.load(tiny_encoder(), image_size=32))
    scores = evaluators(["lowshot"], ["lowshot.draws=2"])["lowshot"](subject, Data(data))
    sizes = {key.partition("@")[2] for key in scores if key.startswith("lowshot_knn@")}
    assert {size.removesuffix("_std") for size in sizes} == {"1", "5", "10%"}
    assert scores["lowshot"] == scores["lowshot_linear@5"]
    assert math.isfinite(scores["lowshot_knn@5_std"])


def test_subsets_of_one_source_have_features_of_their_own(photos: Path) -> None:
    subject = Subject(selfsame.load(tiny_encoder(), image_size=32))
    source = open_labelled(photos).train
    whole = subject.features(source)["pooled"]
    part = subject.features(Subset(source, np.array([5, 2])))["pooled"]
    torch.testing.assert_close(part, whole[[5, 2]])
