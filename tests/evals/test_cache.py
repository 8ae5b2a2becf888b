"""Features on disk: the same for the same, anew for anything else, complete or absent, bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from helpers import textures
from torch import Tensor, nn

from selfsame import backbones
from selfsame.data.arrays import ArraySource
from selfsame.encoder import Encoder
from selfsame.evals import Subject
from selfsame.evals.cache import Cache, encoder_key, entry_key
from selfsame.files import cache_folder
from selfsame.recipe import BackboneConfig
from selfsame.types import Norm

CONFIG = BackboneConfig(name="resnet8", options={"stem": "patch", "width": 8})


def encoder(seed: int = 0, **more: object) -> Encoder:
    torch.manual_seed(seed)
    network = backbones.build(CONFIG.name, image_size=32, options=CONFIG.options)
    return Encoder(network, **({"config": CONFIG, "image_size": 32} | more)).eval()  # type: ignore[arg-type]


def test_features_come_back_bit_for_bit(tmp_path: Path) -> None:
    source = ArraySource(textures(5))
    cache = Cache(tmp_path)
    made = Subject(encoder(), cache).features(source)
    again = Subject(encoder(), cache).features(ArraySource(textures(5)))
    assert (cache.computed, cache.reused) == (1, 1)
    assert made.keys() == again.keys() == {"index", "pooled"}
    assert all(torch.equal(made[name], again[name]) for name in made)
    assert [p.suffix for p in tmp_path.iterdir()] == [".safetensors"]


def test_whatever_changes_the_features_changes_the_key() -> None:
    one = encoder()
    source = ArraySource(textures(5))
    moved = encoder()
    with torch.no_grad():
        next(moved.parameters())[0, 0, 0, 0] += 1e-7
    keys = [
        encoder_key(e)
        for e in (
            one,
            encoder(seed=1),
            moved,
            encoder(image_size=40),
            encoder(norm=Norm((0.5,) * 3, (0.5,) * 3)),
            encoder(levels=(0.0, 4095.0)),
        )
    ]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    assert encoder_key(encoder()) == keys[0]
    names = {
        entry_key(str(keys[0]), data, what)
        for data in (source, ArraySource(textures(5, seed=1)), ArraySource(textures(4)))
        for what in ("pooled", "layers=4")
    }
    assert len(names) == 6


def test_a_users_own_module_is_never_taken_from_the_cache(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))
            self.scale = scale  # not in its state

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * self.scale * x.mean((2, 3))

    cache, source = Cache(tmp_path), ArraySource(textures(5))
    found = []
    for scale in (1.0, 2.0):
        network = backbones.build(Scaled(scale), image_size=32)
        subject = Subject(Encoder(network, config=None, image_size=32), cache)
        found.append(subject.features(source)["pooled"])
    torch.testing.assert_close(found[1], 2 * found[0])
    assert not list(tmp_path.iterdir())


def test_a_damaged_entry_is_computed_again(tmp_path: Path) -> None:
    cache, source = Cache(tmp_path), ArraySource(textures(5))
    made = Subject(encoder(), cache).features(source)["pooled"]
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    again = Subject(encoder(), cache).features(source)["pooled"]
    assert torch.equal(made, again)
    assert cache.computed == 2
    assert Cache(tmp_path).get(file.stem, dict).keys() == {"index", "pooled"}


def test_the_folder_stays_below_its_limit_and_the_oldest_go(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=3 * 4400)

    def entry() -> dict[str, Tensor]:
        return {"pooled": torch.zeros(1000)}

    for k, name in enumerate(("a", "b", "c")):
        cache.get(name, entry)
        os.utime(tmp_path / f"{name}.safetensors", (k, k))
    os.utime(tmp_path / "a.safetensors", (9, 9))  # used after the others
    cache.get("d", entry)
    assert {p.stem for p in tmp_path.iterdir()} == {"a", "c", "d"}
    assert cache.size() <= cache.limit
    cache.get("large", lambda: {"pooled": torch.zeros(10_000)})
    assert {p.stem for p in tmp_path.iterdir()} == {"a", "c", "d"}


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cache")
    assert cache.get("a", lambda: {"x": torch.ones(2)})["x"].tolist() == [1, 1]
    assert "cannot be written" in cache.describe()


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SELFSAME_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SELFSAME_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr("sys.platform", "linux")
    assert cache_folder() == tmp_path / "xdg" / "selfsame"
