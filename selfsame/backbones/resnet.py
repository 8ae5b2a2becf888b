"""ResNet (He et al., "Deep Residual Learning for Image Recognition", arXiv 1512.03385).

The v1.5 form that torchvision and the self-supervised papers train: the stride of a bottleneck sits
in its 3x3 convolution. Parameter names and shapes are torchvision's, so weights load both ways.
Three stems: ``imagenet`` (7x7 stride 2 and a max-pool: 1/4 of the input), ``cifar`` (3x3 stride 1,
no pool: full resolution; SimCLR, appendix B.9) and ``patch`` (4x4 stride 2, no pool: half
resolution, about a quarter of the ``cifar`` stem's work: our choice for small budgets).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.nn.convolution import Conv3x3
from selfsame.types import Backbone, Features, Norm

Stem = Literal["imagenet", "cifar", "patch"]

IMAGENET = Norm((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# name -> (bottleneck, blocks per stage, width of the first stage)
DEPTHS: dict[str, tuple[bool, tuple[int, ...], int]] = {
    "resnet8": (False, (1, 1, 1), 16),  # three stages: the CIFAR networks of section 4.2
    "resnet14": (False, (2, 2, 2), 16),
    "resnet20": (False, (3, 3, 3), 16),
    "resnet10": (False, (1, 1, 1, 1), 64),
    "resnet18": (False, (2, 2, 2, 2), 64),
    "resnet34": (False, (3, 4, 6, 3), 64),
    "resnet50": (True, (3, 4, 6, 3), 64),
    "resnet101": (True, (3, 4, 23, 3), 64),
    "resnet152": (True, (3, 8, 36, 3), 64),
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)
        self.last_norm = "bn2"

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, width, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1 to four times the width, and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(inputs, 4 * width, stride)
        self.last_norm = "bn3"

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, 4 * width, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)


class ResNet(Backbone):
    """A ResNet without its classifier: global average pooling is the feature.

    Args:
        name: one of ``DEPTHS``.
        stem: see the module's docstring.
        width: channels of the first stage, 0 for the name's own; later stages double it. SSL's
            "2x" is 128.
        channels: channels of the input image.
        zero_init: start the last norm's scale of every block at 0, so that each block begins as
            its shortcut (Goyal et al., arXiv 1706.02677; used by SimCLR, SimSiam, MoCo v3).

    Features: pooled [B, D], tokens [B, h * w, D] from the last feature map, grid (h, w).
    """

    can = frozenset({"tokens", "maps", "stages"})
    norm = IMAGENET

    def __init__(
        self,
        name: str = "resnet50",
        *,
        stem: Stem = "imagenet",
        width: int = 0,
        channels: int = 3,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        bottleneck, depths, own_width = DEPTHS[name]
        width = width or own_width
        block = Bottleneck if bottleneck else BasicBlock
        self.pool_stem = stem == "imagenet"
        kernel, stride, padding = {"imagenet": (7, 2, 3), "cifar": (3, 1, 1), "patch": (4, 2, 1)}[
            stem
        ]
        self.conv1 = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, depth in enumerate(depths):
            planes = width * 2**stage
            layer = nn.Sequential()
            for i in range(depth):
                layer.append(block(inputs, planes, 2 if stage and not i else 1))
                inputs = planes * block.expansion
            self.add_module(f"layer{stage + 1}", layer)
        self.dim = inputs
        self.depth = len(depths)  # number of stages
        self.stride = stride * (2 if self.pool_stem else 1) * 2 ** (self.depth - 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_init and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.get_submodule(module.last_norm).weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images [B, C, S, S]."""
        return self.stages(x)[1]

    def stages(self, x: Tensor) -> tuple[list[Tensor], Features]:
        """Maps after each stage, [B, C, h, w], after their last ReLU, and the features."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        if self.pool_stem:
            x = F.max_pool2d(x, 3, 2, 1)
        maps = []
        for stage in range(self.depth):
            x = self.get_submodule(f"layer{stage + 1}")(x)
            maps.append(x)
        grid = (x.shape[2], x.shape[3])
        return maps, Features(x.mean((2, 3)), x.flatten(2).transpose(1, 2), grid)

    def blocks(self) -> Sequence[nn.Module]:
        """The residual blocks, first to last."""
        layers = [self.get_submodule(f"layer{stage + 1}") for stage in range(self.depth)]
        return [block for layer in layers for block in layer.children()]


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
