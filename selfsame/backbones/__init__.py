"""Backbones by name: our own ResNets, any timm or torchvision network, any ``nn.Module``."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from selfsame.backbones import transformers
from selfsame.backbones.mixer import MIXERS, Mixer
from selfsame.backbones.resnet import DEPTHS, IMAGENET, ResNet
from selfsame.backbones.vit import SIZES, Replace, ViT, keep_tokens
from selfsame.errors import UsageError, unknown
from selfsame.types import Backbone, Features, Norm
from selfsame.views.spec import SMALL_IMAGE

__all__ = [
    "SMALL_IMAGE",
    "Backbone",
    "abilities",
    "build",
    "default_options",
    "layer_numbers",
    "library_of",
    "own_size",
    "pretrained_classifier",
    "shared_options",
    "standard_norm",
    "wrap",
]

Options = Mapping[str, bool | int | float | str]

TRANSFORMERS = transformers.PREFIX

LAYERS = ("layer1", "layer2", "layer3", "layer4")  # of torchvision's ResNets


def build(
    name: str | nn.Module,
    *,
    image_size: int,
    channels: int = 3,
    options: Options | None = None,
    pretrained: bool = False,
    norm: Norm | None = None,
) -> Backbone:
    """Build a backbone with its classifier removed.

    Args:
        name: a ResNet, ViT or Mixer of ours (``resnet18``, ``vit_small``), ``timm/NAME``,
            ``torchvision/NAME``, or a bare name, which is looked up in that order;
            ``transformers/NAME``; or a module of the user's own, which ``wrap`` takes.
        image_size: side of the largest view, pixels: networks with position embeddings need it.
        channels: channels of the input image.
        options: go to the network's constructor; ``stem="cifar"`` works for every ResNet.
        pretrained: load the library's weights (from its cache, or downloaded by it). The stem is
            adapted to other than three channels.
        norm: mean and deviation of each channel of the images, in the place of the network's own.

    Raises:
        UsageError: an unknown name or option, a network without a pooled feature, or weights that
            cannot be had.
    """
    if isinstance(name, nn.Module):
        network = wrap(name, torch.zeros(2, channels, image_size, image_size))
    else:
        network = _named(name, image_size, channels, dict(options or {}), pretrained)
    if norm is not None:
        network.norm = norm
    return network


def _named(
    name: str, image_size: int, channels: int, kwargs: dict[str, Any], pretrained: bool
) -> Backbone:
    if name.startswith(transformers.PREFIX):
        return transformers.build(name, image_size, channels, kwargs, pretrained)
    library, _, model = name.rpartition("/")
    if library not in ("", "timm", "torchvision"):
        raise unknown("library of networks", library, ["timm", "torchvision", "transformers"])
    if not library and not pretrained and model in DEPTHS:
        return _resnet(model, channels, kwargs)
    if not library and not pretrained and model in SIZES:
        return _vit(model, image_size, channels, kwargs)
    if not library and not pretrained and model in MIXERS:
        _check(name, kwargs, Mixer, {})
        return Mixer(name, image_size=image_size, channels=channels, **kwargs)
    if not library:
        library = library_of(model)
    stem = kwargs.pop("stem", None)
    make = _timm if library == "timm" else _torchvision
    try:
        module, norm = make(model, image_size, channels, pretrained, kwargs)
    except (TypeError, AssertionError) as error:
        raise UsageError(
            f"cannot build {library}/{model} with {kwargs or 'its defaults'}: {error}",
            tip="check backbone.options and the image size",
        ) from None
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise UsageError(
            f"cannot get the pretrained weights of {name}: {str(error).splitlines()[0]}",
            tip=f"{library} downloads them once; to evaluate, a local file will do: --weights FILE",
        ) from None
    if stem == "cifar":
        _cifar_stem(module, f"{library}/{model}")
    elif stem not in (None, "imagenet"):
        raise unknown("stem", str(stem), ["imagenet", "cifar"])
    example = torch.zeros(2, channels, image_size, image_size)
    if library == "timm" and _is_plain_vit(model):
        return WrappedViT(module, example, norm)
    return wrap(module, example, norm=norm)


def abilities(name: str) -> frozenset[str] | None:
    """What a named network may do beyond features, without building it; None if unknown."""
    library, _, model = name.rpartition("/")
    if not library and model in DEPTHS:
        return ResNet.can
    if not library and model in SIZES:
        return ViT.can
    if not library and model in MIXERS:
        return Mixer.can
    if library == "torchvision" or name.startswith(("module:", transformers.PREFIX)):
        return None
    return WrappedViT.can if _is_plain_vit(model) else frozenset({"tokens", "stages"})


def pretrained_classifier(name: str) -> nn.Linear | None:
    """The linear classifier that a library's pretrained network ends with; None where it has none.

    Raises:
        UsageError: an unknown name, or weights that cannot be had.
    """
    library, _, model = name.rpartition("/")
    if library == "transformers" or name.startswith(transformers.PREFIX):
        return None
    try:
        if (library or library_of(model)) == "timm":
            import timm

            whole: Any = timm.create_model(model, pretrained=True)
            found = whole.get_classifier()
        else:
            from torchvision.models import get_model

            module = get_model(model, weights="DEFAULT")
            found = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"cannot get the pretrained weights of {name}: {str(error).splitlines()[0]}",
            tip="the library downloads them once",
        ) from None
    return found if isinstance(found, nn.Linear) else None


def own_size(name: str) -> int | None:
    """Side of the images that a named network was made for, pixels; None where any will do."""
    return transformers.own_size(name) if name.startswith(transformers.PREFIX) else None


def default_options(name: str, image_size: int) -> dict[str, int | str]:
    """Options that images of this size ask for, and that the user may set.

    The CIFAR stem of a ResNet at 64 px or less; for our ViTs and Mixers the largest patch up to
    16 px that divides the image into 7 x 7 tokens or more.
    """
    library, _, model = name.rpartition("/")
    if image_size <= SMALL_IMAGE and model.split(".")[0] in DEPTHS:
        return {"stem": "cifar"}
    if not library and (model in SIZES or model in MIXERS):
        fitting = [p for p in (2, 4, 7, 8, 14) if image_size % p == 0 and image_size >= 7 * p]
        return {
            "patch": 16 if image_size % 16 == 0 and image_size >= 112 else max(fitting, default=1)
        }
    return {}


def shared_options(old: str, new: str, options: Options) -> dict[str, bool | int | float | str]:
    """What stays of a recipe's options when its network ``old`` gives way to ``new``.

    Among our ResNets, ViTs or Mixers, all but the sizes, which the name says; else nothing.
    """
    related = any(old in family and new in family for family in (DEPTHS, SIZES, MIXERS))
    sizes = ("width", "depth", "heads", "patch")
    return {key: value for key, value in options.items() if related and key not in sizes}


def layer_numbers(backbone: Backbone) -> dict[str, int]:
    """The layer of each parameter, for rates that decay towards the input.

    0 for what comes before the blocks, i + 1 for block i, one more for what follows, in the order
    of ``named_parameters``. For a ViT these are the numbers of MAE's and DINOv2's codes.
    """
    blocks = backbone.blocks()
    inside = {id(p): i for i, block in enumerate(blocks) for p in block.parameters()}
    found: dict[str, int] = {}
    after = False
    for name, parameter in backbone.named_parameters():
        after |= id(parameter) in inside
        found[name] = inside.get(id(parameter), len(blocks) if after else -1) + 1
    return found


def wrap(module: nn.Module, example: Tensor, *, norm: Norm = IMAGENET) -> Backbone:
    """Make a backbone of any module that maps [B, C, S, S] to features.

    The module may return pooled features [B, D], a map [B, D, h, w], tokens [B, N, D] or
    ``Features``. A module that is a ``Backbone`` already is returned as it is.

    Raises:
        UsageError: the module fails on ``example`` or returns something else.
    """
    if isinstance(module, Backbone):
        return module
    return Wrapped(module, example, _spread(norm, example.shape[1]))


class Wrapped(Backbone):
    """A network of another library, or the user's own, seen as a backbone."""

    def __init__(self, module: nn.Module, example: Tensor, norm: Norm) -> None:
        super().__init__()
        self.module = module
        self.norm = norm
        was_training = module.training
        module.eval()
        try:
            with torch.no_grad():
                features = self(example)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UsageError(
                f"{type(module).__name__} fails on images {list(example.shape)}: {error}",
                tip="it must map normalised images [B, C, S, S] to features [B, D]",
            ) from error
        module.train(was_training)
        self.dim = features.pooled.shape[1]
        self.stride = example.shape[-1] // features.grid[0] if features.tokens is not None else None
        can = {"tokens": features.tokens is not None, "stages": _has_stages(module)}
        self.can = frozenset(word for word, true in can.items() if true)

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images [B, C, S, S]."""
        module: Any = self.module
        if not hasattr(module, "forward_features"):  # timm's networks have it
            return _as_features(module(x))
        return self._ended(module.forward_features(x))

    def stages(self, x: Tensor) -> tuple[Sequence[Tensor], Features]:
        """Maps at the end of each stage: timm's intermediate ones, or those of ``layer1`` to 4."""
        module: Any = self.module
        if hasattr(module, "forward_intermediates"):
            y, maps = module.forward_intermediates(x)
            return maps, self._ended(y)
        maps = []
        hooks = [
            getattr(module, name).register_forward_hook(lambda _, __, y: maps.append(y))
            for name in LAYERS
        ]
        try:
            return maps, self(x)
        finally:
            for hook in hooks:
                hook.remove()

    def _ended(self, y: Tensor) -> Features:
        """Features of what timm's ``forward_features`` returned."""
        module: Any = self.module
        pooled = module.forward_head(y, pre_logits=True)
        if y.ndim == 4:
            if y.shape[1] != getattr(module, "num_features", y.shape[1]):
                y = y.permute(0, 3, 1, 2)  # channels last, as in Swin
            return Features(pooled, y.flatten(2).transpose(1, 2), (y.shape[2], y.shape[3]))
        tokens = y[:, getattr(module, "num_prefix_tokens", 0) :]
        return Features(pooled, tokens, _square(tokens))

    def blocks(self) -> Sequence[nn.Module]:
        """Repeated units, first to last, or the module's children where none are known."""
        for name in ("blocks", "layers", "stages", "features"):
            units = getattr(self.module, name, None)
            if isinstance(units, nn.Sequential | nn.ModuleList):
                return list(units)
        return list(self.module.children())


