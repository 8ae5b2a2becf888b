"""Answers of an index as a page of pictures: one file that loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from selfsame.data import Images
from selfsame.report.document import document
from selfsame.report.html import Html, join, tag
from selfsame.report.pictures import SIDE, show, thumbnails

if TYPE_CHECKING:
    from selfsame.index.ask import Answer, Group, Outlier, Pick
    from selfsame.index.read import Index

CANVAS = 2 * SIDE  # pixels: images are decoded to fit in this square
MOST = 1000  # pictures on a page
AT_ONCE = 64  # images that are decoded together


def of_search(index: Index, answers: Sequence[Answer], queries: Images, images: Images) -> str:
    """Each query with what was found."""
    shown = answers[: max(1, MOST // (1 + len(answers[0].found)))]
    pictures = _pictures(images, {f.id for answer in shown for f in answer.found})
    asked = _pictures(queries, range(len(queries)))
    rows = []
    for i, answer in enumerate(shown):
        cards = [_card(asked.get(i), answer.query, "query", mark="asked")]
        cards += [
            _card(
                pictures.get(f.id),
                f.path,
                f"{f.similarity:.4f}" + (", same bytes" if f.same else ""),
                _base(f.path),
            )
            for f in answer.found
        ]
        rows.append(tag("section", tag("h2", answer.query), _wall(cards)))
    note = "Cosine similarity, descending." + _rest(len(shown), len(answers), "queries")
    return _page("Search", index, note, rows)


def of_groups(index: Index, groups: Sequence[Group], threshold: float, images: Images) -> str:
    """Each group of duplicates."""
    shown: list[Group] = []
    count = 0
    for group in groups:
        if shown and count + len(group.members) > MOST:
            break
        shown.append(group)
        count += len(group.members)
    pictures = _pictures(images, {m.id for g in shown for m in g.members[:MOST]})
    parts: dict[bool, list[Html]] = {True: [], False: []}
    for group in shown:
        cards = [
            _card(
                pictures.get(m.id),
                m.path,
                f"{m.similarity:.4f}" + ("" if m.same is None else f", bytes of {m.same}"),
                f"{m.id}: {_base(m.path)}",
            )
            for m in group.members[:MOST]
        ]
        parts[group.identical].append(tag("div", _wall(cards), class_="group"))
    names = {True: "The same bytes", False: "Near-duplicates"}
    sections = [
        tag("section", tag("h2", names[identical]), *found)
        for identical, found in parts.items()
        if found
    ]
    note = (
        f"{len(groups):,} group{'s' * (len(groups) != 1)} of images with a cosine similarity of "
        f"{threshold:g} or more, directly or through others. "
        "The number is the similarity to the first of the group."
    )
    return _page("Duplicates", index, note + _rest(len(shown), len(groups), "groups"), sections)


def of_outliers(index: Index, found: Sequence[Outlier], k: int, images: Images) -> str:
    """The images that are least like any other."""
    shown = found[:MOST]
    pictures = _pictures(images, {o.id for o in shown})
    cards = [_card(pictures.get(o.id), o.path, f"{o.score:.4f}", _base(o.path)) for o in shown]
    note = f"Mean cosine distance to the {k} nearest other images, descending."
    note += _rest(len(shown), len(found), "images")
    return _page("Outliers", index, note, [tag("section", _wall(cards))])


def of_picks(index: Index, picks: Sequence[Pick], how: str, images: Images) -> str:
    """The images to label first."""
    shown = picks[:MOST]
    pictures = _pictures(images, {p.id for p in shown})
    cards = [
        _card(pictures.get(p.id), p.path, f"for {p.stands_for:,}", _base(p.path)) for p in shown
    ]
    note = f"{len(picks):,} images ({how}), each with the number of images that it stands for."
    note += _rest(len(shown), len(picks), "images")
    return _page("To label first", index, note, [tag("section", _wall(cards))])


def _page(heading: str, index: Index, note: str, sections: Sequence[Html]) -> str:
    about = f"{index.path.name}: {len(index):,} images, vectors of {index.dim}. {note}"
    header = tag("header", tag("h1", heading), tag("p", about, class_="muted"))
    return document(f"{heading}: {index.path.name}", join(header, tag("main", *sections)))


def _wall(cards: Sequence[Html]) -> Html:
    return tag("div", *cards, class_="row")


def _card(image: Image.Image | None, path: str, *notes: str, mark: str = "") -> Html:
    """A picture with its captions; where it cannot be read any more, its place."""
    inside: Any = tag("div", "gone", class_="gone") if image is None else show(image, path)
    caption = tag("figcaption", [tag("span", note) for note in notes])
    return tag("figure", inside, caption, class_=f"pic {mark}".strip(), title=path)


def _pictures(images: Images, ids: Iterable[int]) -> dict[int, Image.Image]:
    """Thumbnails of the images at some positions; those that cannot be read are left out."""
    wanted = torch.tensor(sorted(ids), dtype=torch.int64)
    found: dict[int, Image.Image] = {}
    for part in torch.split(wanted, AT_ONCE):
        found |= zip(part.tolist(), thumbnails(images.batch(part)), strict=True)
    return {i: image for i, image in found.items() if i not in {b.index for b in images.bad}}


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def _rest(shown: int, of: int, what: str) -> str:
    return "" if shown == of else f" The first {shown:,} of {of:,} {what} are shown."
