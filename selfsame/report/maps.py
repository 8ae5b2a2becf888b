"""What a network makes of an image's parts: colours of tokens, attention, a map of images."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.types import Backbone, Features

SEED = 0  # of t-SNE
FEW = 12  # images below which two principal components are the map
FINE = 3  # tokens a side below which a picture of them shows nothing


class TokenColors(NamedTuple):
    """Three principal components of tokens as colours."""

    colors: np.ndarray  # uint8 [B, h, w, 3]
    explained: float  # share of the tokens' variance that the three hold


def token_colors(features: Features) -> TokenColors | None:
    """Colour each token by its first three principal components over all images given.

    As DINOv2 shows its patches (Oquab et al., arXiv 2304.07193, section 7.5), without removing the
    background first. Each component is scaled between its 2nd and 98th percentile; signs are fixed,
    so that equal tokens give equal colours. None where the network has fewer than 3 x 3 tokens, or
    all are alike.
    """
    rows, columns = features.grid
    if features.tokens is None or min(rows, columns) < FINE:
        return None
    x = features.tokens.double().flatten(0, 1)
    x = x - x.mean(0)
    _, sigma, directions = torch.linalg.svd(x, full_matrices=False)
    variance = sigma.square()
    if not variance.sum() > 0:
        return None
    directions = directions[:3]
    largest = directions.abs().argmax(1, keepdim=True)
    directions = directions * directions.gather(1, largest).sign()
    y = x @ directions.T
    ends = y.quantile(torch.tensor([0.02, 0.98], dtype=y.dtype), dim=0)
    y = ((y - ends[0]) / (ends[1] - ends[0]).clamp(min=1e-12)).clamp(0, 1)
    if y.shape[1] < 3:
        y = F.pad(y, (0, 3 - y.shape[1]), value=0.5)
    colors = (255 * y).round().byte().reshape(-1, rows, columns, 3).numpy()
    return TokenColors(colors, (variance[:3].sum() / variance.sum()).item())


@torch.inference_mode()
def attention(backbone: Backbone, x: Tensor) -> tuple[Tensor, str] | None:
    """Attention of a vision transformer's last block over the patches.

    Computed from the block's own queries and keys, in float32.

    Args:
        backbone: a ViT of ours, or a plain one of timm's.
        x: normalised images [B, C, S, S].

    Returns:
        float32 [B, heads, h, w], and in words whose attention it is: the class token's, or, without
        one, the mean over all tokens. None where the last block has no attention of a known form.
    """
    blocks = backbone.blocks()
    layer: Any = getattr(blocks[-1], "attn", None) if blocks else None
    if not isinstance(getattr(layer, "qkv", None), nn.Linear):
        return None
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    try:
        with torch.autocast(x.device.type, enabled=False):
            rows, columns = backbone(x).grid
    finally:
        hook.remove()
    weights = attention_weights(layer, given[0].float())  # [B, heads, prefix + N, prefix + N]
    prefix = weights.shape[-1] - rows * columns
    if prefix:
        seen, whose = weights[:, :, 0], "of the class token"
    else:
        seen, whose = weights.mean(2), "of all tokens on average"
    return seen[..., prefix:].reshape(*seen.shape[:2], rows, columns), whose


def attention_weights(layer: Any, x: Tensor) -> Tensor:
    """Softmax of queries times keys, [B, heads, N, N], of tokens [B, N, D] that the layer gets."""
    heads = getattr(layer, "num_heads", None) or layer.heads  # timm's word, and ours
    q, k, _ = layer.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    q = getattr(layer, "q_norm", nn.Identity())(q)
    k = getattr(layer, "k_norm", nn.Identity())(k)
    weights: Tensor = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    return weights


def layout(z: Tensor) -> tuple[np.ndarray, str]:
    """Places of images on a plane, float64 [N, 2] within 0..1, and how they were found.

    scikit-learn's t-SNE of unit features, from their principal components and a fixed seed, so that
    the same features give the same map; the components themselves for fewer than 12 images.
    """
    x = F.normalize(z.double(), dim=-1).numpy()
    if len(x) < FEW or float(x.std(0).max()) < 1e-9:
        centred = torch.from_numpy(x - x.mean(0))
        u, sigma, _ = torch.linalg.svd(centred, full_matrices=False)
        places = np.zeros((len(x), 2))
        places[:, : min(2, u.shape[1])] = (u * sigma)[:, :2].numpy()
        how = "the first two principal components"
    else:
        from sklearn.manifold import TSNE

        perplexity = min(30.0, (len(x) - 1) / 3)
        model = TSNE(
            perplexity=perplexity, init="pca", metric="cosine", random_state=SEED, n_jobs=1
        )
        places = model.fit_transform(x).astype(np.float64)
        how = f"t-SNE of cosine distances (perplexity {perplexity:.0f}, seed {SEED})"
    low, high = places.min(0), places.max(0)
    return (places - low) / np.maximum(high - low, 1e-12), how
