"""Dense probes: does a frozen token say what is at its place?

Each image is scaled to whole windows of the network's input size, the windows' tokens are put
together again, and two heads classify them: a linear one (as in DINOv2, arXiv 2304.07193, section
7.4) and nearest neighbours. Scores of classes are interpolated to the mask's own pixels, where
every pixel of the test part counts.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame.data.decode import decode, picture_size
from selfsame.data.masks import IGNORED, Masked, MaskedSource
from selfsame.data.picture import fitting
from selfsame.encoder import Encoder
from selfsame.errors import DataError, RunError, Unreadable, UsageError
from selfsame.evals.cache import Entry
from selfsame.evals.evaluator import Evaluator, Scores
from selfsame.evals.interval import bootstrap
from selfsame.evals.knn import knn_scores
from selfsame.evals.linear import L2, fit_logistic
from selfsame.evals.subject import Data, Subject, batch_size
from selfsame.nn.precision import unit

MOST_WINDOWS = 4  # along the shorter side, where their number is chosen from the images
FOLDS = 3  # of the training images, to choose the strength of the linear head


class Segment(Evaluator):
    """Linear and kNN segmentation on frozen tokens: the mean over classes of IoU.

    ``windows`` along the shorter side of an image; by default about as many as keep its pixels.
    Where the train part has more tokens than ``tokens``, evenly spaced ones are used.
    """

    title: ClassVar[str] = "linear mIoU"
    facts: ClassVar[frozenset[str]] = frozenset(
        {"segment_l2", "segment_windows", "segment_refused"}
    )

    windows: Annotated[int, Field(ge=1)] | None = None
    tokens: Annotated[int, Field(ge=100)] = 50_000
    k: Annotated[int, Field(ge=1)] = 20
    temperature: Annotated[float, Field(gt=0)] = 0.07
    l2s: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = L2
    seed: int = 0

    def __call__(self, subject: Subject, data: Data) -> Scores:
        """``segment`` is the linear head's mean IoU, ``segment_knn`` that of the neighbours."""
        if "tokens" not in subject.encoder.backbone.can:
            raise UsageError(
                "segment needs a network that returns tokens or a map, and this one gives one "
                "vector an image",
                tip="use a ViT or a convolutional network of selfsame, timm or torchvision",
            )
        masked = data.masked
        count = self.windows or windows_for(masked.train, subject.encoder.image_size)
        train = self._dense(subject, masked.train, count, len(masked.classes))
        test = self._dense(subject, masked.test, count, len(masked.classes))
        known = train.share.sum(1) > 0
        x, share, image = train.tokens[known], train.share[known], train.image[known]
        if len(x) > self.tokens:
            rows = torch.linspace(0, len(x) - 1, self.tokens).long()
            x, share, image = x[rows], share[rows], image[rows]
        absent = set(masked.classes) - {masked.classes[i] for i in share.sum(0).nonzero().flatten()}
        wanted = {masked.classes[i] for i in test.share.sum(0).nonzero().flatten()}
        if absent & wanted:
            raise DataError(
                f"class '{min(absent & wanted)}' is in masks of the test part and in none of the "
                "train part",
                tip="add such an image to the train part, or mark those pixels with 255",
            )
        std, mean = torch.std_mean(x, dim=0, correction=0)
        std = torch.where(std > 0, std, 1.0)
        l2 = self._strength((x - mean) / std, share, image)
        weight, bias = fit_logistic((x - mean) / std, share, l2, share.shape[1])
        linear = (test.tokens - mean) / std @ weight.T + bias
        centre = mean if subject.centred else 0.0
        votes = knn_scores(
            unit(x - centre),
            share.argmax(1),
            unit(test.tokens - centre),
            self.k,
            self.temperature,
            share.shape[1],
        )
        votes = votes / votes.sum(1, keepdim=True)
        found: Scores = {}
        for name, scores in (("segment", linear), ("segment_knn", votes)):
            tables = self._confusion(masked, test, scores)
            table = tables.sum(0)
            found |= {
                name: mean_iou(table),
                f"{name}_interval": interval(tables),
                f"{name}_accuracy": (table.diagonal().sum() / table.sum().clamp(min=1)).item(),
            }
            for each, value in zip(masked.classes, iou(table).tolist(), strict=True):
                if math.isfinite(value):
                    found[f"{name}_iou/{each}"] = value
        refused = len(masked.train) + len(masked.test) - len(train.kept) - len(test.kept)
        return found | {
            "segment_l2": l2,
            "segment_windows": count,
            "segment_refused": refused,
        }

    def _dense(self, subject: Subject, source: MaskedSource, count: int, classes: int) -> Dense:
        """Tokens of a part, and how much of each class lies under each."""
        entry = subject.computed(
            source, f"windows={count}", lambda: extract_windows(subject.encoder, source, count)
        )
        grid = entry["grid"]
        shares, images, kept = [], [], []
        for k, (i, (rows, columns)) in enumerate(
            zip(entry["index"].tolist(), grid.tolist(), strict=True)
        ):
            try:
                mask = torch.from_numpy(source.mask(i))
                check_size(source, i, mask)
            except Unreadable:  # left out, and counted
                mask = torch.full((1, 1), IGNORED)
            else:
                kept.append(k)
            shares.append(cell_shares(mask, rows, columns, classes))
            images.append(torch.full((rows * columns,), k))
        if not kept:
            raise DataError("no image has a readable mask", tip="open one in an image viewer")
        if not entry["tokens"].isfinite().all():
            raise RunError(
                "tokens are not finite", tip="the encoder has diverged: lower the learning rate"
            )
        return Dense(
            entry["tokens"].float(),
            torch.cat(shares),
            torch.cat(images),
            grid,
            entry["index"],
            kept,
        )

    def _strength(self, x: Tensor, share: Tensor, image: Tensor) -> float:
        """The L2 strength with the best mean IoU of tokens on held-out training images."""
        pictures = torch.tensor(sorted(set(image.tolist())))
        if len(self.l2s) == 1 or len(pictures) < 2:
            return self.l2s[0] if len(self.l2s) == 1 else sorted(self.l2s)[len(self.l2s) // 2]
        generator = torch.Generator().manual_seed(self.seed)
        fold = torch.empty(int(pictures.max()) + 1, dtype=torch.int64)
        fold[pictures[torch.randperm(len(pictures), generator=generator)]] = torch.arange(
            len(pictures)
        ) % min(FOLDS, len(pictures))
        classes = share.shape[1]
        tables = {l2: torch.zeros(classes, classes) for l2 in sorted(self.l2s, reverse=True)}
        for k in range(min(FOLDS, len(pictures))):
            held = fold[image] == k
            start = None
            for l2, table in tables.items():
                start = fit_logistic(x[~held], share[~held], l2, classes, start)
                guess = F.one_hot((x[held] @ start[0].T + start[1]).argmax(1), classes)
                table += share[held].T @ guess.to(share)
        return max(tables, key=lambda l2: mean_iou(tables[l2]))

    def _confusion(self, masked: Masked, test: Dense, scores: Tensor) -> Tensor:
        """Pixels by true and guessed class of each test image: float64 [M, C, C]."""
        tables = []
        sizes = test.grid.prod(1)
        parts = torch.split(scores, sizes.tolist())
        for k in test.kept:
            rows, columns = test.grid[k].tolist()
            mask = torch.from_numpy(masked.test.mask(int(test.index[k])))
            guess = spread_argmax(parts[k].T.reshape(-1, rows, columns), mask.shape)
            tables.append(confusion(mask, guess, scores.shape[1]))
        return torch.stack(tables)


class Dense(NamedTuple):
    """Tokens of all images of a part, one below the other."""

    tokens: Tensor  # float32 [T, D]
    share: Tensor  # float32 [T, C]: parts of a token's pixels; all 0 where none counts
    image: Tensor  # int64 [T]: row of ``index`` that a token is of
    grid: Tensor  # int64 [M, 2]: rows and columns of the tokens of each image
    index: Tensor  # type: ignore[assignment]  # int64 [M]: images that could be read
    kept: list[int]  # rows of ``index`` whose masks could be read


def windows_for(source: MaskedSource, size: int) -> int:
    """Windows of ``size`` pixels along the shorter side that keep about the images' pixels."""
    sides = []
    for i in range(len(source)):
        try:
            sides.append(min(picture_size(source.read(i))))
        except (Unreadable, OSError):
            continue
    middle = statistics.median(sides) if sides else size
    return min(MOST_WINDOWS, max(1, round(middle / size)))


@torch.inference_mode()
def extract_windows(encoder: Encoder, source: MaskedSource, count: int) -> Entry:
    """Tokens of whole images, window by window, put together row by row.

    Returns:
        ``tokens``, float32 [T, D], image by image; ``grid``, int64 [M, 2]; ``index``, int64 [M],
        the images that can be read.
    """
    found: dict[str, list[Tensor]] = {"tokens": [], "grid": [], "index": []}
    at_once = batch_size(encoder.image_size)
    for i, windows in _windows(encoder, source, count):
        rows, columns = windows.shape[:2]
        flat = windows.flatten(0, 1).to(encoder.device)
        with encoder.judging():
            parts = [encoder(part) for part in torch.split(flat, at_once)]
        height, width = parts[0].grid
        tokens = torch.cat([part.tokens for part in parts if part.tokens is not None]).float()
        tokens = tokens.reshape(rows, columns, height, width, -1)
        whole = tokens.permute(0, 2, 1, 3, 4).flatten(0, 3)  # [rows * h, columns * w] by rows
        found["tokens"].append(whole.cpu())
        found["grid"].append(torch.tensor([rows * height, columns * width]))
        found["index"].append(torch.tensor(i))
    if not found["index"]:
        raise DataError(
            f"none of the {len(source)} images is readable",
            tip="open one of them in an image viewer; are they complete, and in a known format?",
        )
    return {
        "tokens": torch.cat(found["tokens"]),
        "grid": torch.stack(found["grid"]),
        "index": torch.stack(found["index"]),
    }


def _windows(encoder: Encoder, source: MaskedSource, count: int) -> Iterator[tuple[int, Tensor]]:
    """Normalised windows [rows, columns, C, S, S] of each readable image, and its index."""
    size = encoder.image_size
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in encoder.norm)

    def read(i: int) -> Tensor | None:
        try:
            data = source.read(i)
            height, width = picture_size(data)
            rows = max(1, round(count * height / min(height, width)))
            columns = max(1, round(count * width / min(height, width)))
            pixels = decode(
                data,
                canvas=2 * size * max(rows, columns),
                channels=encoder.channels,
                levels=encoder.levels,
            )
        except (Unreadable, OSError):
            return None
        if pixels.shape[1:] != fitting((height, width), 2 * size * max(rows, columns)):
            raise DataError(
                f"{source.name(i)} is turned by its EXIF orientation, and its mask is not",
                tip="save the image upright, or leave it out",
            )
        x = torch.from_numpy(pixels.astype(np.float32))[None]
        x = F.interpolate(x, (rows * size, columns * size), mode="bicubic", antialias=True)[0]
        x = (x.clamp(0, 255) / 255 - mean) / std
        return x.reshape(-1, rows, size, columns, size).permute(1, 3, 0, 2, 4)

    with ThreadPoolExecutor(2) as pool:
        ahead = 8  # images in memory at once
        for start in range(0, len(source), ahead):
            chunk = range(start, min(start + ahead, len(source)))
            for i, windows in zip(chunk, pool.map(read, chunk), strict=True):
                if windows is not None:
                    yield i, windows


