from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import run_fresh, textures, tiny_recipe, tiny_teacher, write_photos
from sklearn.metrics import log_loss

import selfsame
from selfsame.backbones import build
from selfsame.classifier import calibration_error, fit, fit_temperature
from selfsame.cli import main
from selfsame.encoder import Encoder
from selfsame.errors import DataError, UsageError
from selfsame.evals.knn import knn_scores
from selfsame.evals.linear import L2, fit_probe
from selfsame.nn.precision import unit
from selfsame.recipe import BackboneConfig

CONFIG = BackboneConfig(name="resnet10", options={"width": 8, "stem": "patch"})


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("classifier") / "photos", count=150, classes=3)


@pytest.fixture(scope="module")
def model(photos: Path) -> Path:
    torch.manual_seed(0)
    network = build(CONFIG.name, image_size=32, channels=3, options=CONFIG.options)
    folder = photos.parent / "model"
    folder.mkdir()
    Encoder(network, config=CONFIG, image_size=32).save(folder)
    return folder


def planted(n: int = 200, classes: int = 4, dim: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    x = torch.randn(n, dim, generator=generator) * 3 + 5
    x[:, :classes] += 4 * torch.nn.functional.one_hot(y, classes)
    return x, y


def test_a_linear_head_is_the_probe_with_its_standardisation_folded_in() -> None:
    x, y = planted()
    head = fit(x, y, "linear", 20, 6, seed=0, temperature=2.0)
    probe = fit_probe(x, y, L2, 0)
    scores = head(x)
    torch.testing.assert_close(scores[:, :4], probe.scores(x) / 2, rtol=1e-4, atol=1e-4)
    assert (scores[:, 4:].softmax(1).shape, scores.softmax(1)[:, 4:].max().item()) == ((200, 2), 0)


def test_a_knn_head_votes_as_the_protocol() -> None:
    x, y = planted()
    head = fit(x, y, "knn", 7, 4, seed=0)
    votes = knn_scores(unit(x), y, unit(x[:30] + 0.1), 7, 0.07, 4)
    torch.testing.assert_close(head(x[:30] + 0.1).softmax(1), votes / votes.sum(1, keepdim=True))


def test_the_temperature_minimises_the_likelihood() -> None:
    x, y = planted()
    scores = 5 * x[:, :4]  # far too sure
    best = fit_temperature(scores, y)
    tried = np.geomspace(0.2, 50, 400)
    losses = [log_loss(y, (scores.double() / t).softmax(1)) for t in tried]
    assert abs(np.log(best / tried[int(np.argmin(losses))])) < 0.03
    assert calibration_error(scores / best, y) < calibration_error(scores, y) / 2
    # two bins by hand: confidence 0.75 of which half is right, 1.0 of which all is
    sure = torch.tensor([[3.0, 1.0], [3.0, 1.0], [1.0, 0.0], [1.0, 0.0]]).log()
    truth = torch.tensor([0, 1, 0, 0])
    assert calibration_error(sure, truth) == pytest.approx(0.125)


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_a_saved_classifier_says_the_same_in_a_fresh_process(
    kind: str, model: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "classifier"
    fitted = selfsame.classify(model, str(photos), out, kind=kind, device="cpu")
    assert fitted.images == fitted.held_out == 150
    assert fitted.accuracy is not None
    assert fitted.accuracy > 0.9  # each class has a colour
    assert fitted.majority == pytest.approx(1 / 3)
    assert (fitted.temperature is None) == (kind == "knn")
    query = write_photos(tmp_path / "new", count=6, classes=3)
    here = [(p.path, p.label, p.probabilities) for p in selfsame.predict(fitted.encoder, query)]
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}; import json, torch, selfsame;"
        f"torch.set_num_threads({torch.get_num_threads()});"
        f"found = selfsame.predict({str(out)!r}, {str(query)!r}, device='cpu');"
        "print(json.dumps([(p.path, p.label, p.probabilities) for p in found]))"
    )
    there = json.loads(run_fresh(code))
    assert [tuple(each) for each in there] == here
    loaded = selfsame.load(out, device="cpu")
    assert loaded.classes == ("class0", "class1", "class2")
    assert loaded.card["classifier"]["accuracy"] == fitted.accuracy
    selfsame.classify(model, str(photos), out, kind=kind, device="cpu")  # may be written again


