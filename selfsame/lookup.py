"""Classes by name: of a table, or a user's own as ``module:Class``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TypeVar

from selfsame.errors import UsageError, unknown

T = TypeVar("T")


def find_class(what: str, name: str, table: Mapping[str, str], base: type[T]) -> type[T]:
    """The class that a name of the table, or ``module:Class``, stands for.

    Args:
        what: it is, for people: "method".
        name: as the user wrote it.
        table: names, and where their classes are.
        base: what the class must derive from.

    Raises:
        UsageError: no such name, a module that cannot be imported, or another kind of thing.
    """
    target = table.get(name, name if ":" in name else None)
    if target is None:
        raise unknown(what, name, table)
    module, _, attribute = target.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"cannot load the {what} '{name}': {error}",
            tip="write module:Class, with the module on Python's path",
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        home = f"{base.__module__}.{base.__qualname__}"
        raise UsageError(f"'{name}' is no {base.__name__}", tip=f"name a subclass of {home}")
    return found
