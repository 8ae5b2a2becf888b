"""The verbs, as a user's script calls them, on files on disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from helpers import textures, tiny_recipe, write_photos
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import selfsame
from selfsame.data import open_labelled
from selfsame.errors import DataError, UsageError
from selfsame.evals.features import bank, pixel_bank


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), count=60, classes=3)


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "a"
    selfsame.pretrain(
        "simclr",
        photos,
        out=out,
        recipe=tiny_recipe("simclr", steps=10),
        val=photos,
        log_every=2,
        quiet=True,
    )
    return out


def test_a_run_leaves_what_the_format_promises(run: Path, photos: Path) -> None:
    names = {p.name for p in run.iterdir()}
    assert names >= {
        *("recipe.toml", "run.json", "metrics.jsonl", "eval.jsonl", "log.txt", "checkpoints"),
        *("backbone.safetensors", "card.json"),
    }
    info = json.loads((run / "run.json").read_text())
    assert info["format"] == 1
    assert info["data"]["images"] == 60
    assert {"torch", "selfsame", "python"} <= info["versions"].keys()
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == [2, 4, 6, 8, 10]
    keys = {"loss", "grad_norm", "lr", "weight_decay", "epoch", "images_per_second", "waiting"}
    assert all(keys <= row.keys() for row in metrics)
    evaluations = [json.loads(line) for line in (run / "eval.jsonl").read_text().splitlines()]
    for name in ("knn", "linear"):  # as many as there is time for, and always the last
        judged = [row["step"] for row in evaluations if row["protocol"] == name]
        assert judged == sorted(set(judged))
        assert judged[-1] == 10
    assert [row["protocol"] for row in evaluations[-2:]] == ["health", "verdict"]
    assert 1 <= evaluations[-2]["rankme"] <= evaluations[-2]["dim"]
    card = json.loads((run / "card.json").read_text())
    assert (card["step"], card["steps"], card["image_size"]) == (10, 10, 32)
    assert str(photos) not in (run / "recipe.toml").read_text()
    assert not [p for p in run.rglob("*") if p.name.startswith(".tmp")]


def test_load_embeds_paths_pictures_and_pixels_alike(run: Path, photos: Path) -> None:
    encoder = selfsame.load(run)
    files = sorted(photos.rglob("*.png"))[:7]
    pictures = [Image.open(file) for file in files]
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    expected = encoder.embed([str(file) for file in files])
    assert expected.shape == (7, encoder.dim)
    assert expected.dtype == torch.float32
    for images in (
        files,
        pictures,
        pixels,
        torch.from_numpy(pixels),
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
    ):
        torch.testing.assert_close(encoder.embed(images), expected)
    torch.testing.assert_close(encoder.embed(pictures[2]), expected[2:3])
    torch.testing.assert_close(encoder.embed(files, batch_size=2), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(DataError, match="missing"):
        encoder.embed([photos / "missing.png"])


def test_embeddings_are_float32_whatever_the_autocast(run: Path) -> None:
    encoder = selfsame.load(run)
    expected = encoder.embed(textures(4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encoder.embed(textures(4)), expected)


def test_embed_refuses_an_unreadable_picture_by_name(run: Path, tmp_path: Path) -> None:
    write_photos(tmp_path, count=3)
    (tmp_path / "001.png").write_text("no picture")
    with pytest.raises(DataError, match=r"cannot read 001\.png"):
        selfsame.load(run).embed(tmp_path)


def test_unreadable_pictures_count_for_no_evaluator(run: Path, tmp_path: Path) -> None:
    write_photos(tmp_path, count=30, classes=3)
    for part in ("class0/000.png", "class1/001.png"):
        (tmp_path / part).write_text("no picture")
    data = open_labelled(tmp_path)
    learnt, raw = bank(selfsame.load(run), data), pixel_bank(data)
    assert torch.equal(learnt.train_y, raw.train_y)
    assert torch.equal(learnt.test_y, raw.test_y)
    assert len(raw.train_y) + len(raw.test_y) == 28


def test_embed_writes_one_row_an_image(run: Path, tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", count=9)
    (folder / "004.png").write_text("no picture")
    out = tmp_path / "e.parquet"
    done = selfsame.embed(run, folder, out, batch_size=4)
    assert done == {"images": 8, "refused": 1, "dim": 64}
    table = pq.read_table(out)
    assert table.column_names == ["id", "path", "sha256", "vector"]
    assert table["path"].to_pylist() == [f"{i:03d}.png" for i in range(9) if i != 4]
    assert table["id"].to_pylist() == [0, 1, 2, 3, 5, 6, 7, 8]
    vectors = torch.tensor(table["vector"].to_pylist())
    good = sorted(p for p in folder.iterdir() if p.name != "004.png")
    torch.testing.assert_close(vectors, selfsame.load(run).embed(good), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="cannot write"):
        selfsame.embed(run, folder, tmp_path / "no" / "such" / "folder.parquet")


def test_evaluate_scores_the_model_beside_its_controls(run: Path, photos: Path) -> None:
    report = selfsame.evaluate(run, photos)
    assert list(report["results"]) == ["model", "random init", "raw pixels"]
    for scores in report["results"].values():
        for name in ("knn", "linear"):
            low, high = scores[f"{name}_interval"]
            assert 0 <= low <= scores[name] <= high <= 1
    # each class has a colour of its own, which raw pixels show
    assert report["results"]["raw pixels"]["knn"] > 0.9
    assert "80/20" in report["data"]
    last = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])
    assert last["results"] == json.loads(json.dumps(report["results"]))
    again = selfsame.evaluate(run, photos, protocols=["knn"], controls=False)
    assert list(again["results"]) == ["model"]
    assert again["results"]["model"]["knn"] == report["results"]["model"]["knn"]
    with pytest.raises(UsageError, match="unknown protocol 'knnn'"):
        selfsame.evaluate(run, photos, protocols=["knnn"])
    with pytest.raises(DataError, match="label"):
        selfsame.evaluate(run, textures(8))


def test_evaluate_takes_a_peers_network_with_a_file_of_its_weights(
    photos: Path, tmp_path: Path
) -> None:
    import timm

    torch.manual_seed(1)
    peer = timm.create_model("resnet10t", pretrained=False, num_classes=7)
    torch.save(peer.state_dict(), tmp_path / "peer.pth")
    encoder = selfsame.load("timm/resnet10t", weights=tmp_path / "peer.pth", image_size=32)
    state = encoder.backbone.module.state_dict()  # type: ignore[union-attr, operator]
    assert all(torch.equal(value, peer.state_dict()[key]) for key, value in state.items())
    report = selfsame.evaluate(
        "timm/resnet10t", photos, weights=tmp_path / "peer.pth", image_size=32, protocols=["knn"]
    )
    assert "random init" in report["results"]
    torch.save({"some": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match="lacks"):
        selfsame.load("timm/resnet10t", weights=tmp_path / "other.pth", image_size=32)
    with pytest.raises(UsageError, match="neither a run nor"):
        selfsame.load(tmp_path)


def test_a_module_of_the_users_own_trains_and_loads(tmp_path: Path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 4, 4),
            nn.ReLU(),
            nn.Conv2d(16, 24, 2, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )

    out = tmp_path / "run"
    recipe = tiny_recipe("simclr", steps=3)
    result = selfsame.pretrain(
        "simclr", textures(16), out=out, recipe=recipe, backbone=network(), quiet=True
    )
    assert result.encoder.dim == 24
    with pytest.raises(UsageError, match="module of yours") as caught:
        selfsame.load(out)
    assert "backbone=" in str(caught.value.tip)
    loaded = selfsame.load(out, backbone=network())
    assert torch.equal(loaded.embed(textures(4)), result.encoder.embed(textures(4)))


def test_ones_own_method_needs_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from selfsame.methods import simclr\n"
        "class Mine(simclr.SimCLR):\n"
        "    '''SimCLR by another name.'''\n"
        "def recipe(scale, size):\n"
        "    return simclr.recipe(scale, size)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "run"
    recipe = selfsame.Recipe.model_validate(
        tiny_recipe("simclr", steps=2).model_copy(
            update={"method": tiny_recipe("simclr").method.model_copy(update={"name": "mine:Mine"})}
        )
    )
    result = selfsame.pretrain("mine:Mine", textures(16), out=out, recipe=recipe, quiet=True)
    assert result.finished
    assert selfsame.pretrain("mine:Mine", textures(16), out=out, resume=True, quiet=True).finished
    with pytest.raises(UsageError, match="is no Method"):
        selfsame.pretrain("mine:recipe", textures(16), out=tmp_path / "b", quiet=True)
    with pytest.raises(UsageError, match="cannot load the method"):
        selfsame.pretrain("mine:Yours", textures(16), out=tmp_path / "b", quiet=True)


def test_the_default_recipe_fits_itself_to_few_images(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", count=20, side=40)
    out = tmp_path / "run"
    settings = ["backbone.options.width=8", "backbone.name=resnet10"]
    selfsame.pretrain(
        "simclr", tmp_path / "photos", out=out, steps=2, settings=settings, quiet=True
    )
    said = (out / "log.txt").read_text()
    for words in ("recipe 'small'", "views of 40 px", "batch 16, not the recipe's", "CIFAR stem"):
        assert words in said, said
    stored = (out / "recipe.toml").read_text()
    assert "batch_size = 16" in stored
    assert 'stem = "cifar"' in stored


def test_a_run_that_went_on_after_a_stop_is_read_at_its_newest_checkpoint(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "a"
    shutil.copytree(run, copy)
    weights = load_file(copy / "backbone.safetensors")
    save_file({k: torch.zeros_like(x) for k, x in weights.items()}, copy / "backbone.safetensors")
    card = json.loads((copy / "card.json").read_text())
    (copy / "card.json").write_text(json.dumps(card | {"step": 4}))  # what the stop left
    picture = sorted(photos.rglob("*.png"))[0]
    expected = selfsame.load(run, device="cpu").embed(picture)
    torch.testing.assert_close(selfsame.load(copy, device="cpu").embed(picture), expected)
    (copy / "card.json").unlink()  # as where there was no stop
    selfsame.evaluate(copy, photos, protocols=["knn"], controls=False, device="cpu", cache=False)
    assert json.loads((copy / "eval.jsonl").read_text().splitlines()[-1])["step"] == 10


def test_options_that_would_be_passed_over_are_refused(run: Path, photos: Path) -> None:
    with pytest.raises(UsageError, match="weights of its own"):
        selfsame.evaluate(run, photos, weights=run / "backbone.safetensors", cache=False)
    with pytest.raises(UsageError, match=r"size of its own, not 64 px"):
        selfsame.evaluate(run, photos, image_size=64, cache=False)
    with pytest.raises(UsageError, match="weights of its own"):
        selfsame.load(nn.Flatten(), weights="other.safetensors")


def test_a_run_leaves_the_callers_random_numbers_alone(photos: Path, tmp_path: Path) -> None:
    options = {"recipe": tiny_recipe("simclr", steps=1), "quiet": True, "device": "cpu"}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    selfsame.pretrain("simclr", photos, out=tmp_path / "a", **options)
    assert torch.equal(torch.rand(3), expected)


def test_test_images_that_were_trained_on_are_named(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    def seen(model: Path, data: Path) -> str | None:
        options = {"protocols": ["knn"], "controls": False, "device": "cpu", "cache": False}
        return selfsame.evaluate(model, data, **options)["seen"]  # type: ignore[no-any-return]

    assert "without their labels" in str(seen(run, photos))
    write_photos(tmp_path / "others" / "train", count=12, classes=3)
    write_photos(tmp_path / "others" / "test", count=6, classes=3)
    assert seen(run, tmp_path / "others") is None
    recipe, taught = tiny_recipe("supervised", steps=2), tmp_path / "taught"
    options = {"recipe": recipe, "out": taught, "val": photos, "quiet": True, "device": "cpu"}
    selfsame.pretrain("supervised", photos, **options)
    assert "NOT HELD OUT" in str(seen(taught, photos))
    assert "the test images of --val are trained on" in (taught / "log.txt").read_text()
    assert selfsame.predict(taught, photos)[0].label in {"class0", "class1", "class2"}
