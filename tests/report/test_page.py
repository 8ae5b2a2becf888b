"""Every run gives a report or a clear error, and nothing in it points outside or is markup."""

from __future__ import annotations

import json
import math
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import textures, tiny_settings
from reported import EVIL, add_verdict
from torch import nn

import selfsame
from selfsame import plan as planning
from selfsame.backbones.resnet import IMAGENET
from selfsame.errors import RunError, UsageError
from selfsame.report import compare, write_report
from selfsame.report.compare import print_comparison
from selfsame.report.curves import Axis, Line, chart
from selfsame.report.html import VOID, data, tag
from selfsame.report.look import look, scale_for
from selfsame.report.record import read
from selfsame.run import RunDirectory


class Outline(HTMLParser):
    """Elements, their attributes, the text; refuses what is not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


def outline(page: Path) -> Outline:
    return Outline(page.read_text("utf-8"))


def copy(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("b", "a < b & \"c\" 'd'") == "<b>a &lt; b &amp; &quot;c&quot; &#x27;d&#x27;</b>"
    assert tag("p", tag("b", "<"), [1, None, False], title='">', hidden=True) == (
        '<p title="&quot;&gt;" hidden><b>&lt;</b>1</p>'
    )
    assert tag("p", "\udcff\x00").startswith("<p>?")  # a file's name that is no Unicode
    held = data({"a": "</script><b>", "b": [math.nan, math.inf, 1.5]})
    assert "</script><b>" not in held
    inside = held.removeprefix('<script type="application/json">').removesuffix("</script>")
    assert json.loads(inside) == {"a": "</script><b>", "b": [None, None, 1.5]}


def test_a_report_holds_everything_and_loads_nothing(run: Path, photos: Path) -> None:
    file = write_report([run], photos)
    assert file == run / "report.html"
    page = outline(file)
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {
        *("verdict", "curves", "scores", "images", "recipe", "environment"),
        "map-0",
    } <= ids
    for heading in (
        *("Still improving", "Views, as the network sees them", "Nearest neighbours"),
        *("Parts of images", "Map of images", "Classes", "Confusion", "Duplicates", "Outliers"),
        *("Recipe", "Environment", "kNN (k=20)", "raw pixels", "Skip to the verdict"),
    ):
        assert heading in page.text, heading
    for name, attributes in page.elements:
        assert not any(key.startswith("on") for key in attributes), name
        for key in ("src", "href", "action", "data", "poster"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/")), attributes
    scripts = [a for name, a in page.elements if name == "script"]
    assert [a for a in scripts if a.get("type") != "application/json"] == [{}]
    assert EVIL in page.text
    assert file.stat().st_size < 2_000_000
    stated = page.text.split("One file of ")[1].split(";")[0]
    assert abs(int(stated.removesuffix(" kB")) - file.stat().st_size / 1e3) <= 2


def test_the_report_finds_what_is_in_the_data(run: Path, photos: Path) -> None:
    (record,) = read([run])
    found = look(record, photos, scale_for(1, 100))
    assert found.left == []
    assert found.images == 46  # 45 and the copy, without the file that is no image
    assert found.pairs is not None
    first = found.pairs[0]
    assert {Path(first.a.name).name, Path(first.b.name).name} == {"000.png", "copy of <b>.png"}
    assert first.pixels == pytest.approx(1)
    assert first.similarity == pytest.approx(1, abs=1e-5)
    z = selfsame.load(run).embed(str(photos / "class0"))
    assert found.neighbors[0].found[0][1] <= 1 + 1e-5
    assert len(z) == 16
    assert found.classes is not None
    assert found.classes.confusion.sum() == 9  # a fifth of each class of 15, 15 and 16
    assert found.plane is not None
    assert len(found.plane.places) == 46
    labelled = selfsame.data.open_source(str(photos))
    assert labelled.classes is not None
    assert found.classes.names == list(labelled.classes)


def test_neighbours_and_classes_are_those_of_brute_force(run: Path, photos: Path) -> None:
    (record,) = read([run])
    found = look(record, photos / "class0", scale_for(1, 100))
    encoder = selfsame.load(run)
    z = torch.nn.functional.normalize(encoder.embed(str(photos / "class0")), dim=-1)
    similarity = z @ z.T - 3 * torch.eye(len(z))
    for query, row in zip(found.neighbors, (0, 2, 4, 6, 8, 10, 12, 15), strict=True):
        values = similarity[row].topk(7).values
        got = [value for _, value in query.found]
        assert got == pytest.approx(values.tolist(), abs=1e-5)
    assert found.outliers is not None
    mean = 1 - similarity.topk(10).values.mean(1)
    assert found.outliers[0][1] == pytest.approx(mean.max().item(), abs=1e-5)


def test_views_are_those_of_training(run: Path, photos: Path) -> None:
    """The pictures of views are what the loop makes of these images in the first pass."""
    (record,) = read([run])
    found = look(record, None, scale_for(1, 20))
    assert len(found.views) == 4
    plan = planning.resume(RunDirectory(run), "simclr", str(photos), planning.Choices())
    names = [plan.images.source.name(i) for i in range(len(plan.images))]
    with plan.images:
        for each in found.views:
            index = torch.tensor([names.index(each.original.name)])
            views = plan.views(plan.build(), plan.images.batch(index), 0)["global"]
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in IMAGENET)
            for (_, shown), x in zip(each.views, views, strict=True):
                wanted = ((x[0] * std + mean) * 255).clamp(0, 255).permute(1, 2, 0).numpy()
                assert np.abs(np.asarray(shown, np.float32) - wanted).max() <= 0.51


def test_a_vit_shows_attention_and_what_it_hides(vit_run: Path, photos: Path) -> None:
    text = outline(write_report([vit_run])).text
    assert "Attention: of all tokens on average to the patches" in text
    assert "PCA: the first three principal components of the last 4 x 4 tokens" in text
    assert "global, masked" in text
    assert "Too early to tell" in text
    assert "No evaluation with labels is recorded" in text
    (record,) = read([vit_run])
    found = look(record, photos, scale_for(1, 50))
    hidden = np.asarray(found.views[0].views[0][1]).reshape(4, 8, 4, 8, 3)
    flat = hidden.max((1, 3)) - hidden.min((1, 3))
    assert (flat.max(-1) == 0).sum() >= 12  # three quarters of 16 patches


def test_runs_that_did_not_get_far(run: Path, tmp_path: Path) -> None:
    begun = copy(run, tmp_path / "begun")
    for name in ("card.json", "backbone.safetensors", "eval.jsonl", "metrics.jsonl"):
        (begun / name).unlink()
    shutil.rmtree(begun / "checkpoints")
    text = outline(write_report([begun])).text
    assert "has no checkpoint yet" in text
    assert "Nothing was recorded." in text
    (begun / "run.json").unlink()
    text = outline(write_report([begun])).text
    assert "run.json does not say where they were" in text
    stopped = copy(run, tmp_path / "stopped")
    for name in ("card.json", "backbone.safetensors"):
        (stopped / name).unlink()
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # as a kill leaves it
    text = outline(write_report([stopped])).text
    assert "Map of images" in text


def test_numbers_that_are_not_finite(run: Path, tmp_path: Path) -> None:
    odd = copy(run, tmp_path / "odd")
    rows = RunDirectory(odd)
    rows.append("metrics", [{"step": 5, "loss": math.nan, "lr": 0.1, "grad_norm": math.inf}])
    with (odd / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": null, "lr": 0.1}\n')
    rows.append("eval", [{"step": 6, "protocol": "health", "rankme": math.nan}])
    add_verdict(odd, "unstable", kind=None, cause="learning rate", tip="<lower>")
    file = write_report([odd], images=0)
    page = outline(file)
    assert "2 of its values are not finite and not drawn" in page.text
    assert "Likely cause: learning rate" in page.text
    assert "<lower>" in page.text
    assert "Images" not in page.text.split("Verdict")[0]
    for each in file.read_text().split('<script type="application/json">')[1:]:
        json.loads(each.split("</script>")[0])
    assert json.loads(json.dumps(compare([odd]), allow_nan=False))["runs"][0]["health"] == {
        "rankme": None
    }


def test_a_collapsed_verdict_is_said_first_and_in_red(run: Path, tmp_path: Path) -> None:
    bad = copy(run, tmp_path / "bad")
    add_verdict(bad, "collapsed", kind="complete", cause="no stop-gradient")
    page = write_report([bad], images=0).read_text()
    assert '<p class="state trouble">Collapsed (complete)</p>' in page
    body = page[page.index("<main>") :]
    assert body.index("Collapsed (complete)") < body.index("Curves")


def test_protocols_that_come_later_show_too(run: Path, tmp_path: Path) -> None:
    new = copy(run, tmp_path / "new")
    results = {
        "model": {"segment": 0.5, "segment_interval": [0.4, 0.6], "segment_classes": 3},
        "<random>": {"segment": 0.25, "segment_interval": [0.2, 0.3]},
        "raw pixels": {},
    }
    row = {"step": 4, "protocol": "segment", "model": "x", "data": "<tiles>", "results": results}
    RunDirectory(new).append("eval", [row, {"step": 4, "protocol": "probe", "probe": 0.75}])
    text = outline(write_report([new], images=0)).text
    for words in ("segment", "50.0 %", "40.0 to 60.0", "<random>", "<tiles>", "segment_classes"):
        assert words in text
    scores = compare([new])["runs"][0]["scores"]
    assert scores["segment"] == {
        "value": 0.5,
        "interval": (0.4, 0.6),
        "fingerprint": None,
    }
    assert next(iter(scores)) == "knn"
    assert scores["probe"] == {"value": 0.75, "interval": None, "fingerprint": None}


class Mine(nn.Module):
    """A network of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x).mean((2, 3))
        return y


