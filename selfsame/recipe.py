"""A recipe: everything that changes the weights and nothing else, as TOML in and out.

Paths, devices, workers and logging are options of a run, not part of its recipe. The data set is
not part of it either: a run records the data's fingerprint next to it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, SerializeAsAny, ValidationError, model_validator

from selfsame.config import Config
from selfsame.errors import UsageError, nearest
from selfsame.optim import Optim
from selfsame.types import Norm
from selfsame.views.spec import View

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Precision = Literal["auto", "bf16", "fp32"]
Scale = Literal["small", "paper"]
SCALES: tuple[Scale, ...] = ("small", "paper")
Scalar = bool | int | float | str


SMALL_OPTIM = Optim(
    name="adamw", lr=2e-3, scaling="sqrt", reference_batch=64, weight_decay=0.05, warmup=5
)
"""Of the small recipes: with little data and time, many steps of 64 images count."""


class MethodConfig(Config):
    """Base of every ``Method.Config``. ``name`` is the method's name in the table of methods."""

    name: str

    def for_data(self, images: int, classes: Sequence[str] | None) -> MethodConfig:
        """The same with what it leaves to the data filled in: sizes of banks, of classifiers."""
        return self


class LoRA(Config):
    """Low-rank adaptation of a network: `selfsame.backbones.lora`."""

    r: Annotated[int, Field(ge=1)] = 8  # rank of the updates
    alpha: Annotated[float, Field(gt=0)] = 16.0  # they are scaled by alpha / r
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of what goes into them


class BackboneConfig(Config):
    """Which network. ``options`` go to its constructor, for example ``stem`` and ``width``."""

    name: str = "resnet50"
    options: dict[str, Scalar] = Field(default_factory=dict)
    pretrained: bool | None = None  # begin with the weights that timm or torchvision has
    init: str | None = None  # begin with these: a run, an exported encoder, a file of weights
    init_weights: str | None = None  # a hash of them; filled in
    lora: LoRA | None = None  # only low-rank updates learn


class Recipe(Config):
    """What a run learns with. Equal recipes on equal data give equal weights."""

    format: Literal[1] = 1
    source: str = ""  # paper, table, file
    deviations: tuple[str, ...] = ()  # every departure from the source
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    batch_size: Annotated[int, Field(ge=2)] = 256  # images an optimiser step, over all ranks
    epochs: Annotated[float, Field(gt=0)] | None = None  # exactly one of epochs and steps
    steps: Annotated[int, Field(ge=1)] | None = None
    precision: Precision = "auto"
    color: Literal["exact", "fast"] = "exact"  # colour jitter; ``views.render`` says more
    canvas: Annotated[int, Field(ge=8)] | None = None  # pixels; None: chosen from the data
    channels: Annotated[int, Field(ge=1)] = 3
    levels: tuple[float, float] | None = None  # raw values that are black and white beyond 8 bits
    norm: Norm | None = None  # of each channel; None: the network's own
    method: SerializeAsAny[MethodConfig]
    backbone: BackboneConfig = BackboneConfig()
    optim: Optim = Optim()
    views: Annotated[tuple[View, ...], Field(min_length=1)] = (View(count=2),)
    view_sets: Annotated[int, Field(ge=1)] | None = None  # epochs after which the same views come
    # again, so that what a teacher says of them can be kept; None: every epoch has its own

    @model_validator(mode="after")
    def _one_duration(self) -> Recipe:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a recipe states its length as either epochs or steps")
        return self

    @property
    def image_size(self) -> int:
        """Side of the largest view, pixels: what the encoder is evaluated at."""
        return max(view.size for view in self.views)

    def view_epoch(self, epoch: int) -> int:
        """The epoch whose views an epoch has."""
        return epoch if self.view_sets is None else epoch % self.view_sets

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole run."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * steps_per_epoch))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, None left out: what TOML can hold."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """The recipe as text; ``parse`` gives the same recipe back."""
        return tomli_w.dumps(self.to_dict())

    def hash(self) -> str:
        """Twelve hexadecimal digits that name the recipe."""
        return hashlib.sha256(self.to_toml().encode()).hexdigest()[:12]


def parse(values: Mapping[str, Any], method_config: type[MethodConfig]) -> Recipe:
    """Build a recipe from plain values, or raise ``UsageError`` naming each wrong key."""
    try:
        method = method_config.model_validate(values.get("method", {}))
        return Recipe.model_validate({**values, "method": method})
    except ValidationError as error:
        raise UsageError(_explain(error, method_config)) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The plain values of a recipe file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"no recipe file at {path}",
            tip="give 'small', 'paper' or a .toml file; `selfsame recipes simclr` prints one",
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None


