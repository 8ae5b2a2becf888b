"""Markup in which nothing that a user named can become markup."""

from __future__ import annotations

import html
import json
import math
from typing import Any

VOID = frozenset({"br", "img", "meta"})


class Html(str):
    """Markup that is safe as it stands. Every other string is text."""

    __slots__ = ()


def text(value: object) -> Html:
    """A value as text: escaped, unless it is markup already."""
    if isinstance(value, Html):
        return value
    # names of files need not be valid Unicode
    return Html(html.escape(str(value).encode("utf-8", "replace").decode("utf-8")))


def join(*children: object) -> Html:
    """Children one after the other; None and False are left out, lists are opened."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, list | tuple):
            parts.append(join(*child))
        elif child is not None and child is not False:
            parts.append(text(child))
    return Html("".join(parts))


def tag(element: str, *children: object, **attributes: object) -> Html:
    """An element. Attributes: ``class_`` is class, ``data_x`` is data-x, True is a bare name.

    >>> tag("p", "a < b", class_="note", hidden=True)
    '<p class="note" hidden>a &lt; b</p>'
    """
    written = [element]
    for key, value in attributes.items():
        name = key.rstrip("_").replace("_", "-")
        if value is True:
            written.append(name)
        elif value is not None and value is not False:
            written.append(f'{name}="{text(value)}"')
    start = f"<{' '.join(written)}>"
    return Html(start if element in VOID else f"{start}{join(*children)}</{element}>")


def data(value: Any, **attributes: object) -> Html:
    """An element that holds data for the page's script; values that are not finite become null."""
    written = json.dumps(_finite(value), separators=(",", ":"))
    # inside a script element only "<" could end it
    safe = Html(written.replace("<", "\\u003c"))
    return tag("script", safe, type="application/json", **attributes)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
