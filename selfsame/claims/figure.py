"""The figure of a claim: one SVG that needs nothing else, inside a page or beside one.

Drawn from an entry of the ledger alone. Colours are those of the reports, in light and dark.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from selfsame.claims.claim import Bars, Claim, Curves, Picture, values
from selfsame.report.curves import Axis
from selfsame.report.html import Html, join, tag

WIDTH, HEIGHT = 300, 190  # of a panel's drawing, pixels
LEFT, TOP, GAP, BOTTOM = 48, 34, 26, 34  # around it
COLUMNS = 3  # panels in a row
LEGEND = 30  # height of the row above the panels
ROW = 20  # height of each further row of the legend
LETTER = 6.6  # pixels: the mean width of a letter at 12 px

STYLE = Html(
    ".f{--page:#fff;--ink:#1b1f23;--muted:#57606a;--line:#dfe3e6;"
    "--c0:#0a6a8f;--c1:#c2410c;--c2:#2f7d32;--c3:#a21caf;--c4:#8a5a00;--c5:#4f46e5}"
    "@media (prefers-color-scheme:dark){.f{--page:#14171a;--ink:#e7eaec;--muted:#9aa4ad;"
    "--line:#30363c;--c0:#5ec1ea;--c1:#ff9d5c;--c2:#7bd07f;--c3:#e58af0;--c4:#e0b050;--c5:#a5a0ff}}"
    ".f .page{fill:var(--page)}"
    '.f text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;'
    "fill:var(--muted)}"
    ".f .title{font-size:13px;font-weight:600;fill:var(--ink)}.f .value{fill:var(--ink)}"
    ".f .grid{stroke:var(--line)}.f .mark{stroke:var(--muted);stroke-dasharray:4 4}"
    ".f path{fill:none;stroke-width:1.75;stroke-linejoin:round;stroke-linecap:round}"
    ".f image{image-rendering:pixelated}.f .frame{fill:none;stroke:var(--line)}"
)


def figure(claim: Claim, record: Mapping[str, Any]) -> Html:
    """All panels of a claim, with a legend where curves need one."""
    arms = list(claim.arms)
    count = len(claim.panels)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    across, down = LEFT + WIDTH + GAP, TOP + HEIGHT + BOTTOM
    width = columns * across + GAP
    legend, top = _legend(arms, width)
    height = top + rows * down
    panels = []
    for position, panel in enumerate(claim.panels):
        row, column = divmod(position, columns)
        x, y = column * across + LEFT, top + row * down + TOP
        panels.append(tag("g", _panel(panel, record, arms), transform=f"translate({x} {y})"))
    return tag(
        "svg",
        tag("title", f"{claim.paper}: {claim.says}"),
        tag("style", STYLE),
        tag("rect", width=width, height=height, class_="page"),
        legend,
        *panels,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        role="img",
        class_="f",
    )


def _legend(arms: Sequence[str], width: float) -> tuple[Html, int]:
    """A coloured entry for each arm, in as many rows as they take, and the height of all."""
    entries, x, row = [], float(LEFT), 0
    for number, arm in enumerate(arms):
        long = 20 + LETTER * len(arm)
        if x > LEFT and x + long > width:
            x, row = float(LEFT), row + 1
        y = ROW * row
        entries.append(
            tag("rect", x=_n(x), y=y + 11, width=14, height=9, rx=2, style=_fill(number))
        )
        entries.append(tag("text", arm, x=_n(x + 20), y=y + 20, class_="value"))
        x += long + 24
    return join(entries), LEGEND + ROW * row


def _panel(panel: Curves | Bars | Picture, record: Mapping[str, Any], arms: Sequence[str]) -> Html:
    title = tag("text", panel.title, x=0, y=-14, class_="title")
    if isinstance(panel, Picture):
        return join(title, _picture(panel, record))
    if isinstance(panel, Curves):
        return join(title, _curves(panel, record, arms))
    return join(title, _bars(panel, record, arms))


def _picture(panel: Picture, record: Mapping[str, Any]) -> Html:
    side = HEIGHT
    return join(
        tag(
            "image",
            href=record["pictures"][panel.arm][panel.key],
            width=side,
            height=side,
        ),
        tag("rect", width=side, height=side, class_="frame"),
    )


def _curves(panel: Curves, record: Mapping[str, Any], arms: Sequence[str]) -> Html:
    """A line for each arm and seed; what is not finite breaks it."""
    lines = [
        (number, seed.get(panel.key, []))
        for number, arm in enumerate(arms)
        for seed in record["curves"][arm]
    ]
    fine = [(x, y) for _, points in lines for x, y in points if y is not None]
    if not fine:
        return tag("text", "not one value is finite", x=0, y=HEIGHT / 2)
    x = Axis.of([0.0, *(point[0] for point in fine)])
    y = _axis([*(point[1] for point in fine), *panel.lines.values()])
    paths = [
        tag("path", d=_path(points, x, y), style=f"stroke:var(--c{number % 6})")
        for number, points in lines
    ]
    labels = [
        tag("text", label, x=_n(WIDTH * at), y=HEIGHT + 16, text_anchor="middle")
        for at, label in x.ticks
    ]
    steps = tag("text", "steps", x=WIDTH, y=HEIGHT + 30, text_anchor="end")
    return join(_grid(y), _marks(panel.lines, y), paths, labels, steps)


def _bars(panel: Bars, record: Mapping[str, Any], arms: Sequence[str]) -> Html:
    """A bar of the mean for each arm, and a dot for each seed."""
    found = {
        number: [panel.scale * value for value in values(record, arm, panel.key)]
        for number, arm in enumerate(arms)
    }
    found = {number: [v for v in seeds if math.isfinite(v)] for number, seeds in found.items()}
    found = {number: seeds for number, seeds in found.items() if seeds}
    if not found:
        return tag("text", "not one value is finite", x=0, y=HEIGHT / 2)
    every = [value for seeds in found.values() for value in seeds]
    y = Axis.of([min(0.0, *every), 1.08 * max(0.0, *every, *panel.lines.values())])
    slot = WIDTH / len(found)
    bars = []
    for position, (number, seeds) in enumerate(found.items()):
        middle, mean = slot * (position + 0.5), statistics.fmean(seeds)
        half = min(0.3 * slot, 30)
        zero, top = HEIGHT * (1 - y.at(0.0)), HEIGHT * (1 - y.at(mean))
        bars.append(
            tag(
                "rect",
                x=_n(middle - half),
                y=_n(min(zero, top)),
                width=_n(2 * half),
                height=_n(abs(zero - top)),
                rx=2,
                style=f"{_fill(number)};fill-opacity:.35",
            )
        )
        bars += [
            tag(
                "circle",
                cx=_n(middle + (position_of - (len(seeds) - 1) / 2) * min(10, half)),
                cy=_n(HEIGHT * (1 - y.at(value))),
                r=3,
                style=_fill(number),
            )
            for position_of, value in enumerate(seeds)
        ]
        bars.append(
            tag(
                "text",
                f"{mean:.{panel.digits}f}",
                x=_n(middle),
                y=HEIGHT + 16,
                text_anchor="middle",
                class_="value",
            )
        )
    return join(_grid(y), _marks(panel.lines, y), bars)


def _axis(found: Sequence[float]) -> Axis:
    """The axis of the values with a little room, so that a line at an end is seen."""
    low, high = min(found), max(found)
    room = 0.04 * (high - low)
    return Axis.of([low - room, high + room])


def _grid(y: Axis) -> Html:
    marks = []
    for at, label in y.ticks:
        height = _n(HEIGHT * (1 - at))
        marks.append(tag("line", x1=0, x2=WIDTH, y1=height, y2=height, class_="grid"))
        marks.append(tag("text", label, x=-8, y=height, dy="0.35em", text_anchor="end"))
    return join(marks)


def _marks(lines: Mapping[str, float], y: Axis) -> Html:
    """Values to compare with, dashed and named."""
    marks = []
    for name, value in lines.items():
        height = HEIGHT * (1 - y.at(value))
        marks.append(tag("line", x1=0, x2=WIDTH, y1=_n(height), y2=_n(height), class_="mark"))
        y_text = _n(height - 4 if height > 14 else height + 13)
        marks.append(tag("text", name, x=WIDTH, y=y_text, text_anchor="end"))
    return join(marks)


def _path(points: Sequence[Sequence[float | None]], x: Axis, y: Axis) -> str:
    commands, pen = [], False
    for step, value in points:
        if value is None or step is None:
            pen = False
            continue
        at = f"{_n(WIDTH * x.at(step))} {_n(HEIGHT * (1 - y.at(value)))}"
        commands.append(f"L{at}" if pen else f"M{at}")
        pen = True
    return "".join(commands)


def _fill(number: int) -> str:
    return f"fill:var(--c{number % 6})"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
