"""torchvision: a state dict for ``torchvision.models``, and the lines that build its network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfsame.backbones.resnet import DEPTHS, ResNet
from selfsame.encoder import Encoder
from selfsame.formats.format import Format, Reading, linear_head, of_library, tensors, title
from selfsame.formats.networks import resnet_lacks, resnet_shape
from selfsame.formats.preprocess import Preprocess

FILE = "model.pth"


class Torchvision(Format):
    """``model.pth``, a state dict that ``torch.load`` reads with ``weights_only=True``.

    Stems and channels that torchvision has no argument for are set on the network that it built.
    """

    name = "torchvision"
    library = "torchvision"
    needs = ("torchvision",)

    def lacks(self, encoder: Encoder) -> str | None:
        """Other widths of ResNets, our ViTs, and networks of others."""
        if isinstance(encoder.backbone, ResNet):
            return resnet_lacks(encoder.backbone, stems=("imagenet", "cifar", "patch"))
        theirs = of_library(encoder, "torchvision")
        return None if theirs else f"network like {title(encoder)}"

    def write(self, encoder: Encoder, folder: Path) -> Reading:
        """Write the state dict under torchvision's keys."""
        network, pre = encoder.backbone, Preprocess.of(encoder)
        head, notes = linear_head(encoder)
        if isinstance(network, ResNet):
            build, last, state = _resnet(network)
        else:
            build, last, state = _own(encoder)
        if head is None:
            end = f"model.{_path(last)} = torch.nn.Identity()"
        else:
            end = f"model.{_path(last)} = torch.nn.Linear({head.in_features}, {head.out_features})"
            state |= {f"{last}.{key}": value for key, value in tensors(head.state_dict()).items()}
        torch.save(state, folder / FILE)
        load = [
            "import torch, torchvision",
            *build,
            end,
            f'model.eval().load_state_dict(torch.load("{{at}}/{FILE}", weights_only=True))',
        ]
        if isinstance(network, ResNet):
            stage = f"layer{network.depth}"
            extractor = "from torchvision.models.feature_extraction import create_feature_extractor"
            load.insert(1, extractor)
            load.append(f'features = create_feature_extractor(model, ["{stage}"])')
            use = [
                f'tokens = features(x)["{stage}"].flatten(2).transpose(1, 2)',
                "pooled = tokens.mean(1)",
            ]
            scores, outputs = f"model.{_path(last)}(pooled)", ["pooled", "tokens"]
        else:
            if head is not None:
                load.append(f"head, model.{_path(last)} = model.{_path(last)}, torch.nn.Identity()")
            use, scores, outputs = ["pooled = model(x)"], "head(pooled)", ["pooled"]
        if head is not None:
            use, outputs = [*use, f"scores = {scores}"], [*outputs, "scores"]
        transform = pre.torchvision()
        return Reading(load, use, outputs, transform, transformer="torchvision", notes=notes)


def _resnet(network: ResNet) -> tuple[list[str], str, dict[str, Tensor]]:
    shape = resnet_shape(network)
    exact = [n for n, own in DEPTHS.items() if own == (shape.bottleneck, shape.depths, 64)]
    if exact and exact[0] != "resnet10":
        build = [f"model = torchvision.models.{exact[0]}()"]
    else:
        block = "Bottleneck" if shape.bottleneck else "BasicBlock"
        build = [
            f"from torchvision.models.resnet import {block}, ResNet",
            f"model = ResNet({block}, {list(shape.depths)})",
        ]
    if shape.stem != "imagenet" or shape.channels != 3:
        build.append(f"model.conv1 = {_convolution(network.conv1)}")
    if shape.stem != "imagenet":
        build.append("model.maxpool = torch.nn.Identity()")
    return build, "fc", tensors(network.state_dict())


def _own(encoder: Encoder) -> tuple[list[str], str, dict[str, Tensor]]:
    """A network that torchvision built for us, with the changes that we made."""
    assert encoder.config is not None
    name, options = encoder.config.name.rpartition("/")[2], dict(encoder.config.options)
    stem = options.pop("stem", None)
    if name.startswith("vit_"):
        options = {"image_size": encoder.image_size, **options}
    words = "".join(f", {key}={value!r}" for key, value in options.items())
    build = [f'model = torchvision.models.get_model("{name}"{words})']
    module = encoder.backbone.module
    assert isinstance(module, nn.Module)
    first = next(key for key, part in module.named_modules() if isinstance(part, nn.Conv2d))
    if stem == "cifar" or encoder.channels != 3:
        convolution = module.get_submodule(first)
        assert isinstance(convolution, nn.Conv2d)
        build.append(f"model.{_path(first)} = {_convolution(convolution)}")
    if stem == "cifar":
        build.append("model.maxpool = torch.nn.Identity()")
    return build, _last_linear(name, options), tensors(module.state_dict())


def _last_linear(name: str, options: Mapping[str, Any]) -> str:
    """The name of the classifier that we removed."""
    from torchvision.models import get_model

    with torch.device("meta"):
        whole = get_model(name, weights=None, **options)
    names: list[str] = [k for k, part in whole.named_modules() if isinstance(part, nn.Linear)]
    return names[-1]


def _convolution(part: nn.Conv2d) -> str:
    bias = "" if part.bias is not None else ", bias=False"
    sizes = f"{part.kernel_size[0]}, {part.stride[0]}, {part.padding[0]}"
    return f"torch.nn.Conv2d({part.in_channels}, {part.out_channels}, {sizes}{bias})"


def _path(name: str) -> str:
    """A submodule's name as Python: ``classifier.3`` is ``classifier[3]``."""
    parts = [f"[{part}]" if part.isdigit() else f".{part}" for part in name.split(".")]
    return "".join(parts).removeprefix(".")