def check_size(source: MaskedSource, i: int, mask: Tensor) -> None:
    """Refuse a mask of another size than its image.

    Raises:
        DataError: with both sizes.
    """
    height, width = picture_size(source.read(i))
    if (height, width) != tuple(mask.shape):
        raise DataError(
            f"the mask of {source.name(i)} is {mask.shape[1]}x{mask.shape[0]} px and the image "
            f"{width}x{height}",
            tip="save each mask in the size of its image, without interpolating the classes",
        )


def cell_shares(mask: Tensor, rows: int, columns: int, classes: int) -> Tensor:
    """How much of each class lies in each cell of a grid over a mask.

    A cell in which most pixels do not count is left out: zeros.

    Args:
        mask: int64 [H, W], ``IGNORED`` where a pixel does not count.
        rows: Of the grid.
        columns: Of the grid.
        classes: C.

    Returns:
        float32 [rows * columns, C], each row of sum 1 or 0. Grids finer than the mask repeat it.
    """
    height, width = mask.shape
    if height < rows or width < columns:
        mask = F.interpolate(
            mask[None, None].double(), (max(height, rows), max(width, columns)), mode="nearest"
        )[0, 0].long()
        height, width = mask.shape
    cell = (torch.arange(height) * rows // height)[:, None] * columns
    cell = cell + torch.arange(width) * columns // width
    counts = (cell * (classes + 1) + mask + 1).flatten()  # column 0: pixels that do not count
    table = counts.bincount(minlength=rows * columns * (classes + 1)).float()
    table = table.reshape(rows * columns, classes + 1)
    valid = table[:, 1:].sum(1, keepdim=True)
    return torch.where(valid >= table[:, :1], table[:, 1:] / valid.clamp(min=1), 0.0)


def spread_argmax(scores: Tensor, size: Any) -> Tensor:
    """The class with the best score at each pixel, scores interpolated one class at a time.

    Args:
        scores: [C, rows, columns].
        size: Height and width of the result.

    Returns:
        int64 [H, W].
    """
    best = torch.full(tuple(size), -torch.inf)
    guess = torch.zeros(tuple(size), dtype=torch.int64)
    for k, each in enumerate(scores.float().cpu()):
        wide = F.interpolate(each[None, None], tuple(size), mode="bilinear")[0, 0]
        better = wide > best
        best, guess = torch.where(better, wide, best), guess.masked_fill(better, k)
    return guess


def confusion(mask: Tensor, guess: Tensor, classes: int) -> Tensor:
    """Pixels by true (row) and guessed (column) class: float64 [C, C]."""
    valid = mask != IGNORED
    counts = (mask[valid] * classes + guess[valid]).bincount(minlength=classes**2)
    return counts.reshape(classes, classes).double()


def interval(tables: Tensor) -> tuple[float, float]:
    """The interval of the mean IoU over test images, from one confusion each, [M, C, C]."""
    return bootstrap(lambda index: mean_iou(tables[index].sum(0)), len(tables))


def iou(table: Tensor) -> Tensor:
    """Intersection over union of each class, [C]; NaN where it is neither there nor guessed."""
    both = table.diagonal()
    return both / (table.sum(0) + table.sum(1) - both)


def mean_iou(table: Tensor) -> float:
    """Mean of `iou` over the classes that are there or guessed."""
    return iou(table).nanmean().item()