class WrappedViT(Wrapped):
    """A plain vision transformer of timm's, whose tokens can be dropped and replaced."""

    can = frozenset({"tokens", "keep", "replace", "layers", "stages"})

    def __init__(self, module: nn.Module, example: Tensor, norm: Norm) -> None:
        super().__init__(module, example, norm)
        self.can = WrappedViT.can

    def forward(
        self, x: Tensor, *, keep: Tensor | None = None, replace: Replace | None = None
    ) -> Features:
        """Features of normalised images [B, C, S, S]; ``keep`` and ``replace`` as in ``ViT``."""
        module: Any = self.module
        rows, columns = module.patch_embed.dynamic_feat_size(x.shape[-2:])
        x = module.patch_embed(x)  # [B, rows, columns, D] where it takes any size, else [B, N, D]
        if replace is not None:
            mask, token = replace
            x = torch.where(mask.reshape(*x.shape[:-1], 1), token.to(x.dtype), x)
        x = module._pos_embed(x)
        prefix = module.num_prefix_tokens
        if keep is not None:
            first = x[:, :prefix].repeat_interleave(len(keep) // len(x), dim=0)
            x = torch.cat([first, keep_tokens(x[:, prefix:], keep)], dim=1)
        x = module.norm_pre(x)
        for block in module.blocks:
            x = block(x)
        return self._features(x, (rows, columns))

    def stages(self, x: Tensor) -> tuple[Sequence[Tensor], Features]:
        """Tokens after each quarter of the blocks, as maps."""
        return Backbone.stages(self, x)

    def layers(self, x: Tensor, last: int) -> list[Features]:
        """Features after each of the ``last`` blocks, first to last, all through the last norm."""
        module: Any = self.module
        grid = module.patch_embed.dynamic_feat_size(x.shape[-2:])
        x = module.norm_pre(module._pos_embed(module.patch_embed(x)))
        found = []
        for i, block in enumerate(module.blocks):
            x = block(x)
            if i >= len(module.blocks) - last:
                found.append(self._features(x, grid))
        return found

    def _features(self, x: Tensor, grid: tuple[int, int]) -> Features:
        """Features of what a block returned."""
        module: Any = self.module
        x = module.norm(x)
        return Features(
            module.forward_head(x, pre_logits=True), x[:, module.num_prefix_tokens :], grid
        )


def _has_stages(module: nn.Module) -> bool:
    """Whether `Wrapped` finds the maps between the stages of a network."""
    return hasattr(module, "forward_intermediates") or all(hasattr(module, n) for n in LAYERS)


def _as_features(y: Any) -> Features:
    if isinstance(y, Features):
        return y
    if not isinstance(y, Tensor) or y.ndim not in (2, 3, 4):
        got = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"it returned {got}, not [B, D], [B, N, D] or [B, D, h, w]")
    if y.ndim == 2:
        return Features(y, None, (0, 0))
    if y.ndim == 4:
        return Features(y.mean((2, 3)), y.flatten(2).transpose(1, 2), (y.shape[2], y.shape[3]))
    return Features(y.mean(1), y, _square(y))


