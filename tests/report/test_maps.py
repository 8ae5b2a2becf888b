"""Colours, attention and places are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsame import backbones
from selfsame.report.maps import attention, attention_weights, layout, token_colors
from selfsame.types import Features


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny", {"width": 32, "depth": 2, "heads": 2, "patch": 8}),
        ("vit_tiny", {"width": 32, "depth": 2, "heads": 2, "patch": 8, "pool": "mean"}),
        ("vit_tiny", {"width": 32, "depth": 2, "heads": 2, "patch": 8, "pre_norm": False}),
        ("timm/vit_tiny_patch16_224", {"depth": 2, "patch_size": 8}),
    ],
)
def test_attention_is_what_the_block_uses(name: str, options: dict[str, int | str]) -> None:
    """Weights times values, projected, is what the layer itself returns."""
    torch.manual_seed(0)
    network = backbones.build(name, image_size=32, options=options).eval()
    x = torch.randn(3, 3, 32, 32)
    layer = network.blocks()[-1].attn
    seen: list[tuple[Tensor, Tensor]] = []
    hook = layer.register_forward_hook(lambda _, args, y: seen.append((args[0], y)))
    found = attention(network, x)
    hook.remove()
    assert found is not None
    weights, whose = found
    given, returned = seen[0]
    with torch.inference_mode():
        full = attention_weights(layer, given)
    with torch.inference_mode():
        _, _, v = layer.qkv(given).unflatten(-1, (3, full.shape[1], -1)).permute(2, 0, 3, 1, 4)
        again = layer.proj((full @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(again, returned, atol=1e-5, rtol=1e-5)
    prefix = full.shape[-1] - 16
    assert weights.shape == (3, full.shape[1], 4, 4)
    if prefix:
        assert whose == "of the class token"
        torch.testing.assert_close(weights.flatten(2), full[:, :, 0, 1:])
    else:
        assert "average" in whose
        torch.testing.assert_close(weights.sum((2, 3)), torch.ones(3, full.shape[1]))


def test_a_network_without_attention_has_none() -> None:
    network = backbones.build("resnet10", image_size=32, options={"width": 8}).eval()
    assert attention(network, torch.zeros(1, 3, 32, 32)) is None


def test_colors_are_the_principal_components_of_all_tokens() -> None:
    from sklearn.decomposition import PCA

    rng = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 25, 12, generator=rng) * torch.linspace(5, 1, 12)
    found = token_colors(Features(tokens.mean(1), tokens, (5, 5)))
    assert found is not None
    flat = tokens.flatten(0, 1).double().numpy()
    pca = PCA(3).fit(flat)
    assert found.explained == pytest.approx(pca.explained_variance_ratio_.sum())
    y = pca.transform(flat)
    low, high = np.quantile(y, [0.02, 0.98], axis=0)
    wanted = ((y - low) / (high - low)).clip(0, 1)
    got = found.colors.reshape(-1, 3) / 255
    for k in range(3):  # a component's sign is arbitrary
        off = min(
            np.abs(got[:, k] - wanted[:, k]).max(), np.abs(1 - got[:, k] - wanted[:, k]).max()
        )
        assert off < 1 / 255
    backwards = token_colors(Features(tokens.mean(1), tokens.flip(0), (5, 5)))
    assert backwards is not None
    assert np.array_equal(backwards.colors[::-1], found.colors)


def test_what_shows_nothing_is_not_shown() -> None:
    tokens = torch.randn(2, 4, 8)
    assert token_colors(Features(tokens.mean(1), tokens, (2, 2))) is None
    assert token_colors(Features(tokens.mean(1), None, (0, 0))) is None
    same = torch.ones(2, 9, 8)
    assert token_colors(Features(same.mean(1), same, (3, 3))) is None


def test_the_map_is_the_same_again_and_keeps_neighbours() -> None:
    torch.manual_seed(0)
    centres = torch.randn(3, 16) * 4
    z = torch.cat([centre + torch.randn(20, 16) * 0.1 for centre in centres])
    places, how = layout(z)
    assert "t-SNE" in how
    assert places.shape == (60, 2)
    assert places.min() >= 0
    assert places.max() <= 1
    again, _ = layout(z)
    assert np.array_equal(places, again)
    distance = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(distance, 9)
    nearest = distance.argmin(1)
    assert (nearest // 20 == np.arange(60) // 20).all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_images_have_a_map_too(count: int) -> None:
    places, how = layout(torch.randn(count, 8))
    assert "principal components" in how
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()


def test_a_collapsed_network_has_a_map() -> None:
    places, _ = layout(torch.ones(40, 8))
    assert np.isfinite(places).all()
