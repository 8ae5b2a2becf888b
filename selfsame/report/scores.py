"""Sections of a page that judge: the verdict with its facts, scores beside their controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from selfsame.report import record as words
from selfsame.report.document import scroll, share, swatch, tabs
from selfsame.report.html import Html, join, tag
from selfsame.report.record import (
    Record,
    Table,
    not_comparable,
    number,
    numbers,
    percent,
    title,
)

TROUBLE = ("collapsed", "unstable")  # states that a page shows in red


def verdicts(records: Sequence[Record]) -> Html:
    """What each run amounts to: a statement for one, cards for several."""
    if len(records) == 1:
        record = records[0]
        return join(_verdict(record), _facts(record))
    cards = [
        tag(
            "li",
            tag("h3", swatch(i), record.name),
            _verdict(record),
            _facts(record),
            class_="card",
        )
        for i, record in enumerate(records)
    ]
    return tag("ul", *cards, class_="cards")


def _verdict(record: Record) -> Html:
    found = record.verdict
    if found is None:
        return tag(
            "p", "No verdict is recorded for this run; the numbers are below.", class_="muted"
        )
    state = str(found.get("state") or "no state")
    kind, cause = found.get("kind"), found.get("cause")
    headline = state[:1].upper() + state[1:] + (f" ({kind})" if kind else "")
    later = record.steps > int(found.get("step", 0))
    return join(
        tag("p", headline, class_="state trouble" if state in TROUBLE else "state"),
        tag("p", found.get("reason") or ""),
        tag("p", tag("b", "Likely cause: "), cause) if cause else None,
        tag("p", tag("b", "Try: "), found["tip"]) if found.get("tip") else None,
        tag("p", f"Given at step {found.get('step', 0):,}.", class_="muted small")
        if later
        else None,
    )


def _facts(record: Record) -> Html:
    steps, total = record.steps, record.total
    facts = [("steps", f"{steps:,}" + (f" of {total:,}" if total else ""))]
    if total and steps < total:
        facts.append(("state", "not finished"))
    facts.append(("training time", words.duration(record.seconds)))
    health = record.health
    if "rankme" in health:
        facts.append(("RankMe", _rankme(health)))
    for key, score in list(record.scores().items())[:3]:
        facts.append((title(key), percent(score.value)))
    return tag(
        "dl",
        [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts],
        class_="facts",
    )


def _rankme(health: Mapping[str, float]) -> str:
    """RankMe, of what it can be: the features' width, or the images where those are fewer."""
    most = [health[key] for key in ("dim", "images") if key in health]
    return number(health["rankme"]) + (f" of {min(most):.0f}" if most else "")


def evaluation(records: Sequence[Record]) -> Html:
    """Scores of models with intervals, and of the controls beside them."""
    if len(records) > 1:
        return _comparison(records)
    tables = records[0].tables()
    if not tables:
        return tag(
            "p",
            "No evaluation with labels is recorded. ",
            tag("code", f"selfsame evaluate {records[0].path} LABELLED/"),
            " adds one.",
            class_="muted",
        )
    return join(*(_table(table) for table in tables))


def _table(table: Table) -> Html:
    headlines = table.headlines()
    model = next(iter(table.results))
    top = max([1e-9, *(_top(s, key) for s in table.results.values() for key in headlines)])
    head = [tag("th", "features", scope="col")]
    head += [tag("th", title(key), scope="col") for key in headlines]
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            [tag("td", _scored(scores, key, top)) for key in headlines],
            class_="model" if name == model else None,
        )
        for name, scores in table.results.items()
    ]
    others = {
        name: {k: v for k, v in numbers(scores).items() if k not in headlines}
        for name, scores in table.results.items()
    }
    keys = list(dict.fromkeys(key for each in others.values() for key in each))
    more = None
    if keys:
        names = [tag("th", name, scope="col") for name in others]
        lines = [
            tag(
                "tr",
                tag("th", key, scope="row"),
                [tag("td", number(each[key]) if key in each else "-") for each in others.values()],
            )
            for key in keys
        ]
        more = tag(
            "details",
            tag("summary", "All numbers"),
            scroll("All numbers", tag("table", tag("tr", tag("td"), *names), *lines)),
        )
    caption = f"{table.protocol.replace(',', ', ')} at step {table.step:,}; {table.data}"
    caption += f"; {table.seen}" if table.seen else ""
    scores = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows), class_="scores")
    return join(
        tag("p", caption, class_="muted small"),  # no <caption>: it would be as wide as the table
        scroll("Scores", scores) if headlines else None,
        more,
    )