def _square(tokens: Tensor) -> tuple[int, int]:
    side = round(tokens.shape[1] ** 0.5)
    return (side, side) if side * side == tokens.shape[1] else (tokens.shape[1], 1)


def _resnet(name: str, channels: int, options: dict[str, Any]) -> Backbone:
    _check(name, options, ResNet, {"stem": ("imagenet", "cifar", "patch")})
    return ResNet(name, channels=channels, **options)


def _vit(name: str, image_size: int, channels: int, options: dict[str, Any]) -> Backbone:
    words = {
        "pool": ("cls", "mean"),
        "positions": ("learnt", "mae", "mocov3"),
        "init": ("normal", "xavier", "xavier_qkv"),
    }
    _check(name, options, ViT, words)
    return ViT(name, image_size=image_size, channels=channels, **options)


def _check(
    name: str,
    options: dict[str, Any],
    network: type[Backbone],
    words: Mapping[str, Sequence[str]],
) -> None:
    """Refuse options that a network of ours does not have, and words that they do not know."""
    own = ("self", "name", "image_size", "channels")
    legal = [key for key in inspect.signature(network.__init__).parameters if key not in own]
    for key, value in options.items():
        if key not in legal:
            raise unknown(f"option of {name}", key, legal)
        if key in words and value not in words[key]:
            raise unknown(key, str(value), words[key])


