from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from ranks import Ranks
from torch import Tensor

from selfsame import backbones, dist
from selfsame.backbones.vit import ViT
from selfsame.errors import UsageError
from selfsame.methods.mae import (
    MAE,
    Settings,
    decoder_positions,
    masked_mse,
    normalize_patches,
    patchify,
    random_masking,
    recipe,
)
from selfsame.types import Progress

START = Progress(0, 10, 0, 0.0)


def small(pool: str = "cls", channels: int = 3, **settings: Any) -> MAE:
    torch.manual_seed(0)
    backbone = ViT(
        "vit_tiny",
        image_size=32,
        patch=8,
        width=16,
        depth=2,
        heads=2,
        pool=pool,
        positions="mae",
        channels=channels,
    )
    return MAE(Settings(**{"width": 12, "depth": 1, "heads": 3} | settings), backbone)


def views_of(method: MAE, x: Tensor, index: Tensor, epoch: int = 0) -> dict[str, Tensor]:
    views = {"global": x[None]}
    return views | dict(method.draw(views, index, seed=5, epoch=epoch))


def batch(count: int = 4, channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, channels, 32, 32, generator=generator), torch.arange(count) + 7


def test_patches_are_read_row_by_row_and_channel_by_channel() -> None:
    x = torch.arange(2 * 4 * 6.0).view(1, 2, 4, 6)  # 2 channels, 4 rows, 6 columns
    patches = patchify(x, 2)
    assert patches.shape == (1, 6, 8)
    assert patches[0, 4].tolist() == [14, 38, 15, 39, 20, 44, 21, 45]  # second row, second column


