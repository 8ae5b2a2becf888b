"""selfsame: learn representations from unlabelled images, and prove each step.

The verbs are ``pretrain``, ``distill``, ``evaluate``, ``embed``, ``export``, ``load`` and ``pack``;
they are imported on first use, so that ``import selfsame`` takes no time.
"""

import gc
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from selfsame.api import Result, distill, embed, evaluate, pack, pretrain
    from selfsame.encoder import Encoder, load
    from selfsame.formats.export import export
    from selfsame.recipe import Recipe

_HOMES = {
    "Encoder": "selfsame.encoder",
    "Recipe": "selfsame.recipe",
    "Result": "selfsame.api",
    "embed": "selfsame.api",
    "distill": "selfsame.api",
    "evaluate": "selfsame.api",
    "export": "selfsame.formats.export",
    "load": "selfsame.encoder",
    "pack": "selfsame.api",
    "pretrain": "selfsame.api",
}

__all__ = [
    "Encoder",
    "Recipe",
    "Result",
    "distill",
    "embed",
    "evaluate",
    "export",
    "load",
    "pack",
    "pretrain",
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
