"""Images that are not 8-bit RGB, from the data to the encoder that is loaded again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, textures
from PIL import Image
from torch import nn

import selfsame
from selfsame import backbones, plan
from selfsame.data import open_source
from selfsame.errors import UsageError
from selfsame.plan import Choices
from selfsame.types import Norm

SMALL = ("batch_size=8", "steps=2", *(f"{key}={value}" for key, value in TINY.items()))


def deep(count: int, channels: int) -> np.ndarray:
    """12-bit values in 16 bits, [N, 32, 32, channels], each channel darker than the last."""
    gray = textures(count).mean(-1, keepdims=True) * 16
    return (gray / np.arange(1, channels + 1)).astype(np.uint16)


@pytest.fixture
def five(tmp_path: Path) -> Path:
    np.save(tmp_path / "five.npy", deep(24, 5))
    return tmp_path / "five.npy"


def test_five_channels_of_twelve_bits_are_learnt_from_and_loaded_again(
    five: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = selfsame.pretrain("simclr", five, out=out, settings=SMALL, device="cpu", quiet=True)
    card = json.loads((out / "card.json").read_text())
    assert card["channels"] == 5
    assert card["levels"] == [0, 4095]
    means = np.clip(deep(24, 5) / 4095, 0, 1).mean((0, 1, 2))
    assert card["mean"] == pytest.approx(means.tolist(), abs=3e-3)
    loaded = selfsame.load(out, device="cpu")
    assert loaded.levels == (0, 4095)
    assert loaded.norm == result.encoder.norm
    assert torch.equal(loaded.embed(five), result.encoder.embed(five))
    again = selfsame.pretrain(
        "simclr", five, out=out, settings=SMALL, device="cpu", resume=True, quiet=True
    )
    assert again.steps == result.steps


def test_what_is_done_with_the_pixels_is_said(five: Path) -> None:
    made = plan.make("simclr", five, Choices(settings=SMALL), "cpu")
    said = "\n".join(made.notes)
    for words in (
        "5 channels",
        "saturation, hue and grayscale are for RGB",
        "0 to 4095",
        "measured",
    ):
        assert words in said
    assert made.recipe.norm is not None
    assert made.build().encoder().norm == made.recipe.norm
    made.images.close()
    asked = ("levels=[0,8190]", "norm=[[0,0,0,0,0],[1,1,1,1,1]]")
    other = plan.make("simclr", five, Choices(settings=(*SMALL, *asked)), "cpu")
    assert other.build().encoder().norm == Norm((0.0,) * 5, (1.0,) * 5)
    halved = other.images.batch(torch.arange(4)).images.float()
    assert torch.allclose(halved * 2, made_pixels(five), atol=1.5)
    other.images.close()


def made_pixels(path: Path) -> torch.Tensor:
    with plan.make("simclr", path, Choices(settings=SMALL), "cpu").images as images:
        return images.batch(torch.arange(4)).images.float()


def test_files_of_sixteen_bits_keep_their_relative_brightness(tmp_path: Path) -> None:
    for i, gray in enumerate(deep(16, 1)[..., 0]):
        Image.fromarray(gray // (1 + i % 2)).save(tmp_path / f"{i:02d}.png")
    made = plan.make("simclr", tmp_path, Choices(settings=(*SMALL, "channels=1")), "cpu")
    assert made.recipe.levels == (0, 4095)
    with made.images as images:
        bright = images.batch(torch.arange(16)).images.float().mean((1, 2, 3))
    assert bright[0::2].mean() / bright[1::2].mean() == pytest.approx(2, rel=0.1)


def test_a_pack_of_deep_images_is_what_they_are_learnt_as(five: Path, tmp_path: Path) -> None:
    done = selfsame.pack(five, tmp_path / "five.pack", quiet=True)
    assert (done["channels"], done["levels"]) == (5, (0, 4095))
    assert torch.equal(made_pixels(tmp_path / "five.pack"), made_pixels(five))


def test_rgb_has_the_statistics_of_the_papers_and_no_levels() -> None:
    made = plan.make("simclr", textures(16), Choices(settings=SMALL), "cpu")
    made.images.close()
    assert made.recipe.norm is None
    assert made.recipe.levels is None
    assert made.recipe.channels == 3


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_a_pretrained_stem_sees_gray_in_any_number_of_channels(channels: int) -> None:
    stem = nn.Conv2d(3, 8, 3, bias=True)
    gray = torch.rand(2, 1, 9, 9)
    before = stem(gray.expand(-1, 3, -1, -1))
    backbones._adapt_stem(nn.Sequential(stem), channels)
    after = stem(gray.expand(-1, channels, -1, -1))
    if channels in (1, 3):
        torch.testing.assert_close(after, before)
    # timm's rule: cycled over the channels, so other counts lean to the colours that come first
    assert after.shape == before.shape
    ratio = (after.std() / before.std()).item()
    assert 0.5 < ratio < 2


def test_a_torchvision_network_takes_five_channels(five: Path) -> None:
    network = backbones.build("torchvision/resnet18", image_size=32, channels=5)
    assert network(torch.zeros(2, 5, 32, 32)).pooled.shape == (2, 512)
    assert len(network.norm.mean) == 5
    encoder = selfsame.load(network.get_submodule("module"), image_size=32, channels=5)
    assert encoder.embed(open_source(five)).shape == (24, 512)


def test_pretrained_weights_are_a_librarys(five: Path) -> None:
    settings = ("batch_size=8", "steps=2", "backbone.pretrained=true", "backbone.name=resnet18")
    made = plan.make("simclr", five, Choices(settings=settings), "cpu")
    made.images.close()
    assert made.recipe.backbone.name == "timm/resnet18"
    assert made.recipe.norm is None  # the library's own


def test_weights_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.models.get_model", fail)
    with pytest.raises(UsageError, match="pretrained weights of torchvision/resnet18") as error:
        backbones.build("torchvision/resnet18", image_size=32, pretrained=True)
    assert "--weights" in str(error.value.tip)
