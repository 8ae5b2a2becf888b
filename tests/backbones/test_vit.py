"""Our vision transformer, and timm's in our hands."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from selfsame import backbones
from selfsame.backbones.vit import SampleDrop, ViT, drop_samples, keep_tokens, layer_of
from selfsame.errors import UsageError
from selfsame.nn.positions import sincos_2d


def tiny(seed: int = 0, **options: Any) -> ViT:
    torch.manual_seed(seed)
    values = {"image_size": 32, "patch": 8, "width": 16, "depth": 2, "heads": 2} | options
    return ViT("vit_tiny", **values).eval()


def images(count: int = 2, side: int = 32) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


@cache
def pair() -> tuple[ViT, nn.Module]:
    """Our ViT-tiny and timm's with the same weights."""
    torch.manual_seed(0)
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    for p in theirs.parameters():  # no zeros and ones that would hide a swap
        p.data += 0.02 * torch.randn_like(p)
    renames = {r"^blocks": "block", r"^norm": "last_norm"}
    state = theirs.state_dict()
    for old, new in renames.items():
        state = {re.sub(old, new, key): value for key, value in state.items()}
    ours = ViT("vit_tiny").eval()
    ours.load_state_dict(state)  # strict
    return ours, theirs


def test_it_is_timms_network() -> None:
    ours, theirs = pair()
    x = images(2, 224)
    with torch.no_grad():
        features, expected = ours(x), theirs.forward_features(x)
    torch.testing.assert_close(features.pooled, expected[:, 0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.tokens, expected[:, 1:], rtol=1e-4, atol=1e-4)
    assert features.grid == (14, 14)


def test_timms_network_drops_and_replaces_like_ours() -> None:
    ours, theirs = pair()
    wrapped = backbones.WrappedViT(theirs, torch.zeros(1, 3, 224, 224), ours.norm)
    assert wrapped.can == {"tokens", "keep", "replace", "layers", "stages"}
    x = images(2, 224)
    keep = torch.rand(4, 196, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :20]
    mask = torch.zeros(2, 196, dtype=torch.bool)
    mask[0, 3:90] = True
    token = torch.linspace(-1, 1, ours.dim)
    for options in ({}, {"keep": keep[:2]}, {"keep": keep}, {"replace": (mask, token)}):
        with torch.no_grad():
            a, b = ours(x, **options), wrapped(x, **options)
        torch.testing.assert_close(a.pooled, b.pooled, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a.tokens, b.tokens, rtol=1e-4, atol=1e-4)
        assert a.grid == b.grid == (14, 14)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_kept_tokens_are_computed_alone_and_in_their_places(pool: str) -> None:
    vit = tiny(pool=pool, positions="mae")
    x = images()
    keep = torch.tensor([[5, 0, 11], [2, 15, 3]])
    everything, _ = vit.embed(x)
    some, grid = vit.embed(x, keep=keep)
    prefix = int(pool == "cls")
    assert grid == (4, 4)
    assert torch.equal(some[:, :prefix], everything[:, :prefix])
    for image in range(2):  # the positions are those of the whole grid
        rows = everything[image, prefix:][keep[image]]
        assert torch.equal(some[image, prefix:], rows)

    lengths = []
    vit.block[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    features = vit(x, keep=keep)
    assert lengths == [3 + prefix]
    assert features.tokens.shape == (2, 3, 16)
    full = torch.arange(16).expand(2, 16)
    torch.testing.assert_close(vit(x, keep=full).tokens, vit(x).tokens)


def test_what_was_dropped_is_never_seen() -> None:
    vit = tiny()
    x = images(1)
    keep = torch.tensor([[0, 1, 2, 3]])  # the first row of patches: pixel rows 0 to 7
    other = x.clone()
    other[:, :, 8:] = 7.0
    assert torch.equal(vit(x, keep=keep).tokens, vit(other, keep=keep).tokens)
    assert torch.equal(vit(x, keep=keep).pooled, vit(other, keep=keep).pooled)
    assert not torch.equal(vit(x).tokens[:, :4], vit(other).tokens[:, :4])
    x.requires_grad_()
    vit(x, keep=keep).tokens.square().sum().backward()
    assert x.grad[:, :, :8].abs().sum() > 0
    assert x.grad[:, :, 8:].abs().sum() == 0


def test_several_sets_of_tokens_for_each_image() -> None:
    vit = tiny()
    x = images(2)
    keep = torch.rand(6, 16, generator=torch.Generator().manual_seed(0)).argsort(1)[:, :5]
    together = vit(x, keep=keep)
    repeated = vit(x.repeat_interleave(3, 0), keep=keep)
    torch.testing.assert_close(together.tokens, repeated.tokens)
    torch.testing.assert_close(together.pooled, repeated.pooled)
    x, keep = torch.arange(8.0).view(2, 4, 1), torch.tensor([[3], [0], [1], [2]])
    assert keep_tokens(x, keep).flatten().tolist() == [3, 0, 5, 6]


def test_replaced_patches_leave_no_trace_but_keep_their_positions() -> None:
    vit = tiny()
    x = images(2)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 4:] = True
    token = torch.randn(16)
    other = x.clone()
    other[0, :, 8:] = 3.0  # the pixels of the replaced patches
    assert torch.equal(
        vit(x, replace=(mask, token)).tokens, vit(other, replace=(mask, token)).tokens
    )
    embedded, _ = vit.embed(x, replace=(mask, token))
    torch.testing.assert_close(embedded[0, 5:], (token + vit.pos_embed[0, 5:]))
    torch.testing.assert_close(embedded[1], vit.embed(x)[0][1])


def test_a_table_of_constant_positions_stays_constant_at_another_size() -> None:
    vit = tiny()
    with torch.no_grad():
        vit.pos_embed.copy_(torch.arange(16.0).expand_as(vit.pos_embed))
        nn.init.zeros_(vit.patch_embed.proj.weight)
    for side in (16, 24, 48):
        embedded, grid = vit.embed(images(1, side))
        assert grid == (side // 8, side // 8)
        torch.testing.assert_close(embedded[0, 1:], torch.arange(16.0).expand(grid[0] ** 2, 16))
    x = torch.randn(1, 3, 16, 40)  # wider than high
    assert vit(x).grid == (2, 5)


def test_position_tables() -> None:
    mae, mocov3 = sincos_2d(8, 3, 5), sincos_2d(8, 3, 5, first="row")
    assert mae.shape == (15, 8)
    place = 2 * 5 + 4  # row 2, column 4
    angles = torch.tensor([1.0, 0.01], dtype=torch.float64)
    row, column = ((k * angles) for k in (2, 4))
    torch.testing.assert_close(
        mae[place], torch.cat([column.sin(), column.cos(), row.sin(), row.cos()])
    )
    torch.testing.assert_close(
        mocov3[place], torch.cat([row.sin(), row.cos(), column.sin(), column.cos()])
    )
    for kind, table in (("mae", sincos_2d(16, 4, 4)), ("mocov3", sincos_2d(16, 4, 4, first="row"))):
        vit = tiny(positions=kind)
        assert "pos_embed" not in dict(vit.named_parameters())
        assert torch.equal(vit.pos_embed[0, 1:], table.float())
        assert vit.pos_embed[0, 0].abs().sum() == 0  # the class token has no place
    assert "pos_embed" in dict(tiny().named_parameters())
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_2d(6, 2, 2)


def test_post_norm_normalises_the_embeddings_and_the_output_of_each_block() -> None:
    vit = tiny(pre_norm=False)
    x = 100 * images()
    embedded, _ = vit.embed(x)
    for y in (embedded, vit(x).tokens):
        torch.testing.assert_close(y.mean(-1), torch.zeros(y.shape[:-1]), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            y.std(-1, correction=0), torch.ones(y.shape[:-1]), atol=1e-3, rtol=0
        )
    assert isinstance(vit.last_norm, nn.Identity)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_feed_forwards_are_what_the_perceptrons_return(pre_norm: bool) -> None:
    vit = tiny(depth=3, pre_norm=pre_norm)
    x = images()
    seen = []
    for block in vit.block:
        block.mlp.register_forward_hook(lambda _, __, y: seen.append(y[:, 1:]))
    found = vit.feed_forwards(x, 2)
    assert len(found) == 2
    for ours, theirs in zip(found, seen[1:], strict=True):
        assert torch.equal(ours, theirs)
    assert len(vit.feed_forwards(x, 9)) == 3  # at most all


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tiny()(images(1, 36)), "36x36 px do not divide into patches of 8"),
        (lambda: tiny()(images(1, 4)), "4x4 px do not divide"),
        (lambda: tiny(image_size=30), "30x30 px"),
        (lambda: tiny(width=18, heads=4), "width of 18 does not go with 4 heads"),
        (lambda: tiny(width=18, heads=2, positions="mae"), "width of 18"),
    ],
)
def test_bad_sizes_are_refused_with_a_tip(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make()
    assert "multiple of" in str(caught.value.tip)


def test_bad_options_are_refused_with_the_nearest_one() -> None:
    for options, close in (
        ({"dept": 2}, "depth"),
        ({"pool": "means"}, "mean"),
        ({"positions": "sincos"}, "mae"),
        ({"init": "xavierr"}, "xavier"),
    ):
        with pytest.raises(UsageError) as caught:
            backbones.build("vit_tiny", image_size=32, options={"patch": 8, **options})
        assert close in str(caught.value.tip)


def test_dropped_branches_cost_nothing_and_are_right_on_average() -> None:
    x = torch.randn(10, 3, 4)
    sizes = []

    def branch(y: Tensor) -> Tensor:
        sizes.append(len(y))
        return 2 * y + 1

    drop = SampleDrop(0.4)
    torch.manual_seed(0)
    out = torch.stack([drop(x, branch) for _ in range(4000)])
    assert set(sizes) == {6}
    rows = (out.abs().sum((2, 3)) > 0).sum(1)
    assert set(rows.tolist()) == {6}  # the others got nothing
    expected = 2 * x + 1
    error = (out.mean(0) - expected).abs() / expected.abs().clamp(min=0.1)
    assert error.max() < 0.08  # a mean of 4000, each of them 0 or 10 / 6 times it
    one = drop_samples(x, branch, torch.tensor([2]))
    torch.testing.assert_close(one[2], 10 * expected[2])
    assert drop.eval()(x, branch).equal(expected)
    assert sizes[-1] == 10
    assert len(SampleDrop(0.99)(x, branch).abs().sum((1, 2)).nonzero()) == 1  # never none


def test_the_chance_to_drop_grows_with_depth() -> None:
    vit = tiny(depth=3, drop_path=0.2)
    assert [block.drop_path.drop_prob for block in vit.block] == pytest.approx([0, 0.1, 0.2])


def test_initialisation() -> None:
    bound = (6 / (16 + 16)) ** 0.5
    qkv = tiny(init="xavier_qkv").block[0].attn.qkv.weight
    assert bound * 0.95 < qkv.abs().max() <= bound
    bound = (6 / (16 + 48)) ** 0.5
    qkv = tiny(init="xavier").block[0].attn.qkv.weight
    assert bound * 0.95 < qkv.abs().max() <= bound
    bound = (6 / (3 * 64 + 16)) ** 0.5  # the patch projection as a linear layer
    assert bound * 0.95 < tiny(init="xavier").patch_embed.proj.weight.abs().max() <= bound
    assert tiny().block[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    frozen = tiny(frozen_patch=True)
    assert not any(p.requires_grad for p in frozen.patch_embed.parameters())


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("cls_token", 0),
        ("backbone.pos_embed", 0),
        ("backbone.patch_embed.proj.weight", 0),
        ("mask_token", 0),
        ("backbone.block.0.norm1.weight", 1),
        ("module.blocks.11.mlp.fc1.bias", 12),
        ("backbone.last_norm.weight", 13),
        ("norm.bias", 13),
        ("head.weight", 13),
    ],
)
def test_layers_of_parameters(name: str, layer: int) -> None:
    assert layer_of(name, 12) == layer


def test_sizes_are_those_of_the_papers() -> None:
    """DeiT's tiny, small and base (arXiv 2012.12877, table 1), less their classifiers."""
    with torch.device("meta"):
        for name, millions in (("vit_tiny", 5.5), ("vit_small", 21.7), ("vit_base", 85.8)):
            count = sum(p.numel() for p in ViT(name).parameters())
            assert round(count / 1e6, 1) == millions
