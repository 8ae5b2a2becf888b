"""selfsame: learn representations from unlabelled images, and prove each step.

The verbs are ``pretrain``, ``distill``, ``evaluate``, ``load``, ``export`` and ``pack``; ``embed``,
``search``, ``dedup``, ``outliers`` and ``select``; ``classify`` and ``predict``. They are imported
on first use, so that ``import selfsame`` takes no time.
"""

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from selfsame.api import Result, distill, evaluate, pack, pretrain
    from selfsame.classifier import classify, predict
    from selfsame.encoder import Encoder, load
    from selfsame.formats.export import export
    from selfsame.index import Index, dedup, embed, outliers, search, select
    from selfsame.recipe import Recipe

_HOMES = {
    "Encoder": "selfsame.encoder",
    "Index": "selfsame.index",
    "Recipe": "selfsame.recipe",
    "Result": "selfsame.api",
    "classify": "selfsame.classifier",
    "dedup": "selfsame.index",
    "distill": "selfsame.api",
    "embed": "selfsame.index",
    "evaluate": "selfsame.api",
    "export": "selfsame.formats.export",
    "load": "selfsame.encoder",
    "outliers": "selfsame.index",
    "pack": "selfsame.api",
    "predict": "selfsame.classifier",
    "pretrain": "selfsame.api",
    "search": "selfsame.index",
    "select": "selfsame.index",
}

__all__ = [
    "Encoder",
    "Index",
    "Recipe",
    "Result",
    "classify",
    "dedup",
    "distill",
    "embed",
    "evaluate",
    "export",
    "load",
    "outliers",
    "pack",
    "predict",
    "pretrain",
    "search",
    "select",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'selfsame' has no attribute '{name}'")
    collecting = gc.isenabled()
    gc.disable()  # imports of torch's size leave no garbage: a sixth of their time goes to looking
    try:
        return getattr(import_module(_HOMES[name]), name)
    finally:
        if collecting:
            gc.enable()


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
