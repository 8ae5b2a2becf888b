"""Runs side by side in the terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from selfsame.report import record as words
from selfsame.report.record import (
    Record,
    differences,
    duration,
    not_comparable,
    number,
    percent,
    read,
    title,
)

if TYPE_CHECKING:
    from rich.table import Table as RichTable
    from rich.text import Text

WIDTH = 240  # columns, where the output is no terminal
USUAL = ("knn", "linear")  # scores that have room beside each other


def compare(runs: Sequence[str | Path]) -> dict[str, Any]:
    """Facts of runs side by side: scores, health, length, and the keys at which recipes differ.

    Args:
        runs: run directories, finished or not.

    Returns:
        ``runs``: for each, in order, ``name``, ``path``, ``steps`` and ``total``, ``seconds`` of
        training, ``verdict`` (None where there is none), ``health`` and ``scores``, each with
        ``value``, ``interval`` and ``fingerprint`` of the data (None where there is none).
        ``differences``: for each dotted key of the recipes that is not the same in all, the value
        of each run. Numbers that are not finite are None.

    Raises:
        UsageError: a path that is no run.
        RunError: a damaged run directory.
    """
    records = read(runs)
    return {
        "runs": [_facts(record) for record in records],
        "differences": differences(records),
    }


def print_comparison(runs: Sequence[str | Path], *, as_json: bool = False) -> None:
    """Print what ``compare`` says, as tables or as JSON."""
    if as_json:
        print(json.dumps(compare(runs), allow_nan=False))
        return
    from rich.console import Console
    from rich.text import Text

    records = read(runs)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    scores = [record.scores() for record in records]
    keys = list(dict.fromkeys(key for each in scores for key in each))
    heads = ["steps", "time", "RankMe", *map(title, keys)]
    lines = []  # of each run, a cell a head
    for record, own in zip(records, scores, strict=True):
        best = [
            key in own and own[key].value == max(s[key].value for s in scores if key in s)
            for key in keys
        ]
        rank = number(record.health["rankme"]) if "rankme" in record.health else "-"
        shown = [
            Text(_score(own, key), style="bold" if first and len(records) > 1 else "")
            for key, first in zip(keys, best, strict=True)
        ]
        lines.append(
            [Text(_steps(record)), Text(duration(record.seconds)), Text(rank), *shown],
        )
    names = [record.name for record in records]
    console.print(_table("run", ["verdict"], names, [[Text(_verdict(r))] for r in records]))
    console.print()
    if len(keys) > len(USUAL) and len(heads) > len(names):  # the longer list goes down
        columns = [list(column) for column in zip(*lines, strict=True)]
        console.print(_table("", names, heads, columns, justify="right"))
    else:
        console.print(_table("run", heads, names, lines, justify="right"))
    if apart := not_comparable(scores):
        what = ", ".join(map(title, apart))
        console.print(f"\nNOT COMPARABLE, measured on different data: {what}", style="bold")
        for record, own in zip(records, scores, strict=True):
            on = dict.fromkeys(own[key].on for key in apart if key in own)
            console.print(*(Text(f"  {record.name}: {each}") for each in on), sep="\n")
    found = differences(records)
    if not found:
        if len(records) > 1:
            console.print("\nall recipes are the same")
        return
    console.print("\nwhere the recipes differ", style="bold")
    values = [[Text(words.value(each)) for each in line] for line in found.values()]
    if len(found) > len(names):
        console.print(_table("key", names, list(found), values))
    else:
        turned = [list(line) for line in zip(*values, strict=True)]
        console.print(_table("run", list(found), names, turned))


def _table(
    corner: str,
    heads: Sequence[str],
    names: Sequence[str],
    cells: Sequence[Sequence[Text]],
    justify: Literal["left", "right"] = "left",
) -> RichTable:
    """A row for each name, a column for each head."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(corner, no_wrap=True)
    for head in heads:
        table.add_column(Text(head), justify=justify)
    for name, row in zip(names, cells, strict=True):
        table.add_row(Text(name), *row)
    return table


def _facts(record: Record) -> dict[str, Any]:
    verdict = record.verdict
    return {
        "name": record.name,
        "path": str(record.path),
        "steps": record.steps,
        "total": record.total,
        "seconds": None if record.seconds is None else round(record.seconds, 1),
        "verdict": None
        if verdict is None
        else {k: verdict.get(k) for k in ("state", "kind", "reason", "cause", "tip")},
        "health": {key: _finite(value) for key, value in record.health.items()},
        "scores": {
            key: {
                "value": _finite(score.value),
                "interval": score.interval,
                "fingerprint": score.fingerprint,
            }
            for key, score in record.scores().items()
        },
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _steps(record: Record) -> str:
    done, total = record.steps, record.total
    return f"{done:,}" if total in (None, done) else f"{done:,}/{total:,}"


def _verdict(record: Record) -> str:
    found = record.verdict
    if found is None:
        return "-"
    kind = f" ({found['kind']})" if found.get("kind") else ""
    cause = f", likely cause: {found['cause']}" if found.get("cause") else ""
    return f"{found.get('state')}{kind}{cause}"


def _score(scores: dict[str, words.Score], key: str) -> str:
    if key not in scores:
        return "-"
    value, interval = scores[key][:2]
    if interval is None:
        return percent(value)
    return f"{percent(value)} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