def _is_plain_vit(name: str) -> bool:
    from timm.models import is_model_in_modules

    return bool(is_model_in_modules(name.split(".")[0], {"vision_transformer", "deit"}))


def library_of(name: str) -> str:
    """The library that has a network of this name: "timm", else "torchvision".

    Raises:
        UsageError: neither has it.
    """
    import timm

    if timm.is_model(name):
        return "timm"
    from torchvision.models import list_models

    tv = list_models()
    if name in tv:
        return "torchvision"
    raise _unknown(name, [*DEPTHS, *SIZES, *MIXERS, *timm.list_models(), *tv])


def _unknown(name: str, legal: Iterable[str]) -> UsageError:
    error = unknown("backbone", name, legal)
    tip = str(error.tip).partition("legal values:")[0]
    error.tip = f"{tip}any name of timm or torchvision works, for example resnet50"
    return error


def _timm(
    name: str, size: int, channels: int, pretrained: bool, options: dict[str, Any]
) -> tuple[nn.Module, Norm]:
    import timm

    if not timm.is_model(name):
        raise _unknown(name, timm.list_models())
    common: dict[str, Any] = {
        "pretrained": pretrained,
        "num_classes": 0,
        "in_chans": channels,
        **options,
    }
    module: Any
    for extra in timm_sizes(size):
        try:
            module = timm.create_model(name, **common, **extra)
            break
        except TypeError:
            continue
    else:
        module = timm.create_model(name, **common)
    config = module.pretrained_cfg
    return module, _spread(Norm(tuple(config["mean"]), tuple(config["std"])), channels)


