from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import TINY, TINY_VIT, write_photos
from reported import EVIL, add_verdict, train

import selfsame


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of three classes, one with a name that is markup, a copy, and a file that is none."""
    folder = write_photos(tmp_path_factory.mktemp("report") / "photos", count=45, classes=3)
    (folder / "class2").rename(folder / EVIL)
    copied = (folder / "class0" / "000.png").read_bytes()
    (folder / "class0" / "copy of <b>.png").write_bytes(copied)
    (folder / "class1" / "<i>bad.jpg").write_text("no picture")
    return folder


@pytest.fixture(scope="session")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judged run of a ResNet, with a verdict."""
    out = train(
        "simclr",
        photos,
        tmp_path_factory.mktemp("runs") / "resnet",
        TINY | {"backbone.options.stem": "cifar"},
    )
    selfsame.evaluate(out, str(photos), protocols=["knn"])
    add_verdict(out)
    return out


@pytest.fixture(scope="session")
def vit_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a ViT."""
    return train("mae", photos, tmp_path_factory.mktemp("runs") / "vit", TINY_VIT)


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    from browser import Browser, find_browser

    if find_browser() is None:
        pytest.skip("no chromium here: apt-get install chromium")
    pytest.importorskip("websocket", reason="pip install websocket-client")
    with Browser() as found:
        yield found