def _scored(scores: Mapping[str, Any], key: str, top: float) -> Html:
    """A score, its 95 % interval, and both as a bar."""
    if key not in scores:
        return Html("-")
    value = float(scores[key])
    interval = scores.get(f"{key}_interval")
    bar = tag("span", class_="bar", style=f"width:{share(value, top)}%", aria_hidden="true")
    if interval is None:
        return join(tag("b", percent(value)), tag("span", bar, class_="track"))
    low, high = interval
    whisker = tag(
        "span",
        class_="whisker",
        style=f"left:{share(low, top)}%;width:{share(high - low, top)}%",
        aria_hidden="true",
    )
    between = f"{100 * low:.1f} to {100 * high:.1f}"
    return join(
        tag("b", percent(value)),
        tag("small", between, class_="muted"),
        tag("span", bar, whisker, class_="track"),
    )


def _top(scores: Mapping[str, Any], key: str) -> float:
    """The upper end of a score's interval, or the score."""
    return float((scores.get(f"{key}_interval") or [scores.get(key, 0.0)])[-1])


def _comparison(records: Sequence[Record]) -> Html:
    scores = [record.scores() for record in records]
    keys = list(dict.fromkeys(key for each in scores for key in each))
    head = ["run", *map(title, keys), "RankMe", "steps", "time"]
    best = {
        key: max((each[key].value for each in scores if key in each), default=0.0) for key in keys
    }
    top = {
        key: max((each[key].interval or each[key][:1])[-1] for each in scores if key in each)
        for key in keys
    }
    rows = []
    for i, (record, own) in enumerate(zip(records, scores, strict=True)):
        cells = []
        for key in keys:
            if key not in own:
                cells.append(tag("td", "-"))
                continue
            shown: dict[str, Any] = {key: own[key].value}
            if own[key].interval:
                shown[f"{key}_interval"] = own[key].interval
            mark = "best" if own[key].value == best[key] else None
            cells.append(tag("td", _scored(shown, key, top[key] or 1.0), class_=mark))
        health = record.health
        rank = _rankme(health) if "rankme" in health else "-"
        rows.append(
            tag(
                "tr",
                tag("th", swatch(i), record.name, scope="row"),
                *cells,
                tag("td", rank),
                tag("td", f"{record.steps:,}"),
                tag("td", words.duration(record.seconds)),
            )
        )
    table = tag(
        "table",
        tag("thead", tag("tr", [tag("th", name, scope="col") for name in head])),
        tag("tbody", *rows),
        class_="scores",
    )
    each = [
        (record.name, join(*(_table(found) for found in record.tables()))) for record in records
    ]
    with_controls = [(name, body) for name, body in each if body]
    details = (
        tag(
            "details",
            tag("summary", "Each run beside its controls"),
            tabs("controls", "Run", with_controls),
        )
        if with_controls
        else None
    )
    note = "The newest value of each score; intervals are 95 %, over test images. Best in bold."
    apart = ", ".join(map(title, not_comparable(scores)))
    return join(
        scroll("Scores of all runs", table),
        tag("p", tag("b", "Not comparable"), f", measured on different data: {apart}.")
        if apart
        else None,
        tag("p", note, class_="muted small"),
        details,
    )
