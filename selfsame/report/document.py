"""What pages are made of: a document with its style and script, tabs, bars, parts that scroll."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from selfsame import __version__
from selfsame.report.curves import COLORS
from selfsame.report.html import Html, tag


def document(heading: str, body: Html) -> str:
    """A page with the style and the script of reports; it loads nothing."""
    folder = files("selfsame.report")
    style = (folder / "style.css").read_text("utf-8")
    script = (folder / "script.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # nothing is fetched, and no script runs but this one, whatever a file or class is called
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    policy += f"script-src 'sha256-{digest}'"
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", heading),
        tag("style", Html(style)),
    ]
    size = len(body.encode()) + len(style) + len(script) + 1000
    footer = tag(
        "footer",
        f"selfsame {__version__}. One file of {format_size(size)}; it loads nothing from anywhere.",
        class_="muted small",
    )
    content = tag("body", body, footer, tag("script", Html(script)))
    return f"<!doctype html>\n{tag('html', tag('head', *head), content, lang='en')}\n"


def format_size(size: int) -> str:
    """Bytes for people, from kB on."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"


def tabs(key: str, label: str, panels: Sequence[tuple[str, Html]]) -> Html:
    """One panel as it is; several with a row of tabs, which arrow keys change."""
    if len(panels) == 1:
        return panels[0][1]
    buttons = [
        tag(
            "button",
            name,
            type="button",
            role="tab",
            id=f"tab-{key}-{i}",
            aria_controls=f"panel-{key}-{i}",
            aria_selected="true" if i == 0 else "false",
            tabindex="0" if i == 0 else "-1",
        )
        for i, (name, _) in enumerate(panels)
    ]
    bodies = [
        tag(
            "div",
            body,
            role="tabpanel",
            id=f"panel-{key}-{i}",
            aria_labelledby=f"tab-{key}-{i}",
            hidden=i > 0,
        )
        for i, (_, body) in enumerate(panels)
    ]
    row = tag("div", *buttons, role="tablist", aria_label=label, class_="tabs")
    return tag("div", row, *bodies)


def scroll(label: str, table: Html) -> Html:
    """A part that is wider than a phone: it scrolls by itself, with the keyboard too."""
    return tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)


def swatch(i: int) -> Html:
    """The colour of a run or class."""
    dashed = " dashed" if i // COLORS % 2 else ""
    return tag("i", class_=f"swatch c{i % COLORS}{dashed}", aria_hidden="true")


def share(value: float, top: float) -> str:
    """A value as percent of the longest bar, for a style."""
    return f"{min(100.0, max(0.0, 100 * value / top)):.1f}"