def timm_sizes(size: int) -> tuple[dict[str, Any], ...]:
    """What timm's constructors take for images of ``size`` pixels: the first that is accepted.

    Transformers want the image size, and many can then take others too; the rest take none.
    """
    return (
        {"img_size": size, "dynamic_img_size": True},
        {"img_size": size, "strict_img_size": False},
        {"img_size": size},
    )


def _torchvision(
    name: str, size: int, channels: int, pretrained: bool, options: dict[str, Any]
) -> tuple[nn.Module, Norm]:
    from torchvision.models import get_model, list_models

    if name not in list_models():
        raise _unknown(name, list_models())
    if name.startswith("vit_"):
        options = {"image_size": size, **options}
    module = get_model(name, weights="DEFAULT" if pretrained else None, **options)
    linears = [key for key, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not linears:
        raise UsageError(f"torchvision/{name} has no linear classifier to remove")
    parent, _, last = linears[-1].rpartition(".")
    setattr(module.get_submodule(parent), last, nn.Identity())
    if channels != 3:
        _adapt_stem(module, channels)
    return module, _spread(IMAGENET, channels)


def standard_norm(channels: int) -> Norm:
    """What a network normalises with where nothing else is known: ImageNet's mean, deviation."""
    return _spread(IMAGENET, channels)


def _spread(norm: Norm, channels: int) -> Norm:
    """The normalisation of RGB for other channels: its means, for each."""
    if len(norm.mean) == channels:
        return norm
    return Norm(*((sum(values) / len(values),) * channels for values in norm))


def _adapt_stem(module: nn.Module, channels: int) -> None:
    """Make the first convolution, of RGB, take other channels, in place.

    Its weights are repeated over the channels and scaled, so that the sum over them stays: gray in
    every channel gives what it gave (timm's rule, ``adapt_input_conv``).
    """
    stem = next(part for part in module.modules() if isinstance(part, nn.Conv2d))
    weight = stem.weight.detach()
    share = weight.sum(1, keepdim=True) / channels
    if channels > 1:
        repeated = weight.repeat(1, -(-channels // 3), 1, 1)[:, :channels]
        share = repeated * (3 / channels)
    stem.weight = nn.Parameter(share.contiguous())
    stem.in_channels = channels


def _cifar_stem(module: nn.Module, name: str) -> None:
    """Replace a 7x7 stride 2 stem and its max-pool by a 3x3 convolution (SimCLR, appendix B.9)."""
    stem, pool = getattr(module, "conv1", None), getattr(module, "maxpool", None)
    if not isinstance(stem, nn.Conv2d) or pool is None:
        raise UsageError(f"{name} has no ResNet stem to replace", tip="leave stem unset")
    new = nn.Conv2d(stem.in_channels, stem.out_channels, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    module.conv1, module.maxpool = new, nn.Identity()
