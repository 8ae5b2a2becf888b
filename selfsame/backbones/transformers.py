"""Vision networks of Hugging Face transformers: a folder on this machine, or a name of its hub.

A folder is read and nothing else; a name is looked for in the local cache of the hub and downloaded
where it is not there. Code that comes with weights is never run.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfsame.errors import UsageError
from selfsame.types import Backbone, Features, Norm

PREFIX = "transformers/"

_HALF = Norm((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class HuggingFace(Backbone):
    """A network of transformers: the class token (or the pooled map) and the tokens.

    The class token is that of the last hidden state, after the last norm, rather than
    ``pooler_output``, whose layer is not part of every checkpoint.
    """

    can = frozenset({"tokens"})

    def __init__(self, module: nn.Module, example: Tensor, norm: Norm) -> None:
        super().__init__()
        self.module = module
        self.norm = norm
        takes = inspect.signature(module.forward).parameters
        # what its forward is given besides the images
        self.extra = (
            {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        )
        was_training = module.training
        module.eval()
        with torch.no_grad():
            features = self(example)
        module.train(was_training)
        assert features.tokens is not None
        self.dim = features.pooled.shape[1]
        self.stride = example.shape[-1] // max(1, features.grid[0])

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images [B, C, S, S]."""
        found = self.module(pixel_values=x, **self.extra)
        y = found.last_hidden_state
        if y.ndim == 4:  # a convolutional map
            pooled = found.pooler_output
            pooled = y.mean((2, 3)) if pooled is None else pooled.flatten(1)
            return Features(pooled, y.flatten(2).transpose(1, 2), (y.shape[2], y.shape[3]))
        config: Any = self.module.config
        side = getattr(config, "patch_size", None)
        if not isinstance(side, int):  # stages that merge patches, as in Swin: no class token
            rows = round(y.shape[1] ** 0.5)
            return Features(y.mean(1), y, (rows, y.shape[1] // rows))
        rows, columns = x.shape[-2] // side, x.shape[-1] // side
        prefix = y.shape[1] - rows * columns  # class token, register tokens
        if prefix < 0:
            rows, columns, prefix = round(y.shape[1] ** 0.5), round(y.shape[1] ** 0.5), 0
        pooled = y[:, 0] if prefix else y.mean(1)
        return Features(pooled, y[:, prefix:], (rows, columns))

    def blocks(self) -> Sequence[nn.Module]:
        """The longest list of modules inside: its layers, first to last."""
        lists = [list(part) for part in self.module.modules() if isinstance(part, nn.ModuleList)]
        return max(lists, key=len) if lists else list(self.module.children())


def build(
    name: str, image_size: int, channels: int, options: dict[str, Any], pretrained: bool
) -> Backbone:
    """Build ``transformers/NAME``, NAME a folder or a name of the hub, with or without weights.

    Raises:
        UsageError: transformers is missing, there is no such network, or it does not take images.
    """
    place = _place(name)
    config = _config(place)
    from transformers import AutoModel

    if getattr(config, "num_channels", 3) != channels:
        raise UsageError(
            f"{name} takes images of {getattr(config, 'num_channels', 3)} channels, not {channels}",
            tip="give it such images, or take a timm/ network, whose stem is adapted",
        )
    for key, value in options.items():
        setattr(config, key, value)
    try:
        module = (
            AutoModel.from_pretrained(place, config=config, **_access(place))
            if pretrained
            else AutoModel.from_config(config)
        )
        norm = _norm(place) if channels == 3 else Norm((0.5,) * channels, (0.5,) * channels)
        example = torch.zeros(1, channels, image_size, image_size)
        return HuggingFace(module.float(), example, norm)
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise UsageError(
            f"cannot use {name} as a backbone: {str(error).splitlines()[0]}",
            tip="it must be a network of transformers that takes pixel_values, like "
            "transformers/facebook/dinov2-small or a folder that save_pretrained wrote",
        ) from None


def own_size(name: str) -> int | None:
    """Side of the images that a network was made for, pixels; None where its config is silent."""
    size = getattr(_config(_place(name)), "image_size", None)
    return size if isinstance(size, int) else None


def _place(name: str) -> str:
    return name.removeprefix(PREFIX)


def _access(place: str) -> dict[str, bool]:
    return {"trust_remote_code": False, "local_files_only": Path(place).is_dir()}


def _config(place: str) -> Any:
    try:
        from transformers import AutoConfig
    except ImportError:
        raise UsageError(
            "networks of transformers need the package transformers",
            tip='pip install "selfsame[transformers]"',
        ) from None
    try:
        return AutoConfig.from_pretrained(place, **_access(place))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"transformers has no network at '{place}': {str(error).splitlines()[0]}",
            tip="name a folder with a config.json, or a network of the hub that you can reach",
        ) from None


def _norm(place: str) -> Norm:
    """Mean and deviation that the network's own image processor takes; halves where it has none."""
    from transformers.utils import cached_file

    file = cached_file(
        place,
        "preprocessor_config.json",
        local_files_only=Path(place).is_dir(),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return _HALF
    facts = json.loads(Path(file).read_text("utf-8"))
    if not facts.get("do_normalize", True):
        return Norm((0.0,) * 3, (1.0,) * 3)
    mean, std = facts.get("image_mean", _HALF.mean), facts.get("image_std", _HALF.std)
    return Norm(tuple(mean), tuple(std))
