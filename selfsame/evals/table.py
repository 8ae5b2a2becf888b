"""The scores of a model and its controls as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from selfsame.evals import EVALUATORS, find
from selfsame.evals.evaluator import Scores

LEGEND = "in %; in brackets the 95 % interval over test images"
DRAWS = "; ± the deviation over draws"
SUFFIXES = ("_interval", "_std")  # of values that stand beside another one


def print_table(report: Mapping[str, Any]) -> None:
    """Print a report of ``evaluate``: a line a score, a column for the model and each control."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    results: Mapping[str, Scores] = report["results"]
    keys = [key for key in _ordered(results) if not key.endswith(SUFFIXES)]
    headlines = {key for key in keys if any(f"{key}_interval" in each for each in results.values())}
    table = Table(
        box=SIMPLE_HEAD,
        title=Text(report["model"]),
        title_justify="left",
    )
    table.add_column("")
    for name in results:
        table.add_column(name, justify="right")
    for key in keys:
        style = None if key in headlines else "dim"
        cells = (Text(cell(scores, key)) for scores in results.values())
        table.add_row(Text(label(key, key in headlines)), *cells, style=style)
    console = Console(highlight=False)
    console.print(table)
    drawn = any(key.endswith("_std") for each in results.values() for key in each)
    legend = LEGEND + (DRAWS if drawn else "")
    console.print(Text(legend, style="dim"))  # below, as a caption would be as narrow as the table
    console.print(Text(report["data"], style="dim"))
    if report.get("seen"):
        console.print(Text(report["seen"], style="bold"))


def cell(scores: Scores, key: str) -> str:
    """One score: per cent, its spread and its interval; a fact as it is."""
    if key not in scores:
        return "-"
    value = scores[key]
    if key in facts(key):
        return f"{value:g}" if isinstance(value, int) else f"{value:.3g}"
    text = f"{100 * value:.1f}"
    if f"{key}_interval" in scores:
        low, high = scores[f"{key}_interval"]
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
    elif f"{key}_std" in scores:
        text += f" ± {100 * scores[f'{key}_std']:.1f}"
    return text


def label(key: str, headline: bool) -> str:
    """What a score is called: the protocol's title, or its key without the protocol's name."""
    name = protocol(key)
    if key == name:
        return find(name).title or key
    short = key.removeprefix(f"{name}_")
    return short if headline else f"  {short}"


def facts(key: str) -> frozenset[str]:
    """The facts of the protocol that a score belongs to."""
    name = protocol(key)
    return find(name).facts if name else frozenset()


def protocol(key: str) -> str | None:
    """The protocol that a score belongs to."""
    names = [name for name in EVALUATORS if key == name or key.startswith((f"{name}_", f"{name}@"))]
    return max(names, key=len, default=None)


def _ordered(results: Mapping[str, Scores]) -> list[str]:
    """The keys of all columns, in the order of the first that has them."""
    return list(dict.fromkeys(key for scores in results.values() for key in scores))
