"""A look at images through a run's encoder: what the picture sections of a report show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from selfsame import methods
from selfsame.data import Subset, open_labelled, open_source
from selfsame.data.order import spaced
from selfsame.encoder import Encoder, load
from selfsame.errors import SelfsameError
from selfsame.evals import knn_scores
from selfsame.evals.subject import seen
from selfsame.nn.neighbours import alike, nearest, outlierness, strongest
from selfsame.recipe import Recipe
from selfsame.report.maps import TokenColors, attention, layout, token_colors
from selfsame.report.pictures import SIDE, as_image, sheet, thumbnails
from selfsame.report.record import Record
from selfsame.types import Batch, Method, Source
from selfsame.views import eval_view, make_views
from selfsame.views.presets import eval_crop

K, TEMPERATURE = 20, 0.07  # of the kNN classifier: the headline's
NEAREST = 10  # neighbours whose mean distance says how far out an image lies
ALIKE = 0.99  # cosine similarity from which two images may be the same one
CANDIDATES = 2000  # pairs, the most alike, whose pixels are compared
SAME = 0.98  # correlation of their pixels from which they are
TINY = 16  # pixels: side at which pixels are correlated
LATE = 10**6  # epoch
SPRITE = 48  # pixels: side of a thumbnail on the map


class Scale(NamedTuple):
    """How much of everything to show."""

    images: int  # looked at
    queries: int  # images with their neighbours, tokens and attention
    neighbors: int
    viewed: int  # images with their views
    points: int  # on the map
    rows: int  # pairs of duplicates, outliers


def scale_for(runs: int, images: int) -> Scale:
    """Less a run where there are many, so that a page of 14 runs still opens on a phone."""
    if runs == 1:
        return Scale(images, 8, 7, 4, min(800, images), 10)
    if runs <= 4:
        return Scale(images, 5, 6, 2, min(300, images), 6)
    return Scale(images, 3, 5, 1, min(150, images), 3)


class Picture(NamedTuple):
    """An image of the data with its name and class."""

    image: Image.Image
    name: str
    label: str | None


class Neighbors(NamedTuple):
    """An image and those nearest to it."""

    query: Picture
    found: list[tuple[Picture, float]]  # with cosine similarities, descending


class Views(NamedTuple):
    """An image and its views, as the network is given them."""

    original: Picture
    views: list[tuple[str, Image.Image]]


class Tokens(NamedTuple):
    """What the network makes of the parts of some images."""

    seen: list[Image.Image]  # the images as the network sees them
    colors: TokenColors | None
    attention: np.ndarray | None  # float32 [B, h, w], mean over heads
    heads: int
    whose: str  # attention it is


class Plane(NamedTuple):
    """The images on a plane."""

    places: np.ndarray  # [N, 2] within 0..1
    how: str
    names: list[str]
    labels: list[int] | None
    sheet: Image.Image
    columns: int


class Pair(NamedTuple):
    """Two images that may be one."""

    a: Picture
    b: Picture
    similarity: float  # cosine, of features
    pixels: float  # correlation


class Classes(NamedTuple):
    """Predictions of the kNN classifier on held-out images."""

    names: list[str]
    confusion: np.ndarray  # int64 [C, C]: true class, predicted class
    train: int  # images in the bank
    how: str  # where the two parts come from


@dataclass
class Look:
    """What was found; None, or empty, where it could not be made, with the reason in ``left``."""

    images: int  # looked at
    of: int  # images of the data
    notes: list[str]
    left: list[str]  # what is left out, and why
    views: list[Views]
    neighbors: list[Neighbors]
    tokens: Tokens | None = None
    plane: Plane | None = None
    classes_of_data: list[str] | None = None
    pairs: list[Pair] | None = None
    alike: int = 0  # pairs of images with features nearer than ALIKE
    outliers: list[tuple[Picture, float]] | None = None
    classes: Classes | None = None


def look(
    record: Record,
    data: Any,
    scale: Scale,
    *,
    device: str | None = None,
    backbone: nn.Module | None = None,
) -> Look:
    """Look at data through the encoder of a run.

    Args:
        record: the run.
        data: what ``open_source`` takes; None for what the run was trained on.
        scale: how much to show.
        device: where to compute.
        backbone: the network, where the run trained a module of the user's.

    Returns:
        What could be made. Nothing here is an error: a report without images is still a report.
    """
    found = Look(0, 0, [], [], [], [])
    given = data
    if data is None:
        data = record.info.get("data", {}).get("paths")
        if not data:
            found.left.append(
                "everything that needs images: run.json does not say where they were; give them "
                "with --data"
            )
            return found
    try:
        encoder = load(record.path, device=device, backbone=backbone)
        source = open_source(data)
    except SelfsameError as error:
        tip = f" ({error.tip})" if error.tip else ""
        found.left.append(f"everything that needs images: {error}{tip}")
        return found
    except Exception as error:  # weights that are damaged, a disk that is gone
        found.left.append(f"everything that needs images: {type(error).__name__}: {error}")
        return found
    trained_on = record.info.get("data", {}).get("fingerprint")
    if trained_on is not None and source.fingerprint() != trained_on:
        found.notes.append(
            "these images are not the ones of the training"
            if given is not None
            else "the images have changed since the training"
        )
    _look(found, record, encoder, source, scale)
    if source.labels is not None:
        _classes(found, encoder, data, scale)
    return found


def _look(found: Look, record: Record, encoder: Encoder, source: Source, scale: Scale) -> None:
    some = Subset(source, np.array(spaced(len(source), scale.images)))
    batches, vectors, small = [], [], []
    with encoder.open(some, cache_bytes=0) as images:
        for batch, z in encoder.embed_batches(images, 128):
            batches.append(batch)
            vectors.append(z)
            small += thumbnails(batch)
        bad = images.bad
        if not vectors:
            found.left.append("everything that needs images: none of them can be read")
            return
        z = F.normalize(torch.cat(vectors), dim=-1)
        found.images, found.of = len(z), len(source)
        found.classes_of_data = None if source.classes is None else list(source.classes)
        if bad:
            found.notes.append(f"{len(bad)} of the images looked at cannot be read")
        if encoder.channels > 3:
            found.notes.append(f"the first three of {encoder.channels} channels are shown")
        if not z.isfinite().all():
            found.left.append("neighbours, tokens, map and classes: features are not finite")
            return
        index = torch.cat([batch.index for batch in batches]).tolist()
        pictures = [
            Picture(image, some.name(i), _class(some, i))
            for i, image in zip(index, small, strict=True)
        ]
        chosen = spaced(len(z), scale.queries)
        found.neighbors = _neighbors(z, pictures, chosen, scale.neighbors)
        _strange(found, z, pictures, scale.rows)
        found.plane = _plane(z, some, index, small, scale.points)
        batch = images.batch(torch.tensor([index[i] for i in chosen]))
        found.tokens = _tokens(found, encoder, batch)
        few = images.batch(torch.tensor([index[i] for i in chosen[: scale.viewed]]))
        # views are keyed by the position in the whole data
        few = few._replace(index=torch.from_numpy(some.indices)[few.index])
        _views(found, record, encoder, few, [pictures[i] for i in chosen[: scale.viewed]])


def _class(source: Source, i: int) -> str | None:
    if source.labels is None or source.classes is None:
        return None
    return str(source.classes[int(source.labels[i])])


def _neighbors(
    z: Tensor, pictures: list[Picture], chosen: list[int], count: int
) -> list[Neighbors]:
    similarity, rows = nearest(z[chosen], z, count, own=torch.tensor(chosen))
    found = []
    for i, values, near in zip(chosen, similarity.tolist(), rows.tolist(), strict=True):
        others = [(pictures[j], value) for j, value in zip(near, values, strict=True)]
        found.append(Neighbors(pictures[i], others))
    return found


def _strange(found: Look, z: Tensor, pictures: list[Picture], rows: int) -> None:
    """Images that are twice in the data, and images that are like no other."""
    n = len(pictures)
    if n < 3:
        return
    found.alike, pairs = strongest(alike(z, ALIKE), CANDIDATES)
    tiny = _tiny(pictures)
    candidates = [
        Pair(pictures[a], pictures[b], value, float(tiny[a] @ tiny[b]))
        for (a, b), value in zip(pairs.rows.tolist(), pairs.similarity.tolist(), strict=True)
    ]
    same = [pair for pair in candidates if pair.pixels >= SAME]
    rest = [pair for pair in candidates if pair.pixels < SAME]
    found.pairs = (same + rest)[:rows]
    far = outlierness(z, NEAREST).topk(min(rows, n))
    found.outliers = [
        (pictures[i], value)
        for i, value in zip(far.indices.tolist(), far.values.tolist(), strict=True)
    ]


def _tiny(pictures: list[Picture]) -> np.ndarray:
    """Images of few gray pixels as unit vectors without mean: products are correlations."""
    rows = [
        np.asarray(p.image.convert("L").resize((TINY, TINY), Image.Resampling.BOX), np.float64)
        for p in pictures
    ]
    x = np.stack(rows).reshape(len(rows), -1)
    x -= x.mean(1, keepdims=True)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9))


def _plane(
    z: Tensor, source: Source, index: list[int], small: list[Image.Image], points: int
) -> Plane:
    kept = spaced(len(z), points)
    places, how = layout(z[kept])
    whole, columns = sheet([small[i] for i in kept], min(SPRITE, max(small[0].size)))
    labels = None
    if source.labels is not None:
        labels = [int(source.labels[index[i]]) for i in kept]
    names = [source.name(index[i]) for i in kept]
    return Plane(places, how, names, labels, whole, columns)


@torch.inference_mode()
def _tokens(found: Look, encoder: Encoder, batch: Batch) -> Tokens | None:
    size = encoder.image_size
    images = batch.images.to(encoder.device)
    x = eval_view(images, batch.sizes, size, encoder.norm, eval_crop(size))
    with torch.autocast(encoder.device.type, enabled=False):
        features = encoder(x)
    colors = token_colors(features._replace(tokens=_cpu(features.tokens)))
    if colors is None:
        if features.tokens is None:
            found.left.append("colours of tokens: the network gives none")
        else:
            rows, columns = features.grid
            found.left.append(f"colours of tokens: a grid of {rows} x {columns} shows nothing")
    weights = attention(encoder.backbone, x)
    if colors is None and weights is None:
        return None
    seen = _denormalised(x, encoder)
    if weights is None:
        return Tokens(seen, colors, None, 0, "")
    mean = weights[0].mean(1).float().cpu().numpy()
    return Tokens(seen, colors, mean, weights[0].shape[1], weights[1])


def _cpu(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float().cpu()


def _denormalised(x: Tensor, encoder: Encoder) -> list[Image.Image]:
    """Normalised images [B, C, S, S] as pictures."""
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in encoder.norm)
    pixels = ((x.float().cpu() * std + mean).clamp(0, 1) * 255).round().byte().numpy()
    return [_small(as_image(each)) for each in pixels]


def _small(image: Image.Image) -> Image.Image:
    if max(image.size) > SIDE:
        image.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
    return image


def _views(
    found: Look, record: Record, encoder: Encoder, batch: Batch, pictures: list[Picture]
) -> None:
    """All views of the recipe, by the code that makes them in training; hidden patches in gray."""
    try:
        recipe = methods.read_recipe(record.run.recipe)
    except SelfsameError as error:
        found.left.append(f"views: {error}")
        return
    views = make_views(
        recipe.views,
        batch,
        seed=recipe.seed,
        epoch=0,
        norm=encoder.norm,
        device="cpu",
        color=recipe.color,
    )
    hidden = _hidden(recipe, encoder, views, batch)
    shown: list[list[tuple[str, Image.Image]]] = [[] for _ in pictures]
    for name, stack in views.items():
        for v, x in enumerate(stack):
            label = f"{name} {v + 1}" if len(stack) > 1 else name
            if name in hidden:
                x, label = x * ~_enlarge(hidden[name][v], x), f"{label}, masked"
            for row, image in zip(shown, _denormalised(x, encoder), strict=True):
                row.append((label, image))
    found.views = [Views(p, row) for p, row in zip(pictures, shown, strict=True)]


def _hidden(
    recipe: Recipe, encoder: Encoder, views: dict[str, Tensor], batch: Batch
) -> dict[str, Tensor]:
    """Patches that the method hides, bool [V, B, N] for each name of views that it masks."""
    method, network = methods.find(recipe.method.name), encoder.backbone
    if method.taught or method.draw is Method.draw or "global" not in views:
        return {}
    shape, side = views["global"].shape[:2], views["global"].shape[-1]
    # masks may begin later in a run: this is how they look at its end
    drawn = method(recipe.method, network).draw(views, batch.index, seed=recipe.seed, epoch=LATE)
    keep, mask = (drawn[name].cpu() if name in drawn else None for name in ("keep", "mask"))
    if keep is not None and network.stride and keep.shape[:2] == shape:
        whole = torch.ones(*shape, (side // network.stride) ** 2, dtype=torch.bool)
        mask = whole.scatter(2, keep, False)
    return {"global": mask} if mask is not None and mask.shape[:2] == shape else {}


def _enlarge(mask: Tensor, x: Tensor) -> Tensor:
    """Masked patches [B, N] as pixels, bool [B, 1, S, S]."""
    side = round(mask.shape[1] ** 0.5)
    grid = mask.view(len(mask), 1, side, side).float()
    return F.interpolate(grid, size=x.shape[-2:]).bool()


def _classes(found: Look, encoder: Encoder, data: Any, scale: Scale) -> None:
    try:
        labelled = open_labelled(data)
        if len(labelled.train.classes or ()) < 2:
            return
        train_x, train_y = _bank(encoder, labelled.train, scale.images)
        test_x, test_y = _bank(encoder, labelled.test, scale.images)
    except SelfsameError as error:
        found.left.append(f"classes: {error}")
        return
    names = [str(name) for name in labelled.train.classes or ()]
    # the nearest is at most 1, so that no exponential overflows
    scores = knn_scores(train_x, train_y, test_x, K, TEMPERATURE, len(names))
    confusion = torch.zeros(len(names), len(names), dtype=torch.int64)
    places = (test_y, scores.argmax(1))
    confusion.index_put_(places, torch.ones_like(test_y), accumulate=True)
    how = labelled.how.partition(";")[0]
    if warning := seen(encoder, labelled.test):
        how += f"; {warning}"
    found.classes = Classes(names, confusion.numpy(), len(train_x), how)


def _bank(encoder: Encoder, source: Source, most: int) -> tuple[Tensor, Tensor]:
    """Unit features and labels of an evenly spaced part of a source."""
    part = Subset(source, np.array(spaced(len(source), most)))
    xs, ys = [], []
    with encoder.open(part, cache_bytes=0) as images:
        for batch, z in encoder.embed_batches(images, 128):
            assert batch.label is not None
            xs.append(F.normalize(z, dim=-1))
            ys.append(batch.label)
    return torch.cat(xs), torch.cat(ys)
