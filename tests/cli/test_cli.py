"""What a person sees: errors word for word, exit codes, what goes to which stream."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from helpers import tiny_settings, write_photos

from selfsame import __version__
from selfsame.cli import main


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("cli") / "photos", count=24, classes=2)


def sets(**more: object) -> list[str]:
    return [word for s in tiny_settings(**more) for word in ("--set", s)]


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli-runs") / "a"
    arguments = ["pretrain", "simclr", str(photos), "--out", str(out), "--steps", "3"]
    assert main([*arguments, "--batch-size", "8", *sets()]) == 0
    return out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"selfsame {__version__}\n"
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    commands = ("demo", "pretrain", "evaluate", "report", "compare", "embed", "pack", "recipes")
    asked = ("search", "dedup", "outliers", "select", "classify", "predict", "distill", "export")
    for command in (*commands, *asked, "doctor"):
        assert f"\n  {command} " in listed
        assert main([command, "--help"]) == 0
        assert "Usage: selfsame" in capsys.readouterr().out


def test_pretrain_and_doctor_tell_of_stops(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "save and stop, with exit code 128 + signal (130, 143, 138)" in said
    assert main(["doctor", "--help"]) == 0
    assert "--verify-resume" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "pretrian simclr {photos}",
            "error: no such command 'pretrian'\n"
            "tip: did you mean 'pretrain'? commands: demo, pretrain, distill, evaluate, report, "
            "compare, embed, search, dedup, outliers, select, classify, predict, export, pack, "
            "recipes, claim, doctor\n",
        ),
        (
            "pretrain simclr {photos} --out {new} --batchsize 8",
            "error: no such option: --batchsize\ntip: did you mean --batch-size?\n",
        ),
        (
            "pretrain simclr {photos}",
            "error: missing option '--out'\ntip: selfsame pretrain --help lists what it takes\n",
        ),
        (
            "pretrain simcrl {photos} --out {new}",
            "error: unknown method 'simcrl'\n"
            "tip: did you mean 'simclr'? legal values: attention_transfer, barlow_twins, byol, "
            "crd, data2vec2, deepcluster, deepclusterv2, deit, dino, dinov2, distill, dkd, "
            "fitnets, ibot, kd, mae, moco, mocov3, rkd, seed, simclr, simsiam, supervised, "
            "swav, vicreg\n",
        ),
        (
            "distill {photos} {photos} --out {new} --loss simclr",
            "error: unknown loss 'simclr'\ntip: legal values: attention_transfer, crd, deit, "
            "distill, dkd, fitnets, kd, rkd, seed\n",
        ),
        (
            "distill {photos} {photos} --out {new}",
            "error: {photos} is neither a run nor an exported encoder\n"
            "tip: a run has a recipe.toml, an export a card.json, a folder of transformers a "
            "config.json; weights of a named network go with --weights\n",
        ),
        (
            "pretrain kd {photos} --out {new}",
            "error: kd learns from a teacher, and none is named\n"
            "tip: selfsame distill TEACHER DATA --loss kd\n",
        ),
        (
            "pretrain mae {photos} --out {new} --backbone resnet18",
            "error: mae needs a backbone that can leave tokens out, and resnet18 cannot\n"
            "tip: --backbone vit_tiny works with mae; simclr and byol work with resnet18\n",
        ),
        (
            "pretrain simclr {photos}x --out {new}",
            "error: '{photos}x' does not exist\ntip: did you mean '{photos}'?\n",
        ),
        (
            "pretrain simclr {photos} --out {new} --batch-size 64",
            "error: a batch of 64 is larger than the data set of 24 images\n"
            "tip: use a batch size of 24 or less\n",
        ),
        (
            "pretrain simclr {photos} --out {new} --recipe big",
            "error: no recipe file at big\n"
            "tip: give 'small', 'paper' or a .toml file; `selfsame recipes simclr` prints one\n",
        ),
        (
            "pretrain simclr {photos} --out {new} --precision fp16",
            "error: the recipe is not valid: precision: Input should be 'auto', 'bf16' or 'fp32', "
            "not 'fp16'\n",
        ),
        (
            "pretrain simclr {photos} --out {new} --steps 2 --epochs 3",
            "error: give either epochs or steps, not both\n",
        ),
        (
            "pretrain simclr {photos} --out {new} --size 0",
            "error: views of 0 px are too small\ntip: use 8 px or more\n",
        ),
        (
            "pretrain simclr {photos} --out {new} --save-every 0",
            "error: save_every is 0\ntip: it is a number of steps, 1 or more\n",
        ),
        (
            "pretrain simclr {photos} --out {new} --device gpu",
            "error: cannot use the device 'gpu': *\n"
            "tip: leave --device out, or write cpu, cuda or cuda:1\n",
        ),
        (
            "evaluate {new} {photos}",
            "error: '{new}' does not exist\ntip: *; networks are timm/NAME, *\n",
        ),
        (
            "recipes simclr --scale medium",
            "error: unknown recipe 'medium'\ntip: legal values: paper, small\n",
        ),
    ],
)
def test_wrong_use_says_what_is_wrong_and_what_to_try(
    arguments: str,
    expected: str,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new = tmp_path / "new"
    code = main([word.format(photos=photos, new=new) for word in arguments.split()])
    captured = capsys.readouterr()
    wanted = expected.format(photos=photos, new=new)
    assert code == 2
    assert captured.out == ""
    assert matches(captured.err, wanted), captured.err
    assert not new.exists()


def matches(text: str, pattern: str) -> bool:
    """Whether the text is the pattern, whose ``*`` stand for anything."""
    position = 0
    parts = pattern.split("*")
    for i, part in enumerate(parts):
        found = text.find(part, position)
        if found < 0 or (i == 0 and found > 0):
            return False
        position = found + len(part)
    return (len(parts) > 1 and parts[-1] == "") or position == len(text)


def test_pretrain_says_its_plan_and_what_to_do_next(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["pretrain", "simclr", str(photos), "--out", str(out), "--steps", "4"]
    assert main([*arguments, "--batch-size", "8", "--val", str(photos), *sets()]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    for words in (
        "data       24 images, canvas 32 px",
        "precision  fp32 (as asked)",
        "backbone   resnet10 (width=8, stem=patch)",
        "length     4 steps of 8 images = 1.333 epochs",
        "peak learning rate 0.000707 = 0.002 scaled (sqrt) from batch 64",
        "recipe 'small', chosen for 24 images",
        "step 4: kNN ",
        "health     RankMe",
        "verdict    too early to tell",
        f"next       selfsame evaluate {out} LABELLED/",
    ):
        assert words in said.err, said.err
    assert (out / "log.txt").read_text() in said.err


def test_evaluate_prints_a_table_and_json(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), str(photos), "--protocol", "knn"]) == 0
    table = capsys.readouterr().out
    for words in ("model", "random init", "raw pixels", "kNN (k=20)", "95 % interval", "80/20"):
        assert words in table
    assert main(["evaluate", str(run), str(photos), "--protocol", "knn,linear", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["results"].keys() == {"model", "random init", "raw pixels"}
    assert 0 <= report["results"]["model"]["linear"] <= 1


def test_report_and_compare(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run)]) == 0
    assert matches(capsys.readouterr().err, f"saved      {run / 'report.html'} (* MB)\n")
    other = tmp_path / "b"
    arguments = ["pretrain", "simclr", str(photos), "--out", str(other), "--steps", "2", "--report"]
    assert main([*arguments, "--batch-size", "8", *sets(method__temperature=0.5)]) == 0
    assert f"report     {other / 'report.html'}\n" in capsys.readouterr().err
    out = tmp_path / "both.html"
    assert main(["report", str(run), str(other), "--images", "0", "--out", str(out)]) == 0
    assert "method.temperature" in out.read_text()
    capsys.readouterr()
    assert main(["compare", str(run), str(other)]) == 0
    table = capsys.readouterr().out
    for words in ("RankMe", "where the recipes differ", "run  steps  method.temperature"):
        assert words in table, table
    assert main(["compare", str(run), str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["differences"]["method.temperature"] == [0.2, 0.5]
    assert main(["compare", str(run), str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / 'none'} does not exist\n"
        "tip: name the folder that pretrain --out wrote\n"
    )


def test_embed_writes_a_file(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "e.parquet"
    assert (
        main(["embed", str(run), str(photos / "class0"), str(photos / "class1"), "-o", str(out)])
        == 0
    )
    assert capsys.readouterr().err == (
        f"24 vectors of 64 in {out}\n"
        f"next       selfsame search {out} PHOTO.jpg\n"
        f"           selfsame dedup {out}, outliers {out}, select {out} -n 100\n"
    )
    assert out.stat().st_size > 24 * 64 * 3


PACK_HELP = """\
Usage: selfsame pack [OPTIONS]

  Convert images to one file that is read faster.

  It stands for the data in every command, with its labels and parts. Runs on a canvas of the same
  side get the same pixels (raw); a run's canvas is twice its views' side, or the images' own.

