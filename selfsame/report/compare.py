"""Runs side by side in the terminal."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfsame.report import record as words
from selfsame.report.record import Record, differences, duration, number, percent, read, title

WIDTH = 240  # columns, where the output is no terminal


def compare(runs: Sequence[str | Path]) -> dict[str, Any]:
    """Facts of runs side by side: scores, health, length, and the keys at which recipes differ.

    Args:
        runs: run directories, finished or not.

    Returns:
        ``runs``: for each, in order, ``name``, ``path``, ``steps`` and ``total``, ``seconds`` of
        training, ``verdict`` (None where there is none), ``health`` and ``scores``, each with
        ``value`` and ``interval`` (None where there is none). ``differences``: for each dotted key
        of the recipes that is not the same in all, the value of each run. Numbers that are not
        finite are None.

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
    from rich.table import Table
    from rich.text import Text

    records = read(runs)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    scores = [record.scores() for record in records]
    keys = list(dict.fromkeys(key for each in scores for key in each))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("run", no_wrap=True)
    for head in ("steps", "time", "RankMe"):
        table.add_column(head, justify="right")
    for key in keys:
        table.add_column(title(key), justify="right")
    for record, own in zip(records, scores, strict=True):
        best = [
            key in own and own[key].value == max(s[key].value for s in scores if key in s)
            for key in keys
        ]
        table.add_row(
            Text(record.name),
            Text(_steps(record)),
            duration(record.seconds),
            number(record.health["rankme"]) if "rankme" in record.health else "-",
            *(
                Text(_score(own, key), style="bold" if first and len(records) > 1 else "")
                for key, first in zip(keys, best, strict=True)
            ),
        )
    verdicts = Table(box=None, pad_edge=False, header_style="bold")
    verdicts.add_column("run", no_wrap=True)
    verdicts.add_column("verdict")
    for record in records:
        verdicts.add_row(Text(record.name), Text(_verdict(record)))
    console.print(verdicts)
    console.print()
    console.print(table)
    found = differences(records)
    if not found:
        if len(records) > 1:
            console.print("\nall recipes are the same")
        return
    console.print("\nwhere the recipes differ", style="bold")
    across = Table(box=None, pad_edge=False, header_style="bold")
    if len(found) > len(records):  # the longer list goes down
        for name in ("key", *(record.name for record in records)):
            across.add_column(Text(name))
        for key, values in found.items():
            across.add_row(Text(key), *(Text(words.value(each)) for each in values))
    else:
        for name in ("run", *found):
            across.add_column(Text(name))
        for i, record in enumerate(records):
            cells = [Text(words.value(each[i])) for each in found.values()]
            across.add_row(Text(record.name), *cells)
    console.print(across)


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
            key: {"value": _finite(score.value), "interval": score.interval}
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
    value, interval = scores[key]
    if interval is None:
        return percent(value)
    return f"{percent(value)} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
