"""The steps that ``step.py`` times beside ours: plain PyTorch, and lightly's modules.

Each function takes (batch, sizes of the views) and gives a function that does one step. Networks
are torchvision's and timm's, everything is float32 and as PyTorch lays it out, which is what such a
script does on a CPU. ``lightly_*`` follow the examples of lightly's documentation with the widths
of the papers; ``plain_*`` are the same models and losses without a library for them, in the form of
the authors' codes: views of one size go through the network together.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[], Any]

TEMPERATURE = 0.1
PROTOTYPES, HIDDEN, BOTTLENECK = 65536, 2048, 256  # of DINO's head
PATCH, MASKED = 16, 0.75
DECODER = {"width": 512, "depth": 8, "heads": 16}  # of MAE


def images(batch: int, sizes: Sequence[int]) -> list[Tensor]:
    """Views of noise: one of each size."""
    return [torch.randn(batch, 3, size, size) for size in sizes]


def resnet(name: str, size: int) -> tuple[nn.Module, int]:
    """A torchvision ResNet without its classifier, with the CIFAR stem for small images."""
    import torchvision

    network = getattr(torchvision.models, name)()
    if size <= 64:
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    width = network.fc.in_features
    network.fc = nn.Identity()
    return network, width


def vit(name: str) -> nn.Module:
    """A timm ViT that takes images of any size."""
    import timm

    network: nn.Module = timm.create_model(
        f"{name}_patch16_224", num_classes=0, dynamic_img_size=True
    )
    return network


def plain_simclr(name: str, batch: int, sizes: Sequence[int]) -> Step:
    network, width = resnet(name, sizes[0])
    head = nn.Sequential(
        nn.Linear(width, width, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(inplace=True),
        nn.Linear(width, 128),
    )
    model = nn.Sequential(network, head)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x = torch.cat(images(batch, sizes))
    itself = torch.eye(2 * batch, dtype=torch.bool)
    positive = torch.arange(2 * batch).roll(batch)

    def step() -> None:
        z = F.normalize(model(x), dim=1)
        loss = F.cross_entropy((z @ z.T / TEMPERATURE).masked_fill(itself, -torch.inf), positive)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def lightly_simclr(name: str, batch: int, sizes: Sequence[int]) -> Step:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    network, width = resnet(name, sizes[0])
    model = nn.Sequential(network, SimCLRProjectionHead(width, width, 128))
    criterion = NTXentLoss(temperature=TEMPERATURE)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    x0, x1 = images(batch, sizes)

    def step() -> None:
        loss = criterion(model(x0), model(x1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class PlainDINOHead(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, BOTTLENECK),
        )
        last = nn.Linear(BOTTLENECK, PROTOTYPES, bias=False)
        self.last_layer = nn.utils.parametrizations.weight_norm(last)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))  # type: ignore[no-any-return]


def plain_dino(name: str, batch: int, sizes: Sequence[int]) -> Step:
    network = vit(name)
    head = PlainDINOHead(network.num_features)  # type: ignore[arg-type]
    teacher = nn.ModuleList([network, PlainDINOHead(network.num_features)])  # type: ignore[arg-type]
    teacher = copy.deepcopy(teacher).requires_grad_(False)
    student = nn.ModuleList([network, head])
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-5)
    views = images(batch, sizes)
    crops = [torch.cat([x for x in views if x.shape[-1] == side]) for side in sorted(set(sizes))]
    crops.reverse()  # the global ones first
    center = torch.zeros(PROTOTYPES)

    def step() -> None:
        out = head(torch.cat([network(x) for x in crops])) / 0.1
        with torch.no_grad():
            target = teacher[1](teacher[0](crops[0]))
            p = ((target - center) / 0.04).softmax(-1).chunk(2)
        log_q = out.log_softmax(-1).chunk(len(sizes))
        pairs = [(g, v) for g in range(2) for v in range(len(sizes)) if g != v]
        loss = sum(-(p[g] * log_q[v]).sum(-1).mean() for g, v in pairs) / len(pairs)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                ours.mul_(0.996).add_(theirs, alpha=0.004)
            center.mul_(0.9).add_(target.mean(0), alpha=0.1)

    return step


def lightly_dino(name: str, batch: int, sizes: Sequence[int]) -> Step:
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    backbone = vit(name)
    width = backbone.num_features
    head = DINOProjectionHead(
        width, HIDDEN, BOTTLENECK, PROTOTYPES, freeze_last_layer=1, norm_last_layer=False
    )
    teacher_backbone = copy.deepcopy(backbone)
    teacher_head = DINOProjectionHead(width, HIDDEN, BOTTLENECK, PROTOTYPES)
    deactivate_requires_grad(teacher_backbone)
    deactivate_requires_grad(teacher_head)
    criterion = DINOLoss(output_dim=PROTOTYPES, warmup_teacher_temp_epochs=5)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=1e-5)
    views = images(batch, sizes)

    def step() -> None:
        update_momentum(backbone, teacher_backbone, m=0.996)
        update_momentum(head, teacher_head, m=0.996)
        teacher = [teacher_head(teacher_backbone(x).flatten(start_dim=1)) for x in views[:2]]
        student = [head(backbone(x).flatten(start_dim=1)) for x in views]
        loss = criterion(teacher, student, epoch=5)
        loss.backward()
        head.cancel_last_layer_gradients(current_epoch=5)
        optimizer.step()
        optimizer.zero_grad()

    return step


def plain_mae(name: str, batch: int, sizes: Sequence[int]) -> Step:
    from timm.models.vision_transformer import Block

    network: Any = vit(name)
    width, tokens = network.num_features, (sizes[0] // PATCH) ** 2
    network.pos_embed.requires_grad_(False)

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            dim = DECODER["width"]
            self.embed = nn.Linear(width, dim)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
            self.positions = nn.Parameter(torch.randn(1, 1 + tokens, dim), requires_grad=False)
            blocks = (Block(dim, DECODER["heads"], qkv_bias=True) for _ in range(DECODER["depth"]))
            self.blocks = nn.Sequential(*blocks)
            self.norm = nn.LayerNorm(dim)
            self.predict = nn.Linear(dim, PATCH**2 * 3)

        def forward(self, x: Tensor, restore: Tensor) -> Tensor:
            x = self.embed(x)
            hidden = self.mask_token.expand(len(x), 1 + tokens - x.shape[1], -1)
            y = torch.cat([x[:, 1:], hidden], dim=1)
            y = y.gather(1, restore[..., None].expand(-1, -1, y.shape[-1]))
            y = self.blocks(torch.cat([x[:, :1], y], dim=1) + self.positions)
            return self.predict(self.norm(y))[:, 1:]  # type: ignore[no-any-return]

    decoder = Decoder()
    parameters = [p for p in [*network.parameters(), *decoder.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, betas=(0.9, 0.95))
    (x,) = images(batch, sizes)

    def step() -> None:
        shuffle = torch.rand(batch, tokens).argsort(1)
        restore, keep = shuffle.argsort(1), shuffle[:, : int(tokens * (1 - MASKED))]
        y = network.patch_embed(x).flatten(1, 2) + network.pos_embed[:, 1:]
        y = y.gather(1, keep[..., None].expand(-1, -1, width))
        first = (network.cls_token + network.pos_embed[:, :1]).expand(batch, -1, -1)
        latent = network.norm(network.blocks(torch.cat([first, y], dim=1)))
        side = sizes[0] // PATCH
        target = x.reshape(batch, 3, side, PATCH, side, PATCH)
        target = target.permute(0, 2, 4, 3, 5, 1).reshape(batch, tokens, -1)
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        error = (decoder(latent, restore) - (target - mean) / (variance + 1e-6).sqrt()).square()
        mask = (restore >= keep.shape[1]).float()
        loss = (error.mean(-1) * mask).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def lightly_mae(name: str, batch: int, sizes: Sequence[int]) -> Step:
    import timm
    from lightly.models import utils
    from lightly.models.modules import (
        MaskedVisionTransformerDecoderTIMM,
        MaskedVisionTransformerTIMM,
    )

    encoder = timm.create_model(f"{name}_patch16_224", num_classes=0)
    backbone = MaskedVisionTransformerTIMM(vit=encoder)
    length = backbone.sequence_length
    embed = nn.Linear(encoder.embed_dim, DECODER["width"])
    decoder = MaskedVisionTransformerDecoderTIMM(
        num_patches=encoder.patch_embed.num_patches,
        embed_dim=DECODER["width"],
        depth=DECODER["depth"],
        num_heads=DECODER["heads"],
    )
    predict = nn.Linear(DECODER["width"], PATCH**2 * 3)
    model = nn.ModuleList([backbone, embed, decoder, predict])
    criterion = nn.MSELoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95))
    (x,) = images(batch, sizes)

    def step() -> None:
        keep, mask = utils.random_token_mask(size=(batch, length), mask_ratio=MASKED)
        encoded = embed(backbone.encode(images=x, idx_keep=keep))
        masked = utils.repeat_token(decoder.mask_token, (batch, length))
        masked = utils.set_at_index(masked, keep, encoded.type_as(masked))
        prediction = predict(utils.get_at_index(decoder(masked), mask))
        target = utils.get_at_index(utils.patchify(x, PATCH), mask - 1)
        loss = criterion(prediction, target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


PLAIN = {"simclr": plain_simclr, "dino": plain_dino, "mae": plain_mae}
LIGHTLY = {"simclr": lightly_simclr, "dino": lightly_dino, "mae": lightly_mae}