Options:
  -o, --out
  --canvas
  --encode
  --quality
  --channels
  --workers
  -h, --help
"""


def test_pack_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "--help"]) == 0
    words = capsys.readouterr().out.split()
    said = iter(words)  # the lines are broken to the width of the terminal
    assert all(word in said for word in PACK_HELP.split()), " ".join(words)


def test_pack_says_what_it_does(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    write_photos(folder / "train", count=20, side=40, classes=2)
    write_photos(folder / "val", count=8, side=40, classes=2)
    (folder / "train/class1/bad.jpg").write_text("no picture")
    out = tmp_path / "photos.pack"
    assert main(["pack", str(folder), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert matches(
        said.err,
        "data       21 images (train/, 2 classes) and 8 images (val/, 2 classes)\n"
        "canvas     40 px (what views of 224 px can show; --canvas overrides)\n"
        "records    raw, 3 channels\n"
        "size       about 0 MiB, * free there\n"
        "21/29 images  * images/s  0:00:00 left\n"
        "29/29 images  * images/s  done\n"
        "bad        1 of 29 images cannot be read; left out:\n"
        "           train/class1/bad.jpg: not an image (starts with 'no picture')\n"
        f"saved      {out}: 28 images, 0 MiB\n"
        f"next       selfsame pretrain simclr {out} --out runs/a\n",
    ), said.err
    new = tmp_path / "run"
    arguments = ["pretrain", "simclr", str(out), "--out", str(new), "--steps", "1", "--val"]
    assert main([*arguments, str(out), "--batch-size", "8", *sets()]) == 0
    assert "note       only the part train/; val/ is left for evaluation" in capsys.readouterr().err
    assert main(["evaluate", str(run), str(out), "--protocol", "knn"]) == 0
    assert "train/ and val/" in capsys.readouterr().out
    assert main(["embed", str(run), str(out), "-o", str(tmp_path / "e.parquet")]) == 0
    assert "20 vectors of 64" in capsys.readouterr().err
    assert main(["doctor", str(out), "--batch-size", "8"]) == 0
    assert "readable   20 of 20 sampled images" in capsys.readouterr().out


def test_pack_that_is_stopped(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("selfsame.api.write_pack", stop)
    out = tmp_path / "x.pack"
    assert main(["pack", str(photos), "-o", str(out)]) == 130
    assert capsys.readouterr().err.endswith(f"\nstopped    {out} is as it was\n")
    assert list(tmp_path.iterdir()) == []


def test_recipes_print_source_deviations_and_toml_that_can_be_used(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert "simclr: SimCLR: a simple framework" in listed
    assert "deviates: weight decay 1e-6" in listed
    assert main(["recipes", "simclr", "--scale", "small", "--size", "32"]) == 0
    file = tmp_path / "mine.toml"
    file.write_text(capsys.readouterr().out)
    out = tmp_path / "run"
    arguments = ["pretrain", "simclr", str(photos), "--out", str(out), "--recipe", str(file)]
    assert main([*arguments, "--batch-size", "8", "--steps", "1", *sets()]) == 0
    capsys.readouterr()
    assert main([*arguments, "--batch-size", "8", "--steps", "1", *sets(), "--resume"]) == 0
    assert "continuing from step 1 of 1" in capsys.readouterr().err


def test_doctor_looks_without_training(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor"]) == 0
    assert "machine    " in capsys.readouterr().out
    folder = write_photos(tmp_path / "mixed", count=12)
    (folder / "bad.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("notes")
    before = sorted(tmp_path.rglob("*"))
    assert main(["doctor", str(folder), "--batch-size", "8"]) == 0
    said = capsys.readouterr().out
    for words in (
        "data       13 images",
        "readable   12 of 13 sampled images",
        "refused    bad.jpg: ",
        "note       other files ignored: 1 .txt",
        "memory     about ",
        "length     ",
    ):
        assert words in said, said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_terminal_that_cannot_spell_a_name_gets_it_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["--version"]) == 0
    print("caf\u00e9", flush=True)
    assert raw.getvalue().splitlines()[-1] == b"caf\\xe9"


def test_a_picture_is_not_replaced(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = sorted(photos.rglob("*.png"))[0]
    before = picture.read_bytes()
    for command in (f"embed {run} {photos} -o", f"report {run} --images 0 --out"):
        assert main([*command.split(), str(picture)]) == 2
        assert "is a picture and would be replaced" in capsys.readouterr().err
    assert picture.read_bytes() == before


def test_no_command_is_no_error_but_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Usage: selfsame")
    assert "error" not in said


def test_embed_says_that_a_part_is_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        write_photos(tmp_path / "both" / part, count=4)
    assert main(["embed", str(run), str(tmp_path / "both"), "-o", str(tmp_path / "x.parquet")]) == 0
    said = capsys.readouterr().err
    assert "note       only the part train/; test/ is left for evaluation" in said
    assert "4 vectors" in said
