"""Our own networks as other libraries would describe them: shapes read off the modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from selfsame.backbones.resnet import Bottleneck, ResNet
from selfsame.backbones.vit import Block, LayerScale, SwiGLU, ViT


class ResNetShape(NamedTuple):
    """A ResNet of ours."""

    bottleneck: bool
    depths: tuple[int, ...]  # blocks of each stage
    width: int  # channels of the first stage
    stem: str
    channels: int


class ViTShape(NamedTuple):
    """A ViT of ours."""

    dim: int
    depth: int
    heads: int
    hidden: int  # width of the perceptrons' hidden layer; of SwiGLU, of each half
    patch: int  # pixels
    size: int  # side of the images that the positions are for, pixels
    channels: int
    pool: str
    pre_norm: bool
    layer_scale: bool
    swiglu: bool


def resnet_shape(network: ResNet) -> ResNetShape:
    """What a ResNet is."""
    stages = [network.get_submodule(f"layer{i + 1}") for i in range(network.depth)]
    stem = "imagenet" if network.pool_stem else {3: "cifar", 4: "patch"}[_side(network.conv1)]
    return ResNetShape(
        isinstance(network.blocks()[0], Bottleneck),
        tuple(len(list(stage.children())) for stage in stages),
        network.conv1.out_channels,
        stem,
        network.conv1.in_channels,
    )


def resnet_lacks(network: ResNet, stems: Sequence[str]) -> str | None:
    """What a library lacks that has ResNets of four stages, from 64 channels on."""
    shape = resnet_shape(network)
    if len(shape.depths) != 4 or shape.width != 64:
        return f"ResNet of {len(shape.depths)} stages from {shape.width} channels on"
    return None if shape.stem in stems else f"ResNet with the stem '{shape.stem}'"


def vit_shape(network: ViT) -> ViTShape:
    """What a ViT is."""
    first, projection = network.block[0], network.patch_embed.proj
    assert isinstance(first, Block)
    swiglu = isinstance(first.mlp, SwiGLU)
    hidden = (
        first.mlp.w3.in_features if isinstance(first.mlp, SwiGLU) else first.mlp.fc1.out_features
    )
    patch = _side(projection)
    return ViTShape(
        projection.out_channels,
        len(network.block),
        first.attn.heads,
        hidden,
        patch,
        network.base[0] * patch,
        projection.in_channels,
        network.pool,
        first.pre_norm,
        isinstance(first.ls1, LayerScale),
        swiglu,
    )


def vit_lacks(network: ViT) -> str | None:
    """What of our ViTs no library has."""
    if not vit_shape(network).pre_norm:
        return "ViT that normalises after each part (pre_norm=False)"
    return "ViT whose feature is two tokens (distilled)" if network.dist_token is not None else None


def _side(convolution: nn.Conv2d) -> int:
    return convolution.kernel_size[0]
