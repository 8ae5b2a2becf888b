"""The page: sections from what a run directory says and what its encoder sees."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import count
from typing import Any

import numpy as np
from PIL import Image

from selfsame import __version__
from selfsame.report import record as words
from selfsame.report.curves import COLORS, Line, chart
from selfsame.report.html import Html, data, join, tag
from selfsame.report.look import ALIKE, SAME, Look, Picture
from selfsame.report.pictures import show, uri
from selfsame.report.record import Record, Table, number, numbers, percent, title

TROUBLE = ("collapsed", "unstable")  # states that a page shows in red
MANY = 20  # classes beyond which a confusion matrix is a list of its largest entries
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
        (record.name, pictures(record, found, ids))
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
    return _document(f"{heading}: selfsame", join(*body))


def _document(heading: str, body: Html) -> str:
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


def _subtitle(record: Record) -> str:
    network = record.recipe.get("backbone", {}).get("name", "")
    images = record.info.get("data", {}).get("images")
    said = [
        str(record.recipe.get("method", {}).get("name", "")),
        f"on {network}" if network else "",
        f"{images:,} images" if isinstance(images, int) else "",
    ]
    return ", ".join(part for part in said if part)


# Verdict and scores -----------------------------------------------------------------------------


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
        width = f" of {health['dim']:.0f}" if "dim" in health else ""
        facts.append(("RankMe", number(health["rankme"]) + width))
    for key, score in list(record.scores().items())[:3]:
        facts.append((title(key), percent(score.value)))
    return tag(
        "dl",
        [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts],
        class_="facts",
    )


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
    bar = tag("span", class_="bar", style=f"width:{_share(value, top)}%", aria_hidden="true")
    if interval is None:
        return join(tag("b", percent(value)), tag("span", bar, class_="track"))
    low, high = interval
    whisker = tag(
        "span",
        class_="whisker",
        style=f"left:{_share(low, top)}%;width:{_share(high - low, top)}%",
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


def _share(value: float, top: float) -> str:
    return f"{min(100.0, max(0.0, 100 * value / top)):.1f}"


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
        width = f" of {health['dim']:.0f}" if "dim" in health else ""
        rank = number(health["rankme"]) + width if "rankme" in health else "-"
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
    return join(scroll("Scores of all runs", table), tag("p", note, class_="muted small"), details)


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


# Images -----------------------------------------------------------------------------------------


def pictures(record: Record, found: Look, ids: count[int]) -> Html:
    """Everything that is made of images, for one run."""
    parts: list[object] = []
    if found.images:
        said = f"{found.images:,} of {found.of:,} images, evenly spaced"
        parts.append(tag("p", "; ".join([said, *found.notes]) + ".", class_="muted"))
    elif found.notes:
        parts.append(tag("p", "; ".join(found.notes) + ".", class_="muted"))
    if found.left:
        left = [tag("li", reason) for reason in found.left]
        parts.append(tag("div", tag("p", "Left out:"), tag("ul", *left), class_="left"))
    if found.views:
        parts += [tag("h3", "Views, as the network sees them"), _views(found)]
    if found.neighbors:
        parts += [tag("h3", "Nearest neighbours"), _neighbors(found)]
    if found.tokens is not None:
        parts += [tag("h3", "Parts of images"), _tokens(found)]
    if found.plane is not None:
        parts += [tag("h3", "Map of images"), _plane(found, next(ids))]
    if found.classes is not None:
        parts += [tag("h3", "Classes"), _classes(found)]
    if found.pairs is not None:
        parts += [tag("h3", "Duplicates"), _pairs(found)]
    if found.outliers:
        note = "Images farthest from their ten nearest neighbours (mean of 1 - cosine similarity)."
        shown = [picture(p, f"{distance:.3f}") for p, distance in found.outliers]
        parts += [
            tag("h3", "Outliers"),
            tag("p", note, class_="muted small"),
            tag("div", *shown, class_="row"),
        ]
    return join(*parts)


def picture(p: Picture, *notes: object, mark: str | None = None) -> Html:
    """A figure of an image with its name, class and what is said of it."""
    alt = f"{p.name}, {p.label}" if p.label is not None else p.name
    return tag(
        "figure",
        show(p.image, alt),
        tag("figcaption", [tag("span", note) for note in notes if note]),
        class_=f"pic {mark or ''}".strip(),
        title=alt,
    )


def _views(found: Look) -> Html:
    rows = []
    for each in found.views:
        cells = [tag("td", picture(each.original, "image"))]
        cells += [
            tag("td", tag("figure", show(image, name), tag("figcaption", name), class_="pic"))
            for name, image in each.views
        ]
        rows.append(tag("tr", *cells))
    note = (
        "All views of the recipe, as they are in the first pass over the data; only the "
        "normalisation is undone."
    )
    if any("masked" in name for each in found.views for name, _ in each.views):
        note += " Patches that the method hides are gray."
    return join(
        tag("p", note, class_="muted small"), scroll("Views", tag("table", *rows, class_="pics"))
    )


def _neighbors(found: Look) -> Html:
    rows = []
    for each in found.neighbors:
        cells = [tag("th", picture(each.query, each.query.label), scope="row")]
        for p, similarity in each.found:
            same = None if p.label is None else p.label == each.query.label
            mark = {True: "same", False: "other", None: None}[same]
            cells.append(tag("td", picture(p, p.label, f"{similarity:.3f}", mark=mark)))
        rows.append(tag("tr", *cells))
    note = "Left an image, then those nearest to it, with cosine similarities of their features."
    if found.classes_of_data:
        note += " A dashed frame: another class."
    return join(
        tag("p", note, class_="muted small"),
        scroll("Neighbours", tag("table", *rows, class_="pics neighbours")),
    )


def _tokens(found: Look) -> Html:
    assert found.tokens is not None
    each = found.tokens
    rows = [("image", [show(image, "as the network sees it") for image in each.seen])]
    notes = []
    if each.colors is not None:
        height, width = each.colors.colors.shape[1:3]
        maps = [
            show(
                Image.fromarray(colors),
                f"principal components, {height} x {width} tokens",
                png=True,
            )
            for colors in each.colors.colors
        ]
        rows.append(("PCA of tokens", maps))
        notes.append(
            f"PCA: the first three principal components of the last {height} x {width} tokens "
            "of all these images as red, green and blue; they hold "
            f"{100 * each.colors.explained:.0f} % of the variance."
        )
    if each.attention is not None:
        lit = [spotlight(i, a) for i, a in zip(each.seen, each.attention, strict=True)]
        rows.append(("attention", [show(image, "attention over the image") for image in lit]))
        notes.append(
            f"Attention: {each.whose} to the patches in the last block, mean of {each.heads} "
            "heads; dark is little."
        )
    body = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            [tag("td", tag("figure", image, class_="pic map")) for image in images],
        )
        for name, images in rows
    ]
    return join(
        tag("p", " ".join(notes), class_="muted small"),
        scroll("Parts of images", tag("table", *body, class_="pics tokens")),
    )


def spotlight(image: Image.Image, weights: np.ndarray) -> Image.Image:
    """The image, dark where attention, [h, w], is at its 5th percentile, as it is at its 95th."""
    low, high = np.quantile(weights, [0.05, 0.95]).tolist()
    light = Image.fromarray(((weights - low) / max(high - low, 1e-12)).astype(np.float32))
    scaled = np.asarray(light.resize(image.size, Image.Resampling.BICUBIC)).clip(0, 1)
    pixels = np.asarray(image, np.float32) * (0.12 + 0.88 * scaled[..., None])
    return Image.fromarray(pixels.round().astype(np.uint8))


def _plane(found: Look, number_: int) -> Html:
    assert found.plane is not None
    plane = found.plane
    labels = plane.labels
    names = found.classes_of_data or []
    dots = [
        tag(
            "circle",
            cx=round(20 + 960 * x),
            cy=round(20 + 960 * (1 - y)),
            r=8,
            class_=f"c{labels[i] % COLORS if labels else 0}",
        )
        for i, (x, y) in enumerate(plane.places.tolist())
    ]
    drawing = tag(
        "svg",
        *dots,
        viewBox="0 0 1000 1000",
        tabindex="0",
        role="img",
        aria_label=f"Map of {len(dots)} images. Arrow keys go from one to the next.",
    )
    tip = tag(
        "div",
        tag("span", tag("img", src=uri(plane.sheet), alt=""), class_="thumb"),
        tag("span", class_="name"),
        class_="tip",
        hidden=True,
        aria_live="polite",
    )
    rows = plane.sheet.height * plane.columns // plane.sheet.width
    values = {
        "names": plane.names,
        "labels": [names[k] for k in labels] if labels else None,
        "columns": plane.columns,
        "rows": rows,
    }
    legend = None
    if labels:
        used = sorted(set(labels))
        entries = [tag("li", swatch(k), names[k]) for k in used[:MANY]]
        more = tag("li", f"and {len(used) - MANY} more") if len(used) > MANY else None
        legend = tag("ul", *entries, more, class_="legend plain")
    note = (
        f"{len(dots)} images by {plane.how}. Near ones look alike to the network; the axes mean "
        "nothing, and neither does the distance between far ones."
    )
    if labels and len(set(labels)) > COLORS:
        note += f" {COLORS} colours stand for all classes, again and again."
    return tag(
        "div",
        tag("p", note, class_="muted small"),
        tag("div", drawing, tip, data(values), class_="plane", id=f"map-{number_}"),
        legend,
    )


def _classes(found: Look) -> Html:
    assert found.classes is not None
    names, confusion = found.classes.names, found.classes.confusion
    total = confusion.sum(1)
    right = np.diag(confusion)
    overall = right.sum() / max(1, total.sum())
    rate = right / np.maximum(total, 1)
    note = (
        f"kNN with k = 20: {percent(float(overall))} of {int(total.sum()):,} held-out images, from "
        f"the features of {found.classes.train:,} others ({found.classes.how}). It is a sample, "
        "for the classes; the score to quote is that of evaluate."
    )
    order = np.argsort(rate, kind="stable")
    bars = [
        tag(
            "tr",
            tag("th", names[k], scope="row"),
            tag(
                "td",
                tag("b", percent(float(rate[k]))),
                tag("small", f"of {int(total[k])}", class_="muted"),
                tag(
                    "span",
                    tag("span", class_="bar", style=f"width:{_share(float(rate[k]), 1)}%"),
                    class_="track",
                ),
            ),
        )
        for k in (order if len(names) <= 2 * MANY else order[:MANY])
        if total[k]
    ]
    few = "" if len(names) <= 2 * MANY else f" (the {MANY} worst of {len(names)})"
    return join(
        tag("p", note, class_="muted small"),
        tag(
            "div",
            tag(
                "div",
                tag("h4", f"Accuracy by class{few}"),
                tag("table", *bars, class_="scores classes"),
            ),
            tag(
                "div",
                tag("h4", "Confusion"),
                _matrix(names, confusion) if len(names) <= MANY else _confused(names, confusion),
            ),
            class_="two",
        ),
    )


def _matrix(names: Sequence[str], confusion: np.ndarray) -> Html:
    total = np.maximum(confusion.sum(1), 1)
    head = [tag("th", tag("span", name), scope="col") for name in names]
    rows = []
    for k, name in enumerate(names):
        cells = []
        for j, value in enumerate(confusion[k].tolist()):
            share = value / total[k]
            kind = "hit" if j == k else "miss"
            cells.append(
                tag(
                    "td",
                    value or Html("&middot;"),
                    class_=kind if value else "none",
                    style=f"--a:{100 * share:.0f}%" if value else None,
                    title=f"{name} taken for {names[j]}: {value} of {total[k]}",
                )
            )
        rows.append(tag("tr", tag("th", name, scope="row"), *cells))
    table = tag(
        "table",
        tag("caption", "A row a class, a column a prediction; numbers of images."),
        tag("thead", tag("tr", tag("td"), *head)),
        tag("tbody", *rows),
        class_="confusion",
    )
    return scroll("Confusion matrix", table)


def _confused(names: Sequence[str], confusion: np.ndarray) -> Html:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MANY]
    rows = []
    for place in order.tolist():
        k, j = divmod(place, len(names))
        if wrong[k, j]:
            said = f"{wrong[k, j]} of {confusion[k].sum()}"
            rows.append(tag("tr", tag("td", names[k]), tag("td", names[j]), tag("td", said)))
    head = tag("tr", [tag("th", word, scope="col") for word in ("class", "taken for", "images")])
    return scroll("Confusions", tag("table", tag("thead", head), tag("tbody", *rows)))


def _pairs(found: Look) -> Html:
    assert found.pairs is not None
    same = sum(pair.pixels >= SAME for pair in found.pairs)
    note = (
        f"{found.alike:,} pair{'s' if found.alike != 1 else ''} of images have features with a "
        f"cosine similarity of {ALIKE} or more."
    )
    if not found.pairs:
        note += " Nothing looks like a duplicate."
    elif found.alike > max(20, found.images):
        note += " That is more than duplicates explain: the features hardly tell images apart."
    if found.pairs:
        note += f" {same} of those shown have the same pixels, nearly (correlation {SAME} or more)."
    shown = [
        tag(
            "div",
            picture(pair.a),
            picture(pair.b),
            tag(
                "p",
                tag("span", pair.a.name, class_="name"),
                tag("span", pair.b.name, class_="name"),
                tag(
                    "span",
                    "the same picture" if pair.pixels >= SAME else "alike",
                    f", similarity {pair.similarity:.4f}, pixels {pair.pixels:.2f}",
                    class_="muted",
                ),
                class_="small",
            ),
            class_="pair",
        )
        for pair in found.pairs
    ]
    return join(tag("p", note, class_="muted small"), tag("div", *shown, class_="pairs"))


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


# Pieces -----------------------------------------------------------------------------------------


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
