"""selfsame: learn representations from unlabelled images, and prove each step.

The verbs are ``pretrain``, ``evaluate``, ``embed`` and ``load``; they are imported on first use, so
that ``import selfsame`` takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from selfsame.api import Result, embed, evaluate, pretrain
    from selfsame.encoder import Encoder, load
    from selfsame.recipe import Recipe

_HOMES = {
    "Encoder": "selfsame.encoder",
    "Recipe": "selfsame.recipe",
    "Result": "selfsame.api",
    "embed": "selfsame.api",
    "evaluate": "selfsame.api",
    "load": "selfsame.encoder",
    "pretrain": "selfsame.api",
}

__all__ = ["Encoder", "Recipe", "Result", "embed", "evaluate", "load", "pretrain"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'selfsame' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
