"""One file a paper, and one table of them. A user's own method needs no table: ``module:Class``."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from selfsame.errors import UsageError, unknown
from selfsame.lookup import find_class
from selfsame.recipe import SCALES, Recipe, parse, read_toml
from selfsame.types import Method

METHODS: dict[str, str] = {
    "simclr": "selfsame.methods.simclr:SimCLR",
    "moco": "selfsame.methods.moco:MoCo",
    "mocov3": "selfsame.methods.mocov3:MoCoV3",
    "swav": "selfsame.methods.swav:SwAV",
    "deepcluster": "selfsame.methods.deepcluster:DeepCluster",
    "deepclusterv2": "selfsame.methods.deepclusterv2:DeepClusterV2",
    "byol": "selfsame.methods.byol:BYOL",
    "simsiam": "selfsame.methods.simsiam:SimSiam",
    "barlow_twins": "selfsame.methods.barlow_twins:BarlowTwins",
    "vicreg": "selfsame.methods.vicreg:VICReg",
    "mae": "selfsame.methods.mae:MAE",
    "dino": "selfsame.methods.dino:DINO",
    "ibot": "selfsame.methods.ibot:IBOT",
    "dinov2": "selfsame.methods.dinov2:DINOv2",
    "data2vec2": "selfsame.methods.data2vec2:Data2Vec2",
    "supervised": "selfsame.methods.supervised:Supervised",
    "distill": "selfsame.methods.distill:Distill",
    "seed": "selfsame.methods.seed:SEED",
    "kd": "selfsame.methods.kd:KD",
    "dkd": "selfsame.methods.dkd:DKD",
    "fitnets": "selfsame.methods.fitnets:FitNets",
    "attention_transfer": "selfsame.methods.attention_transfer:AttentionTransfer",
    "rkd": "selfsame.methods.rkd:RKD",
    "crd": "selfsame.methods.crd:CRD",
    "deit": "selfsame.methods.deit:DeiT",
}


FAST_COLORS = "colour jitter as one matrix for each view (color=exact: operation by operation)"


def find(name: str) -> type[Method]:
    """The class of a method, by name or as ``module:Class``.

    Raises:
        UsageError: no such method, or a module that cannot be imported.
    """
    return find_class("method", name, METHODS, Method)


def module_of(name: str) -> ModuleType:
    """The module that holds a method: its recipes and citation."""
    return sys.modules[find(name).__module__]


def recipe(name: str, scale: str, size: int = 224) -> Recipe:
    """The recipe of a method at a scale, for images of ``size`` pixels.

    Raises:
        UsageError: the method's module has no ``recipe`` function, or none at that scale.
    """
    if scale not in SCALES:
        raise unknown("recipe", scale, SCALES)
    make = getattr(module_of(name), "recipe", None)
    if make is None:
        raise UsageError(
            f"the method '{name}' has no recipe",
            tip="define recipe(scale, size) in its module, or give --recipe FILE.toml",
        )
    made: Recipe = make(scale, size)
    if scale == "small" and any(view.jitter for view in made.views):
        deviations = (*made.deviations, FAST_COLORS)
        made = made.model_copy(update={"color": "fast", "deviations": deviations})
    if made.method.name != name:
        made = made.model_copy(update={"method": made.method.model_copy(update={"name": name})})
    return made


def read_recipe(path: Path) -> Recipe:
    """The recipe in a TOML file; the method's own settings are checked too."""
    return from_dict(read_toml(path), where=str(path))


def from_dict(values: dict[str, Any], where: str = "the recipe") -> Recipe:
    """A recipe from plain values, its method looked up by name."""
    name = values.get("method", {}).get("name")
    if not isinstance(name, str):
        raise UsageError(f"{where} names no method", tip='add name = "simclr" under [method]')
    return parse(values, find(name).Config)