def test_a_handful_of_labels_is_said_to_be_one(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = write_photos(tmp_path / "few", count=9, classes=3)
    (few / "class0" / "bad.jpg").write_text("no picture")
    out = tmp_path / "c"
    assert main(["classify", str(model), str(few), "-o", str(out), "--device", "cpu"]) == 0
    said = capsys.readouterr()
    assert "accuracy   9 held-out images are too few to say" in said.out
    assert "not calibrated" in said.out
    assert "bad        class0/bad.jpg cannot be read and is left out" in said.err
    one = write_photos(tmp_path / "one", count=3, classes=3)  # a label a class
    fitted = selfsame.classify(model, str(one), device="cpu")
    assert (fitted.held_out, fitted.accuracy) == (0, None)


def test_the_test_part_judges_where_there_is_one(model: Path, tmp_path: Path) -> None:
    write_photos(tmp_path / "train", count=60, classes=3)
    write_photos(tmp_path / "test", count=45, classes=3)
    fitted = selfsame.classify(model, str(tmp_path), device="cpu")
    assert (fitted.images, fitted.held_out, fitted.how) == (60, 45, "the data's own test part")
    assert fitted.temperature is None  # 60 images are too few to calibrate on


def test_predictions_as_lines_table_and_json(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, images = tmp_path / "c", tmp_path / "images"
    selfsame.classify(model, str(photos), out, device="cpu")
    write_photos(images, count=3)
    (images / "001.png").write_text("no picture")
    assert main(["predict", str(out), str(images), "-o", str(tmp_path / "p.csv")]) == 0
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["000.png", "001.png", "002.png"]
    assert rows[1]["error"].startswith("not an image")
    capsys.readouterr()
    assert main(["predict", str(out), str(images), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row, line in zip(rows, lines, strict=True):
        assert (row["class"] or None, row["error"] or None) == (line["label"], line["error"])
    assert main(["predict", str(out), str(images)]) == 0
    said = capsys.readouterr()
    assert [line.split()[-1] for line in said.out.splitlines()] == ["000.png", "002.png"]
    assert said.err.startswith("bad        001.png: not an image")
    assert main(["predict", str(model), str(images)]) == 2
    assert "has no classifier\ntip: fit one" in capsys.readouterr().err
    assert main(["predict", str(out), str(images), "-o", str(tmp_path / "p.txt")]) == 2


def test_wrong_use_is_refused(model: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown kind 'tree'"):
        selfsame.classify(model, str(photos), kind="tree")
    with pytest.raises(UsageError, match="k is 0"):
        selfsame.classify(model, str(photos), kind="knn", k=0)
    with pytest.raises(UsageError, match="is not a classifier"):
        selfsame.classify(model, str(photos), model)
    with pytest.raises(DataError, match="labels"):
        selfsame.classify(model, textures(4))
    with pytest.raises(DataError, match=r"of one class \('class0'\)|no labels"):
        selfsame.classify(model, str(write_photos(tmp_path / "one", count=6, classes=1)))


def test_a_student_calls_its_classes_as_its_teacher_does(tmp_path: Path) -> None:
    teacher, recipe = tiny_teacher(), tiny_recipe("kd", steps=2)
    options: dict[str, Any] = {"loss": "kd", "recipe": recipe, "quiet": True, "device": "cpu"}
    flat = write_photos(tmp_path / "flat", count=12)
    selfsame.distill(teacher, flat, out=tmp_path / "a", **options)
    assert selfsame.load(tmp_path / "a", device="cpu").classes == ("a", "b", "c", "d")
    years = write_photos(tmp_path / "years", count=12, classes=4)  # as many folders, by chance
    with pytest.raises(UsageError, match="'class0' would be its 'a'") as caught:
        selfsame.distill(teacher, years, out=tmp_path / "b", **options)
    assert "method.labels=0" in str(caught.value.tip)
    alone = {**options, "settings": ["method.labels=0"]}
    selfsame.distill(teacher, years, out=tmp_path / "b", **alone)
    (tmp_path / "b" / "card.json").unlink()  # as a run that goes on
    found = selfsame.predict(tmp_path / "b", years)
    assert {one.label for one in found} <= {"a", "b", "c", "d"}
