"""The section of a page that is made of images: what an encoder sees, in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np
from PIL import Image

from selfsame.report.curves import COLORS
from selfsame.report.document import scroll, share, swatch
from selfsame.report.html import Html, data, join, tag
from selfsame.report.look import ALIKE, SAME, Look, Picture
from selfsame.report.pictures import show, uri
from selfsame.report.record import percent

MANY = 20  # classes beyond which a confusion matrix is a list of its largest entries


def pictures(found: Look, ids: count[int]) -> Html:
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
                    tag("span", class_="bar", style=f"width:{share(float(rate[k]), 1)}%"),
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