def test_a_module_of_the_users_own(tmp_path: Path) -> None:
    out = tmp_path / "mine"
    images = textures(24)
    settings = [s for s in tiny_settings() if not s.startswith("backbone")]
    selfsame.pretrain(
        "simclr",
        images,
        out=out,
        backbone=Mine(),
        size=32,
        steps=2,
        batch_size=8,
        settings=settings,
        report=True,
        quiet=True,
    )
    text = outline(out / "report.html").text
    assert "colours of tokens: the network gives none" in text
    assert "Nearest neighbours" in text
    assert "run.json does not say where they were" in outline(write_report([out])).text
    (record,) = read([out])
    found = look(record, images, scale_for(1, 20))
    assert "holds the weights of a module of yours" in found.left[0]
    assert look(record, images, scale_for(1, 20), backbone=Mine()).images == 20


def test_data_that_is_gone_or_other(run: Path, photos: Path, tmp_path: Path) -> None:
    text = outline(write_report([run], tmp_path / "nowhere")).text
    assert "everything that needs images" in text
    assert "does not exist" in text
    assert "Curves" in text
    other = look(read([run])[0], textures(10), scale_for(1, 50))
    assert "these images are not the ones of the training" in other.notes
    assert other.classes is None
    gone = copy(run, tmp_path / "gone")
    info = json.loads((gone / "run.json").read_text())
    assert info["data"]["paths"] == [str(photos)]
    info["data"]["paths"] = [str(tmp_path / "moved")]
    (gone / "run.json").write_text(json.dumps(info))
    assert "does not exist" in outline(write_report([gone])).text


