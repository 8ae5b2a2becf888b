"""Curves as inline SVG, with labels in HTML so that they keep their size on a phone.

The lines stretch with the page (``preserveAspectRatio="none"``), their width does not. The points
are in the page a second time, as data: the script reads them out under the pointer or the arrows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from selfsame.report.html import Html, data, join, tag
from selfsame.report.record import number

Point = tuple[float, float]

POINTS = 240  # of a line; beyond, each stretch keeps its lowest and its highest
COLORS = 10  # of the style sheet; then lines are dashed
WIDTH, HEIGHT = 1000.0, 400.0  # of the drawing, in its own units
SPAN = 0.2  # of the largest value: the least that an axis shows, or noise would look like a trend
FEW = 12  # points of a line up to which each of them is marked
LOGARITHMIC = 50.0  # ratio of the largest to the median value from which an axis is logarithmic


class Line(NamedTuple):
    """What one run says of a quantity."""

    run: int
    points: Sequence[Point]  # (step, value), by step; a value may be not finite


def chart(title: str, lines: Sequence[Line], names: Sequence[str], note: str = "") -> Html:
    """A figure of one quantity over steps.

    Args:
        title: what it is.
        lines: one a run; those without points are left out.
        names: of all runs.
        note: a sentence below.
    """
    lines = [Line(run, _thin(points)) for run, points in lines if points]
    finite = [p for line in lines for p in line.points if math.isfinite(p[1])]
    lost = sum(len(line.points) for line in lines) - len(finite)
    if lost:
        note = join(f"{lost} of its values are not finite and not drawn. ", note)
    if not finite:
        nothing = "Not one value is finite." if lost else "Nothing was recorded."
        return tag("figure", tag("h3", title), tag("p", nothing, class_="muted"), class_="chart")
    x = Axis.of([0.0, *(p[0] for p in finite)])
    y = Axis.of([p[1] for p in finite], logarithmic=True, span=SPAN)
    paths = [
        tag(
            "path",
            d=_path(line.points, x, y),
            class_=_look(line),
            data_run=line.run,
        )
        for line in lines
    ]
    paths += [
        tag("path", d=_dots(line.points, x, y), class_=f"{_look(line)} dots", data_run=line.run)
        for line in lines
        if 1 < len(line.points) <= FEW
    ]
    grid = [
        tag("line", x1=0, x2=WIDTH, y1=_n(HEIGHT * (1 - at)), y2=_n(HEIGHT * (1 - at)))
        for at, _ in y.ticks
    ]
    drawing = tag(
        "svg",
        tag("g", *grid, class_="grid"),
        *paths,
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        preserveAspectRatio="none",
        aria_hidden="true",
    )
    values = {
        "x": [x.low, x.high],
        "y": [y.low, y.high],
        "log": y.logarithmic,
        "lines": [
            {"run": r, "name": names[r], "points": [[s, _short(v)] for s, v in points]}
            for r, points in lines
        ],
    }
    said = "; ".join(f"{names[r]}: {_summary(p)}" for r, p in lines[:3])
    more = f"; and {len(lines) - 3} more runs" if len(lines) > 3 else ""
    plot = tag(
        "div",
        drawing,
        tag("div", class_="cursor", hidden=True),
        tag("div", class_="tip", hidden=True),
        class_="plot",
        tabindex="0",
        role="img",
        aria_label=f"{title} over steps. {said}{more}. Arrow keys read it out.",
    )
    return tag(
        "figure",
        tag("h3", title, tag("small", " logarithmic") if y.logarithmic else None),
        tag(
            "div",
            tag("div", [_label(at, label, "bottom") for at, label in y.ticks], class_="ys"),
            plot,
            tag("div", [_label(at, label, "left") for at, label in x.ticks], class_="xs"),
            class_="axes",
        ),
        data(values),
        tag("p", note, class_="muted small") if note else None,
        class_="chart",
    )


def _look(line: Line) -> str:
    """The classes of a line: its colour, and whether it is dashed or a lone point."""
    words = [f"c{line.run % COLORS}"]
    if line.run // COLORS % 2:
        words.append("dashed")
    if len(line.points) == 1:
        words.append("lone")
    return " ".join(words)


class Axis(NamedTuple):
    """A range of values and the marks on it."""

    low: float
    high: float
    logarithmic: bool
    ticks: list[tuple[float, str]]  # position in 0..1 and label

    @classmethod
    def of(cls, values: Sequence[float], *, logarithmic: bool = False, span: float = 0.0) -> Axis:
        """The axis of finite values; logarithmic only where they ask for it.

        It shows at least a share ``span`` of the largest value around their middle.
        """
        low, high = min(values), max(values)
        middle = sorted(values)[len(values) // 2]
        if logarithmic and low > 0 and high / middle > LOGARITHMIC:
            ends = math.floor(math.log10(low)), math.ceil(math.log10(high))
            every = max(1, math.ceil((ends[1] - ends[0]) / 5))
            marks = [10.0**e for e in range(ends[0], ends[1] + 1, every)]
            axis = cls(10.0 ** ends[0], 10.0 ** ends[1], True, [])
            return axis._replace(ticks=[(axis.at(mark), f"{mark:g}") for mark in marks])
        if low == high:
            low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
        missing = span * max(abs(low), abs(high)) - (high - low)
        if missing > 0:
            low, high = low - missing / 2, high + missing / 2
        unit = _unit((high - low) / 5)
        first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
        axis = cls(low, high, False, [])
        marks = [k * unit for k in range(first, last + 1)]
        digits = max(0, -math.floor(math.log10(unit)))
        big = max(abs(low), abs(high))
        small = 0 < big < 1e-3
        labels = [f"{m:.0e}" if small else f"{m:,.{digits}f}" for m in marks]
        if len(set(labels)) < len(labels):
            labels = [f"{m:.2e}" for m in marks]
        return axis._replace(ticks=[(axis.at(m), s) for m, s in zip(marks, labels, strict=True)])

    def at(self, value: float) -> float:
        """Where a value is, from 0 to 1."""
        if self.logarithmic:
            span = math.log(self.high / self.low)
            return math.log(max(value, self.low) / self.low) / span
        return (value - self.low) / (self.high - self.low)


def _unit(rough: float) -> float:
    """The next 1, 2, or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * k for k in (1, 2, 5, 10) if power * k >= rough * 0.999)