def with_settings(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """Return the recipe with ``key=value`` settings applied, keys dotted, values as TOML.

    ``views.size=96`` sets a field of every view, ``views.0.size=96`` of the first. A value that
    is no TOML value is a string: ``optim.name=lars``.
    """
    values = recipe.to_dict()
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"'{setting}' is not a setting", tip="write --set key=value")
        _assign(values, key.strip(), toml_value(text.strip()), recipe)
    if any(s.partition("=")[0].strip() == "steps" for s in settings):
        values.pop("epochs", None)
    elif any(s.partition("=")[0].strip() == "epochs" for s in settings):
        values.pop("steps", None)
    return parse(values, type(recipe.method))


def lora_settings(text: str | None) -> list[str]:
    """Settings of ``r=8`` or ``r=8,alpha=32``, as people write them for LoRA.

    Raises:
        UsageError: a word that LoRA does not have.
    """
    found = []
    for part in filter(None, (text or "").split(",")):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or name not in LoRA.model_fields:
            raise UsageError(
                f"'{part.strip()}' is not a setting of LoRA", tip="--lora r=8 or r=8,alpha=16"
            )
        found.append(f"backbone.lora.{name}={value}")
    return found


def differences(a: Recipe, b: Recipe) -> list[str]:
    """Dotted keys at which two recipes differ, ``key: a -> b`` each."""
    left, right = flat(a.to_dict()), flat(b.to_dict())
    missing = "(unset)"
    return [
        f"{key}: {left.get(key, missing)} -> {right.get(key, missing)}"
        for key in sorted(left.keys() | right.keys())
        if left.get(key, missing) != right.get(key, missing)
    ]


def _assign(values: dict[str, Any], key: str, value: Any, recipe: Recipe) -> None:
    """Set one dotted key, refusing names that the recipe does not have."""
    if key.startswith("views.") and not key.split(".")[1].isdigit():
        for i in range(len(values["views"])):
            _assign(values, f"views.{i}.{key[len('views.') :]}", value, recipe)
        return
    *parents, last = key.split(".")
    node: Any = values
    config: Any = recipe
    for i, part in enumerate([*parents, last]):
        legal = _names(config)
        if legal is not None and part not in legal:
            where = ".".join(parents[:i])
            close = nearest(part, legal)
            raise UsageError(
                f"the recipe has no key '{key}'",
                tip=(f"did you mean '{'.'.join([*parents[:i], close])}'? " if close else "")
                + f"keys {f'of {where}' if where else 'at the top'}: {', '.join(legal)}",
            )
        if i == len(parents):
            break
        if isinstance(node, list):
            node, config = node[int(part)], config[int(part)]
        else:
            node = node.setdefault(part, {})
            config = getattr(config, part, None) if isinstance(config, Config) else None
    if isinstance(node, dict):
        node[last] = value
    else:
        raise UsageError(f"'{key}' names a whole table", tip="set one of its fields")


def _names(config: Any) -> list[str] | None:
    """Legal names below a node of a recipe; None where any name will do."""
    if isinstance(config, Config):
        return list(type(config).model_fields)
    if isinstance(config, tuple):
        return [str(i) for i in range(len(config))]
    return None


def toml_value(text: str) -> Any:
    """A value as TOML writes it; what is none is a string."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """A nested recipe as one dictionary with dotted keys; the views are numbered."""
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, list) and any(isinstance(v, dict) for v in values):
        items = {str(i): v for i, v in enumerate(values)}.items()
    else:
        return {prefix: values}
    found: dict[str, Any] = {}
    for key, value in items:
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _explain(error: ValidationError, method_config: type[MethodConfig]) -> str:
    """One line a wrong key: where, what, and the nearest legal name."""
    in_method = error.title == method_config.__name__
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in (*(["method"] if in_method else []), *item["loc"]))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            legal = list((method_config if in_method else Recipe).model_fields)
            close = nearest(str(item["loc"][-1]), legal)
            message = "no such key" + (f"; did you mean '{close}'?" if close else "")
        elif "input" in item and not isinstance(item["input"], dict | Config):
            message += f", not {item['input']!r}"
        lines.append(f"{where or 'recipe'}: {message}")
    return "the recipe is not valid: " + "; ".join(lines)