def test_wrong_use(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        write_report([tmp_path / "none"])
    with pytest.raises(UsageError, match="no run directory"):
        write_report([tmp_path])
    with pytest.raises(UsageError, match="given twice"):
        write_report([run, run])
    with pytest.raises(UsageError, match="is a folder"):
        write_report([run], out=tmp_path)
    with pytest.raises(UsageError, match="cannot write"):
        write_report([run], out=tmp_path / "no" / "folder.html", images=0)
    with pytest.raises(UsageError, match="images is 100000"):
        write_report([run], images=100_000)
    damaged = copy(run, tmp_path / "damaged")
    (damaged / "backbone.safetensors").write_bytes(b"no weights")
    assert "everything that needs images" in outline(write_report([damaged])).text
    (damaged / "eval.jsonl").write_text("{]\n{}\n")
    with pytest.raises(RunError, match="is damaged"):
        write_report([damaged], images=0)


def test_several_runs_side_by_side(run: Path, vit_run: Path, tmp_path: Path) -> None:
    runs = [run, vit_run]
    for i in range(12):
        each = copy(run, tmp_path / f"r{i}")
        text = (each / "recipe.toml").read_text()
        (each / "recipe.toml").write_text(text.replace("seed = 0", f"seed = {i + 1}"))
        runs.append(each)
    file = write_report(runs, out=tmp_path / "all.html", images=0)
    page = outline(file)
    assert "14 runs" in page.text
    for name in ("resnet", "vit", "r0", "r11", "method.temperature", "seed"):
        assert name in page.text
    marks = [a for name, a in page.elements if name == "td" and a.get("class") == "differs"]
    assert len(marks) >= 13  # seeds alone
    found = compare(runs)
    assert [each["name"] for each in found["runs"]] == [
        "resnet",
        "vit",
        *(f"r{i}" for i in range(12)),
    ]
    assert found["differences"]["seed"] == [0, 0, *range(1, 13)]
    assert found["runs"][0]["steps"] == found["runs"][0]["total"] == 4
    assert found["runs"][0]["verdict"]["state"] == "still improving"
    assert found["runs"][1]["verdict"]["state"] == "too early to tell"


def test_a_run_without_a_verdict(vit_run: Path, tmp_path: Path) -> None:
    old = copy(vit_run, tmp_path / "old")
    (old / "eval.jsonl").unlink()
    assert "No verdict is recorded for this run" in outline(write_report([old], images=0)).text
    assert compare([old])["runs"][0]["verdict"] is None


def test_the_terminal_names_the_cause_first_and_fits_80_columns(
    run: Path, vit_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = copy(run, tmp_path / "bad")
    add_verdict(bad, "collapsed", kind="complete", cause="stop-gradient")
    print_comparison([bad, vit_run])
    verdicts, scores, _ = capsys.readouterr().out.split("\n\n")
    assert "bad  collapsed (complete), likely cause: stop-gradient" in verdicts
    assert max(map(len, [*verdicts.splitlines(), *scores.splitlines()])) <= 80


def test_scores_of_different_data_are_not_compared_in_silence(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [copy(run, tmp_path / name) for name in ("a", "b", "c")]
    for folder, what in zip(runs, ("fish", "birds", "birds"), strict=True):
        scores = dict.fromkeys(("knn", "linear", "cluster"), 0.5)
        results = {"model": scores | {f"{name}_interval": [0.4, 0.6] for name in scores}}
        row = {"step": 4, "protocol": "all", "data": "10 images", "fingerprint": what}
        RunDirectory(folder).append("eval", [row | {"results": results}])
    print_comparison(runs)
    printed = capsys.readouterr().out
    assert "NOT COMPARABLE, measured on different data: kNN" in printed
    assert any(line.split()[:2] == ["cluster", "accuracy"] for line in printed.splitlines())
    page = outline(write_report(runs, out=tmp_path / "r.html", images=0)).text
    assert "Not comparable" in page
    print_comparison(runs[1:])
    assert "NOT COMPARABLE" not in capsys.readouterr().out
    assert (
        "Not comparable"
        not in outline(write_report(runs[1:], out=tmp_path / "r.html", images=0)).text
    )


def test_noise_is_no_trend_and_rare_points_are_marked() -> None:
    flat = Axis.of([18.6, 18.8], span=0.2)
    assert flat.high - flat.low == pytest.approx(0.2 * 18.8)
    assert flat.at(18.7) == pytest.approx(0.5)
    steep = Axis.of([18.6, 45.9], span=0.2)
    assert (steep.low, steep.high) == (18.6, 45.9)
    drawn = str(chart("RankMe", [Line(0, [(0, 18.6), (300, 18.8)])], ["a"]))
    assert drawn.count("l.01 0") == 3  # where the line begins, and a dot each
    many = str(chart("loss", [Line(0, [(i, float(i)) for i in range(13)])], ["a"]))
    assert "dots" not in many


def test_long_runs_keep_their_spikes() -> None:
    points = [(step, 1.0) for step in range(100_000)]
    points[54_321] = (54_321, 5.0)
    held = str(chart("loss", [Line(0, points)], ["a"]))
    assert len(held) < 20_000
    assert "[54321,5.0]" in held
