"""The page: sections from what a run directory says and what its encoder sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

from selfsame.report import record as words
from selfsame.report.curves import Line, chart
from selfsame.report.document import document, scroll, swatch, tabs
from selfsame.report.html import Html, join, tag
from selfsame.report.images import pictures
from selfsame.report.look import Look
from selfsame.report.record import Record, numbers, title
from selfsame.report.scores import evaluation, verdicts

BAD = 100  # bad images that are listed
SPEED = ("images_per_second", "waiting")
FIRST = ("loss", "lr", "grad_norm")
OWN = ("spread", "information", "teacher_entropy", "negatives")  # what a verdict reads of a method
HEALTH = ("rankme", "feature_std")
ASIDE = ("epoch", "step", "dim", "feature_std_reference", "images", "viewed", "weight_decay")


def page(records: Sequence[Record], looks: Sequence[Look | None]) -> str:
    """The whole document, in which nothing points outside.

    Args:
        records: the runs.
        looks: what each one's encoder sees; None where nobody looked.
    """
    one = len(records) == 1
    ids = count()
    panels = [
        (record.name, pictures(found, ids))
        for record, found in zip(records, looks, strict=True)
        if found is not None
    ]
    judged = ("scores", "Evaluation", evaluation(records))
    sections = [
        ("verdict", "Verdict" if one else "Verdicts", verdicts(records)),
        *([] if one else [judged, ("recipes", "Differences", recipe_differences(records))]),
        ("curves", "Curves", curves(records)),
        *([judged] if one else []),
        ("images", "Images", tabs("images", "Run", panels) if panels else None),
        ("bad", "Bad images", bad_images(records)),
        ("recipe", "Recipe", tabs("recipe", "Run", [(r.name, recipe(r)) for r in records])),
        (
            "environment",
            "Environment",
            tabs("environment", "Run", [(r.name, environment(r)) for r in records]),
        ),
    ]
    kept = [(key, name, body) for key, name, body in sections if body is not None]
    heading = records[0].name if one else f"{len(records)} runs"
    main = [
        tag("section", tag("h2", name), body, id=key, tabindex="-1", class_=f"s-{key}")
        for key, name, body in kept
    ]
    nav = tag(
        "nav",
        tag("ul", [tag("li", tag("a", name, href=f"#{key}")) for key, name, _ in kept]),
        aria_label="Sections",
    )
    subtitle = _subtitle(records[0]) if one else "Side by side."
    body = [
        tag("a", "Skip to the verdict", href="#verdict", class_="skip"),
        tag("header", tag("h1", heading), tag("p", subtitle, class_="muted")),
        nav,
        tag("main", *main),
    ]
    return document(f"{heading}: selfsame", join(*body))


def _subtitle(record: Record) -> str:
    network = record.recipe.get("backbone", {}).get("name", "")
    images = record.info.get("data", {}).get("images")
    said = [
        str(record.recipe.get("method", {}).get("name", "")),
        f"on {network}" if network else "",
        f"{images:,} images" if isinstance(images, int) else "",
    ]
    return ", ".join(part for part in said if part)


# Curves -----------------------------------------------------------------------------------------


def curves(records: Sequence[Record]) -> Html:
    """What was measured over the steps; the rarer ones folded away."""
    names = [record.name for record in records]
    trained = [_by_key(record.metrics) for record in records]
    healthy = [
        _by_key([row for row in record.evals if row["protocol"] == "health"]) for record in records
    ]
    judged = [record.online() for record in records]

    def charts(series: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[Html]:
        return [
            chart(title(key), [Line(i, each.get(key, ())) for i, each in enumerate(series)], names)
            for key in keys
        ]

    first = [
        *charts(trained, FIRST),
        *charts(trained, [key for key in OWN if _known(trained, key)]),
        *charts(healthy, [key for key in HEALTH if _known(healthy, key)]),
        *charts(judged, [key for key in ("knn", "linear") if _known(judged, key)]),
    ]
    shown = {*FIRST, *OWN, *HEALTH, *ASIDE, *SPEED, "knn", "linear"}
    rest = [
        *charts(trained, [key for key in _keys(trained) if key not in shown]),
        *charts(healthy, [key for key in _keys(healthy) if key not in shown]),
        *charts(judged, [key for key in _keys(judged) if key not in shown]),
        *charts(trained, [key for key in SPEED if _known(trained, key)]),
    ]
    legend = None
    if len(records) > 1:
        buttons = [
            tag("button", swatch(i), name, type="button", aria_pressed="true", data_run=i)
            for i, name in enumerate(names)
        ]
        legend = tag("div", *buttons, class_="legend", role="group", aria_label="Show runs")
    return join(
        legend,
        tag("div", *first, class_="charts"),
        tag(
            "details",
            tag("summary", f"{len(rest)} more"),
            tag("div", *rest, class_="charts"),
        )
        if rest
        else None,
    )


def _by_key(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in numbers(row).items():
            found.setdefault(key, []).append((int(row.get("step", 0)), value))
    return found


def _keys(series: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for each in series for key in each))


def _known(series: Sequence[Mapping[str, Any]], key: str) -> bool:
    return any(key in each for each in series)


# What a run is made of --------------------------------------------------------------------------


def bad_images(records: Sequence[Record]) -> Html | None:
    """Files that could not be read, with the reason."""
    found = [(record.name, record.bad) for record in records if record.bad]
    if not found:
        return None
    panels = []
    for name, bad in found:
        rows = [
            tag("tr", tag("td", row.get("name", "")), tag("td", row.get("reason", "")))
            for row in bad[:BAD]
        ]
        head = tag("tr", tag("th", "file", scope="col"), tag("th", "reason", scope="col"))
        said = f"{len(bad):,} could not be read and was replaced by the next readable one."
        if len(bad) > 1:
            said = f"{len(bad):,} could not be read; each was replaced by the next readable one."
        if len(bad) > BAD:
            said += f" The first {BAD}; all are in bad_images.jsonl."
        table = tag("table", tag("thead", head), tag("tbody", *rows), class_="files")
        panels.append((name, join(tag("p", said), scroll("Bad images", table))))
    return tabs("bad", "Run", panels)


def recipe_differences(records: Sequence[Record]) -> Html:
    """The keys at which recipes differ; a value unlike the first run's is marked.

    Keys that not all runs have, as of other methods or further views, are folded away.
    """
    found = words.differences(records)
    if not found:
        return tag("p", "All recipes are the same.", class_="muted")
    shared = {key: values for key, values in found.items() if None not in values}
    others = {key: values for key, values in found.items() if None in values}
    same = len({key for record in records for key in record.settings()}) - len(found)
    note = f"Marked: unlike {records[0].name}. {same} other keys are the same in all."
    return join(
        _differences(records, shared) if shared else None,
        tag("p", note, class_="muted small"),
        tag(
            "details",
            tag("summary", f"{len(others)} keys that not all runs have"),
            _differences(records, others),
        )
        if others
        else None,
    )


def _differences(records: Sequence[Record], found: Mapping[str, Sequence[Any]]) -> Html:
    head = [tag("th", "key", scope="col")]
    head += [tag("th", swatch(i), r.name, scope="col") for i, r in enumerate(records)]
    rows = [
        tag(
            "tr",
            tag("th", key, scope="row"),
            [
                tag("td", words.value(each), class_="differs" if each != values[0] else None)
                for each in values
            ],
        )
        for key, values in found.items()
    ]
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows), class_="differences")
    return scroll("Differences of recipes", table)


def recipe(record: Record) -> Html:
    """The recipe as TOML, its source and its deviations."""
    values = record.recipe
    deviations = [tag("li", each) for each in values.get("deviations", [])]
    source = values.get("source")
    return join(
        tag("p", tag("b", "Source: "), source) if source else None,
        tag("p", tag("b", "Deviations:")) if deviations else None,
        tag("ul", *deviations) if deviations else None,
        tag(
            "details",
            tag("summary", "recipe.toml"),
            tag(
                "pre",
                tag("code", record.run.recipe.read_text("utf-8")),
                tabindex="0",
                role="region",
                aria_label="recipe.toml",
            ),
        ),
    )


def environment(record: Record) -> Html:
    """What run.json says."""
    info = record.info
    versions = info.get("versions")
    lines = {
        "command": " ".join(map(str, info.get("command", []))),
        "started": info.get("started"),
        "hardware": info.get("hardware"),
        "device": info.get("device"),
        "processes": info.get("world_size"),
        "versions": ", ".join(f"{k} {v}" for k, v in versions.items())
        if isinstance(versions, dict)
        else None,
        "commit": info.get("commit"),
        "recipe": info.get("recipe"),
        "data": _described(info.get("data")),
        "directory": str(record.path),
    }
    shown = {key: value for key, value in lines.items() if value not in (None, "")}
    if not info:
        shown = {"run.json": "there is none", **shown}
    pairs = [tag("div", tag("dt", key), tag("dd", value)) for key, value in shown.items()]
    return tag("dl", *pairs, class_="plain")


def _described(facts: Any) -> str | None:
    if not isinstance(facts, dict):
        return None
    paths = facts.get("paths") or []
    said = f"{facts.get('images')} images, fingerprint {facts.get('fingerprint')}"
    return f"{', '.join(map(str, paths))}: {said}" if paths else said