def _thin(points: Sequence[Point]) -> Sequence[Point]:
    """At most about ``POINTS`` points: the first, the last, and of each stretch the extremes."""
    if len(points) <= POINTS:
        return points
    size = math.ceil(2 * len(points) / POINTS)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        odd = [i for i in stretch if not math.isfinite(points[i][1])]
        fine = [i for i in stretch if math.isfinite(points[i][1])]
        kept |= {*odd[:1]}
        if fine:
            kept |= {min(fine, key=lambda i: points[i][1]), max(fine, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def _path(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """Commands of an SVG path, broken where a value is not finite; a lone point is a dash."""
    commands, pen = [], False
    for step, value in points:
        if not math.isfinite(value):
            pen = False
            continue
        at = f"{_n(WIDTH * x.at(step))} {_n(HEIGHT * (1 - y.at(value)))}"
        commands.append(f"L{at}" if pen else f"M{at}l.01 0")
        pen = True
    return "".join(commands)


def _dots(points: Sequence[Point], x: Axis, y: Axis) -> str:
    """Commands of an SVG path with a dash of no length, a round dot, at each finite point."""
    fine = [p for p in points if math.isfinite(p[1])]
    return "".join(f"M{_n(WIDTH * x.at(s))} {_n(HEIGHT * (1 - y.at(v)))}l.01 0" for s, v in fine)


def _label(at: float, text: str, side: str) -> Html:
    return tag("span", text, style=f"{side}:{100 * at:.2f}%")


def _summary(points: Sequence[Point]) -> str:
    fine = [value for _, value in points if math.isfinite(value)]
    if not fine:
        return "not finite"
    return f"from {number(fine[0])} to {number(fine[-1])}"


def _short(value: float) -> float | None:
    return float(f"{value:.5g}") if math.isfinite(value) else None


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
