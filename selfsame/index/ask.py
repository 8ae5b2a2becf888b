"""What an index can be asked: what is like this, what is twice, what is odd, what to label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from selfsame.encoder import images_of
from selfsame.errors import DataError, UsageError, unknown
from selfsame.index import approximate, sheet
from selfsame.index.choose import k_centre, typical
from selfsame.index.read import Index
from selfsame.index.write import digest
from selfsame.nn.neighbours import Pairs, alike, components, nearest, outlierness
from selfsame.nn.precision import unit

NEIGHBOURS = 10  # of a query; whose mean distance says how far out an image lies
THRESHOLD = 0.99  # cosine similarity from which two images count as copies
MANY = 0.5  # share of the images in near-duplicate groups that no data set explains
FIRSTS = 2**16  # vectors of first members of groups that memory holds at once
HOW = {"typical": typical, "k-centre": k_centre}


class Found(NamedTuple):
    """An image that is like a query."""

    id: int
    path: str
    similarity: float  # cosine
    same: bool  # byte by byte the query


class Answer(NamedTuple):
    """A query and what is most like it, descending."""

    query: str
    found: list[Found]


class Member(NamedTuple):
    """An image of a group."""

    id: int
    path: str
    similarity: float  # cosine, to the first of the group
    same: int | None  # id of the earlier member whose bytes it has


class Group(NamedTuple):
    """Images that are one, or nearly."""

    identical: bool  # all have the same bytes
    members: list[Member]  # in the order of the data


class Outlier(NamedTuple):
    """An image that is like no other."""

    id: int
    path: str
    score: float  # mean cosine distance to the k nearest others


class Pick(NamedTuple):
    """An image to label."""

    id: int
    path: str
    stands_for: int  # images of its cluster, or nearest to it


def search(
    index: str | Path | Index,
    query: Any,
    *,
    k: int | None = None,
    model: str | Path | nn.Module | None = None,
    device: str | None = None,
    html: str | Path | None = None,
    data: Any = None,
) -> list[Answer]:
    """Find the images that are most like each query, by cosine similarity.

    Exact, in one pass over the file: memory does not grow with the index.

    Args:
        index: what ``embed`` wrote.
        query: one image or several: what ``Encoder.embed`` takes.
        k: how many to find, by default 10.
        model: the model that made the index, where it is not where it was.
        device: where to embed the query.
        html: also write a page with the pictures.
        data: for the page, the images that were embedded, where they are not where they were.

    Raises:
        UsageError: another model, or more images asked for than there are.
        DataError: a damaged index, or a query that cannot be read.
    """
    index = _open(index)
    k = _count("k", k, NEIGHBOURS, len(index), index)
    encoder = index.encoder(model, device)
    names, sums, vectors = [], [], []
    with images_of(query, encoder) as images:
        for batch, part in encoder.embed_batches(images):
            names += [images.source.name(i) for i in batch.index.tolist()]
            sums += [digest(images.source.read(i)) for i in batch.index.tolist()]
            vectors.append(part)
        for bad in images.bad:
            raise DataError(f"cannot read the query {bad.name}: {bad.reason}", tip="leave it out")
        similarity, rows = nearest(unit(torch.cat(vectors)), index, k)
        answers = [
            Answer(
                name,
                [
                    Found(*index.row(i), value, index.sha256(i) == own)
                    for i, value in zip(near, values, strict=True)
                ],
            )
            for name, own, near, values in zip(
                names, sums, rows.tolist(), similarity.tolist(), strict=True
            )
        ]
        if html is not None:
            _write(html, index, data, lambda p: sheet.of_search(index, answers, images, p))
    return answers


def dedup(
    index: str | Path | Index,
    *,
    threshold: float = THRESHOLD,
    exact: bool | None = None,
    html: str | Path | None = None,
    data: Any = None,
) -> list[Group]:
    """Groups of near-duplicates: connected components of what is alike, or has the same bytes.

    Args:
        index: what ``embed`` wrote.
        threshold: cosine similarity from which two images are alike.
        exact: compare all with all; by default FAISS does, where it is installed, from 200,000
            images on.
        html: also write a page with the pictures.
        data: for the page, the images that were embedded, where they are not where they were.

    Returns:
        Groups of two or more: those with the same bytes first, then the largest.
    """
    index = _open(index)
    if not 0 < threshold <= 1:
        raise UsageError(f"threshold is {threshold}", tip="a cosine above 0, at most 1: 0.99")
    find = approximate.alike if approximate.chosen(len(index), exact) else alike
    same = index.contents()
    component = components(len(index), _and_identical(find(index, threshold), same))
    order = component.argsort(stable=True)
    found = [r for r in torch.split(order, component.bincount().tolist()) if len(r) > 1]
    similarity = _to_the_first(index, found)
    groups = [_group(index, rows, similarity[rows], same[rows]) for rows in found]
    groups.sort(key=lambda group: (not group.identical, -len(group.members), group.members[0].id))
    if html is not None:
        _write(html, index, data, lambda p: sheet.of_groups(index, groups, threshold, p))
    return groups


def outliers(
    index: str | Path | Index,
    *,
    n: int | None = None,
    k: int | None = None,
    exact: bool | None = None,
    html: str | Path | None = None,
    data: Any = None,
) -> list[Outlier]:
    """The images that are least like any other, by mean cosine distance to their k nearest.

    Args:
        index: what ``embed`` wrote.
        n: how many, by default 20.
        k: neighbours of each, by default 10. A group of k or fewer odd images that are alike is
            found only with a larger k.
        exact: compare all with all; by default FAISS does, where it is installed, from 200,000
            images on.
        html: also write a page with the pictures.
        data: for the page, the images that were embedded, where they are not where they were.
    """
    index = _open(index)
    n = _count("n", n, 20, len(index), index)
    if len(index) < 2:
        raise UsageError(f"{index.path} has one image", tip="it takes two to be different")
    k = _count("k", k, NEIGHBOURS, len(index) - 1, index, "other images")
    if approximate.chosen(len(index), exact):
        score = 1 - approximate.nearest_others(index, k)[0].mean(1)
    else:
        score = outlierness(index, k)
    far = score.sort(descending=True, stable=True)
    found = [
        Outlier(*index.row(i), value)
        for i, value in zip(far.indices[:n].tolist(), far.values[:n].tolist(), strict=True)
    ]
    if html is not None:
        _write(html, index, data, lambda p: sheet.of_outliers(index, found, k, p))
    return found


def select(
    index: str | Path | Index,
    n: int,
    *,
    how: Literal["typical", "k-centre"] = "typical",
    seed: int = 0,
    html: str | Path | None = None,
    data: Any = None,
) -> list[Pick]:
    """Choose n images to label first, without reading a label.

    Args:
        index: what ``embed`` wrote.
        n: how many.
        how: "typical", the most typical image of each of n clusters: what a classifier learns most
            from (docs/embeddings.md has the measurement); "k-centre", which covers the extremes.
        seed: of the clusters.
        html: also write a page with the pictures.
        data: for the page, the images that were embedded, where they are not where they were.

    Returns:
        The largest clusters first; of k-centre, in the order chosen. Any first part is a choice.
    """
    index = _open(index)
    if how not in HOW:
        raise unknown("way to select", how, HOW)
    n = _count("n", n, n, len(index), index)
    x = index.vectors()
    rows, counts = typical(x, n, seed) if how == "typical" else k_centre(x, n)
    picks = [
        Pick(*index.row(i), count) for i, count in zip(rows.tolist(), counts.tolist(), strict=True)
    ]
    if html is not None:
        _write(html, index, data, lambda p: sheet.of_picks(index, picks, how, p))
    return picks


def _open(index: str | Path | Index) -> Index:
    return index if isinstance(index, Index) else Index(index)


def _count(
    name: str, given: int | None, default: int, most: int, index: Index, what: str = "images"
) -> int:
    """A number that was asked for, or the default as far as it goes."""
    if given is None:
        return min(default, most)
    if given < 1:
        raise UsageError(f"{name} is {given}", tip="ask for 1 or more")
    if given > most:
        raise UsageError(
            f"{name} is {given:,}, and {index.path} has {most:,} {what}",
            tip=f"ask for {most:,} or fewer",
        )
    return given


def _and_identical(pairs: Iterator[Pairs], same: Tensor) -> Iterator[Pairs]:
    """The pairs, and those of images with the same bytes."""
    rows = torch.stack([same, torch.arange(len(same))], 1)
    rows = rows[rows[:, 0] != rows[:, 1]]
    if len(rows):
        yield Pairs(rows, torch.ones(len(rows)))
    yield from pairs


def _to_the_first(index: Index, groups: Sequence[Tensor]) -> Tensor:
    """Cosine of each row to the first of its group, float32 [N]; the index passes by.

    Args:
        index: N rows.
        groups: int64 [n] ascending rows each.
    """
    similarity, first = torch.ones(len(index)), torch.arange(len(index))
    for rows in groups:
        first[rows] = rows[0]
    heads = torch.tensor([int(rows[0]) for rows in groups], dtype=torch.int64).sort().values
    for part in torch.split(heads, FIRSTS) if groups else ():
        kept, start = torch.empty(len(part), index.dim), 0
        for block in index.blocks():
            head = first[start : start + len(block)]
            slot = torch.searchsorted(part, head).clamp(max=len(part) - 1)
            member = part[slot] == head
            itself = member & (head == torch.arange(start, start + len(block)))
            kept[slot[itself]] = block[itself]  # the first of a group comes before the others
            cosine = (block[member] * kept[slot[member]]).sum(1)
            similarity[start : start + len(block)][member] = cosine
            start += len(block)
    return similarity


def _group(index: Index, rows: Tensor, similarity: Tensor, same: Tensor) -> Group:
    """A group of rows with their cosine to the first, and the first row with the bytes of each."""
    members = []
    for i, value, first in zip(rows.tolist(), similarity.tolist(), same.tolist(), strict=True):
        twin = None if first == i else int(index.ids[first])
        members.append(Member(*index.row(i), min(value, 1.0), twin))
    return Group(bool((same == same[0]).all()), members)


def _write(html: str | Path, index: Index, data: Any, make: Any) -> None:
    """Write a page; ``make`` gives it from the images."""
    from selfsame.files import output

    with output(Path(html)) as temporary, index.images(sheet.CANVAS, data) as images:
        temporary.write_text(make(images), "utf-8")