def test_normalised_patches_have_mean_0_and_unbiased_variance_1() -> None:
    patches = 5 + 3 * torch.randn(2, 3, 48, dtype=torch.float64)
    y = normalize_patches(patches)
    torch.testing.assert_close(y.mean(-1), torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(
        y.var(-1), torch.ones(2, 3, dtype=torch.float64), rtol=1e-5, atol=1e-5
    )
    assert normalize_patches(torch.ones(1, 1, 48)).abs().max() == 0  # a flat patch stays finite


def test_the_quarter_with_the_least_noise_is_kept() -> None:
    noise = torch.tensor([[0.3, 0.1, 0.9, 0.0, 0.5, 0.7, 0.8, 0.2]])
    keep, restore = random_masking(noise, 0.75)
    assert keep.tolist() == [[3, 1]]
    assert restore.tolist() == [[3, 1, 7, 0, 4, 5, 6, 2]]
    shuffled = torch.arange(8)[noise.argsort(1)]
    assert torch.equal(shuffled.gather(1, restore), torch.arange(8)[None])
    assert random_masking(torch.rand(1, 196), 0.75)[0].shape == (1, 49)
    with pytest.raises(UsageError, match="leaves none to see") as caught:
        random_masking(torch.rand(1, 3), 0.75)
    assert "patch" in str(caught.value.tip)


def test_only_hidden_patches_count() -> None:
    prediction = torch.randn(2, 4, 6, requires_grad=True)
    target, mask = torch.zeros(2, 4, 6), torch.tensor([[1, 0, 1, 0], [0, 0, 1, 1]])
    loss = masked_mse(prediction, target, mask)
    assert loss.item() == pytest.approx(prediction[mask == 1].square().mean().item())
    loss.backward()
    assert prediction.grad[mask == 0].abs().max() == 0
    assert (prediction.grad[mask == 1].abs() > 0).all()


def test_no_gradient_reaches_the_prediction_of_a_visible_patch() -> None:
    method, (x, index) = small(), batch()
    views = views_of(method, x, index)
    outputs = []

    def note(_: object, __: object, out: Tensor) -> None:
        out.retain_grad()
        outputs.append(out)

    method.decoder.register_forward_hook(note)
    method(views, START).loss.backward()
    grad = outputs[0].grad.abs().amax(-1)
    hidden = views["restore"][0] >= 4
    assert grad[~hidden].max() == 0
    assert grad[hidden].min() > 0


def test_half_precision_predictions_have_a_float32_loss() -> None:
    prediction = torch.full((1, 2, 48), 300.0, dtype=torch.float16)  # its square overflows
    loss = masked_mse(prediction, torch.zeros(1, 2, 48), torch.ones(1, 2))
    assert loss.dtype == torch.float32
    assert loss.item() == 90_000


def test_masks_are_those_of_the_image_and_the_epoch() -> None:
    method, (x, index) = small(), batch()
    whole = views_of(method, x, index)
    part = views_of(method, x[2:], index[2:])
    for key in ("keep", "restore"):
        assert torch.equal(whole[key][:, 2:], part[key])
    keep = whole["keep"][0]
    assert keep.shape == (4, 4)
    assert len({tuple(row.sort().values.tolist()) for row in keep}) > 1  # one of its own each
    assert not torch.equal(keep, views_of(method, x, index, epoch=1)["keep"][0])
    two = {"global": torch.stack([x, x])}
    drawn = method.draw(two, index, seed=5, epoch=0)["keep"]
    assert torch.equal(drawn[0], keep)
    assert not torch.equal(drawn[1], keep)


def test_every_patch_is_hidden_equally_often() -> None:
    method = small()
    n = 4000
    views = {"global": torch.empty(1, n, 3, 32, 32, device="meta")}
    restore = method.draw(views, torch.arange(n), seed=0, epoch=0)["restore"][0]
    often = (restore >= 4).double().mean(0)
    assert (often - 0.75).abs().max() < 5 * (0.75 * 0.25 / n) ** 0.5


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_the_encoder_computes_the_visible_tokens_and_the_decoder_all(pool: str) -> None:
    method, (x, index) = small(pool), batch()
    lengths: dict[str, int] = {}

    def note(name: str) -> Any:
        return lambda _, inputs: lengths.update({name: inputs[0].shape[1]})

    method.backbone.block[0].register_forward_pre_hook(note("encoder"))
    method.decoder.block[0].register_forward_pre_hook(note("decoder"))
    method(views_of(method, x, index), START)
    assert lengths == {"encoder": 4 + (pool == "cls"), "decoder": 1 + 16}


def test_the_prediction_does_not_depend_on_hidden_pixels() -> None:
    method, (x, index) = small(), batch()
    views = views_of(method, x, index)
    outputs = []
    method.decoder.register_forward_hook(lambda _, __, out: outputs.append(out))
    method(views, START)
    mask = (views["restore"][0] >= 4).float().view(4, 1, 4, 4)
    pixels = torch.nn.functional.interpolate(mask, size=32) > 0
    method(views | {"global": torch.where(pixels, 9.0, x)[None]}, START)
    assert torch.equal(*outputs)
    method(views | {"global": torch.where(pixels, x, 9.0)[None]}, START)
    assert not torch.equal(outputs[0], outputs[2])


def test_each_hidden_patch_stands_in_its_own_place() -> None:
    """With no blocks to mix tokens, a prediction depends on its own token and position alone."""
    method, (x, index) = small(), batch(1)
    method.decoder.block = torch.nn.ModuleList()
    views = views_of(method, x, index)
    outputs = []
    method.decoder.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    method(views, START)
    with torch.no_grad():
        table = decoder_positions(12, (4, 4))[1:]
        decoder = method.decoder
        blank = decoder.predict(decoder.norm(decoder.mask_token[0] + table))
    hidden = views["restore"][0, 0] >= 4
    torch.testing.assert_close(outputs[0][hidden], blank[hidden])
    assert ((outputs[0] - blank)[~hidden].abs().amax(-1) > 1e-3).all()


def test_predicting_nothing_loses_one_and_explains_nothing() -> None:
    method, (x, index) = small(), batch()
    for p in method.decoder.predict.parameters():
        torch.nn.init.zeros_(p)
    out = method(views_of(method, x, index), START)
    share = (8 * 8 * 3 - 1) / (8 * 8 * 3)  # the variance is unbiased
    assert out.loss.item() == pytest.approx(share, rel=1e-4)
    assert out.metrics["explained"].item() == pytest.approx(0, abs=1e-6)


def test_pixels_as_they_are_where_norm_pix_is_off() -> None:
    method, (x, index) = small(norm_pix=False), batch()
    for p in method.decoder.predict.parameters():
        torch.nn.init.zeros_(p)
    out = method(views_of(method, 3 * x, index), START)
    assert out.loss.item() == pytest.approx(9, rel=0.1)


def test_other_networks_channels_and_sizes() -> None:
    method = small(channels=2)
    x, index = batch(channels=2)
    assert method.decoder.predict.out_features == 8 * 8 * 2
    assert method(views_of(method, x, index), START).loss.isfinite()
    wide = torch.randn(4, 2, 16, 48)  # the sizes of a view may differ from the encoder's
    assert method(views_of(method, wide, index), START).loss.isfinite()
    timms = backbones.build(
        "timm/vit_tiny_patch16_224", image_size=64, options={"depth": 1, "embed_dim": 48}
    )
    theirs = MAE(Settings(width=12, depth=1, heads=3), timms)
    x = torch.randn(4, 3, 64, 64)
    out = theirs(views_of(theirs, x, index), START)
    out.loss.backward()
    assert theirs.backbone.module.cls_token.grad.abs().sum() > 0  # through the decoder


def test_settings_are_checked() -> None:
    with pytest.raises(ValidationError, match="no multiple of heads"):
        Settings(width=64, heads=5)
    with pytest.raises(ValidationError, match="multiple of 4"):
        Settings(width=66, heads=1)
    assert recipe("paper", 224).method == Settings()


def on_a_rank(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    method = small()
    mine = slice(2 * dist.rank(), 2 * dist.rank() + 2)
    loss = method(views_of(method, x[mine], index[mine]), START).loss
    loss.backward()
    return loss.detach(), method.backbone.patch_embed.proj.weight.grad


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    x, index = batch()
    (loss0, grad0), (loss1, grad1) = ranks(on_a_rank, x, index)
    method = small()
    loss = method(views_of(method, x, index), START).loss
    loss.backward()
    torch.testing.assert_close((loss0 + loss1) / 2, loss.detach())
    grad = method.backbone.patch_embed.proj.weight.grad
    torch.testing.assert_close((grad0 + grad1) / 2, grad)
