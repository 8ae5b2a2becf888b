"""Formats that other libraries load: one file a format, and one table of them.

Each is written to a temporary place, read back by the library it is for, in a process of its own
and by the very lines that the user is told, compared on real images, and then moved into place.
A format of one's own needs no table: ``module:Class``.
"""

from __future__ import annotations

from selfsame.encoder import Encoder
from selfsame.errors import UsageError
from selfsame.formats.format import Format, Reading
from selfsame.lookup import find_class

__all__ = ["FORMATS", "Format", "Reading", "check_network", "find"]

FORMATS: dict[str, str] = {
    "safetensors": "selfsame.formats.safetensors:Safetensors",
    "timm": "selfsame.formats.timm:Timm",
    "torchvision": "selfsame.formats.torchvision:Torchvision",
    "transformers": "selfsame.formats.transformers:Transformers",
    "onnx": "selfsame.formats.onnx:Onnx",
    "torch-export": "selfsame.formats.torch_export:TorchExport",
    "torchscript": "selfsame.formats.torchscript:TorchScript",
}


def find(name: str) -> type[Format]:
    """The class of a format, by name or as ``module:Class``.

    Raises:
        UsageError: no such format, or a module that cannot be imported.
    """
    return find_class("format", name, FORMATS, Format)


def check_network(kind: Format, encoder: Encoder) -> None:
    """Raise a UsageError where a format cannot express the network; it names those that can."""
    missing = kind.lacks(encoder)
    if missing is not None:
        able = [name for name in FORMATS if find(name)().lacks(encoder) is None]
        raise UsageError(
            f"{kind.library} has no {missing}", tip=f"these formats can write it: {', '.join(able)}"
        )
