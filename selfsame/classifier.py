"""A classifier from a handful of labels on a frozen encoder, and what it predicts.

The classifier becomes the encoder's head: they are saved, loaded and exported together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from selfsame.data import Labelled, open_labelled, open_parts
from selfsame.encoder import CARD, HEAD, Encoder, images_of, load
from selfsame.errors import DataError, UsageError, unknown
from selfsame.evals.check import check_features
from selfsame.evals.interval import bootstrap_interval
from selfsame.evals.linear import ENOUGH, FOLDS, L2, fit_probe, stratified_folds
from selfsame.evals.subject import extract
from selfsame.files import atomic
from selfsame.nn.classify import KINDS, KNN, Classifier, Linear
from selfsame.types import Source

K, TEMPERATURE = 20, 0.07  # of the kNN classifier: the headline's of `evaluate`
ENOUGH_TO_JUDGE = 30  # held-out images: with fewer an accuracy says next to nothing
ENOUGH_TO_CALIBRATE = 100  # held-out images from which one number, the temperature, is learnt
BINS = 15  # of the calibration error
# kept of the encoder's card
TRAINED = ("method", "recipe", "data", "labels", "step", "steps", "evaluation")


class Fitted(NamedTuple):
    """A classifier that was fitted, and how good it is."""

    encoder: Encoder  # with the classifier as its head
    kind: str
    images: int  # labelled, that it was fitted on
    classes: tuple[str, ...]
    held_out: int  # images that it was judged on
    how: str  # where those come from
    accuracy: float | None  # on them; None where they are too few to say
    interval: tuple[float, float] | None  # 95 %, over the images
    majority: float  # share of the most frequent class: the accuracy without looking
    temperature: float | None  # that calibrates the probabilities; None where they are not
    calibration_error: float | None  # of the probabilities of the held-out images
    refused: list[str]  # images that cannot be read


class Prediction(NamedTuple):
    """What the classifier says of an image."""

    path: str
    label: str | None  # the class; None where the image cannot be read
    probability: float | None
    probabilities: dict[str, float]  # of all classes
    error: str | None  # why it cannot be read


def classify(
    model: str | Path | nn.Module,
    data: Any,
    out: str | Path | None = None,
    *,
    kind: str = "linear",
    k: int = K,
    seed: int = 0,
    device: str | None = None,
) -> Fitted:
    """Fit a classifier on the features of labelled images, and say how good it is.

    "linear" is the logistic regression of ``evaluate``, its strength chosen on held-out parts of
    the training data; "knn" the vote of the k nearest labelled images. Where the data has a test
    part of its own, that part judges. Otherwise each fifth of the data is classified by what was
    fitted on the rest, and the classifier that is returned is fitted on all of it. From 100 such
    images on, the linear classifier's probabilities are calibrated by one temperature (Guo et al.,
    arXiv 1706.04599), which changes no prediction.

    Args:
        model: what ``selfsame.load`` takes.
        data: labelled images: what ``evaluate`` takes.
        out: the folder to write, an encoder with a classifier; complete or absent.
        kind: "linear" or "knn".
        k: neighbours of "knn"; all, where there are fewer images.
        seed: of the fifths.
        device: where to compute.

    Raises:
        UsageError: a value that cannot be used, or an output that cannot be written.
        DataError: no labels, or one class only.
        RunError: features that are not finite.
    """
    if kind not in KINDS:
        raise unknown("kind", kind, KINDS)
    if k < 1:
        raise UsageError(f"k is {k}", tip="it is a number of neighbours, 1 or more")
    if out is not None:
        _check_output(Path(out))
    train, test = _open(data)
    encoder = load(model, device=device)
    classes = tuple(map(str, train.classes or ()))
    refused: list[str] = []
    x, y = _features(encoder, train, refused)
    own = None if test is None else _features(encoder, test, refused)
    check_features(x, y, *(own or (x, y)))
    if y.min() == y.max():
        raise DataError(
            f"all images are of one class ('{classes[int(y[0])]}')",
            tip="give images of two classes or more",
        )

    across = _across(x, y, kind, k, len(classes), seed)
    temperature = None
    if kind == "linear" and len(across[1]) >= ENOUGH_TO_CALIBRATE:
        temperature = fit_temperature(*across)
    head = fit(x, y, kind, k, len(classes), seed, temperature or 1.0)
    if own is None:
        scores, truth = across
        scores = scores / (temperature or 1.0)
        how = "each by what was fitted on the other parts of the data"
    else:
        scores, truth = head(own[0]), own[1]
        how = "the data's own test part"
    classifier = Encoder(
        encoder.backbone,
        config=encoder.config,
        image_size=encoder.image_size,
        channels=encoder.channels,
        norm=encoder.norm,
        levels=encoder.levels,
        card=encoder.card,
        head=head.to(encoder.device),
        classes=classes,
    ).eval()
    enough = len(truth) >= ENOUGH_TO_JUDGE
    accuracy = (scores.argmax(1) == truth).double().mean().item() if enough else None
    judged = truth if len(truth) else y
    fitted = Fitted(
        classifier,
        kind,
        len(y),
        classes,
        len(truth),
        how,
        accuracy,
        None if accuracy is None else bootstrap_interval(accuracy, len(truth)),
        judged.bincount().max().item() / len(judged),
        temperature,
        calibration_error(scores, truth) if enough else None,
        refused,
    )
    if out is not None:
        _save(fitted, Path(out), train)
    return fitted


def fit(
    x: Tensor, y: Tensor, kind: str, k: int, classes: int, seed: int, temperature: float = 1.0
) -> Classifier:
    """The classifier of some features [N, D] with labels int64 [N]; standardisation folded in."""
    if kind == "knn":
        return KNN(x, y, classes, k, TEMPERATURE)
    probe = fit_probe(x, y, L2, seed)
    head = Linear(x.shape[1], classes)
    weight = probe.weight / probe.std
    bias = probe.bias - weight @ probe.mean
    with torch.no_grad():
        # a class without an image has no row in the fit, and never wins
        head.weight.zero_()
        head.bias.fill_(-1e4)
        head.weight[: len(weight)] = weight / temperature
        head.bias[: len(bias)] = bias / temperature
    return head.requires_grad_(False)


def _across(
    x: Tensor, y: Tensor, kind: str, k: int, classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Scores [m, C] of images by what was fitted without them, and their labels [m].

    Of a large data set as many fifths as give 5,000 images; none of a class with one image.
    """
    fold = stratified_folds(y, seed)
    scores, truth = [x.new_zeros(0, classes)], [y[:0]]
    for part in range(min(FOLDS, -(-ENOUGH * FOLDS // len(x)))):
        held = fold == part
        if held.any() and y[~held].min() < y[~held].max():
            head = fit(x[~held], y[~held], kind, k, classes, seed)
            scores.append(head(x[held]))
            truth.append(y[held])
    return torch.cat(scores), torch.cat(truth)


def fit_temperature(scores: Tensor, y: Tensor) -> float:
    """The T for which ``softmax(scores / T)`` makes the labels most likely.

    Source: Guo et al., arXiv 1706.04599, section 4.2. The negative log-likelihood is convex in
    1 / T, so its minimum lies where the sign of the slope changes.

    Args:
        scores: [N, C] of images that the classifier was not fitted on.
        y: int64 [N].
    """
    wide = scores.double()
    own = wide.gather(1, y[:, None])[:, 0].mean()
    low, high = 1e-2, 1e2  # of 1 / T
    for _ in range(60):
        middle = (low * high) ** 0.5
        slope = (wide * (wide * middle).softmax(1)).sum(1).mean() - own
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(1 / (low * high) ** 0.5)


def calibration_error(scores: Tensor, y: Tensor) -> float:
    """Expected calibration error: |accuracy - confidence| over 15 bins of confidence.

    Source: Guo et al., arXiv 1706.04599, equation 3.
    """
    confidence, guess = scores.softmax(1).double().max(1)
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    gap = torch.zeros(BINS, dtype=torch.float64)
    gap.index_add_(0, place.cpu(), ((guess == y).double() - confidence).cpu())
    return gap.abs().sum().item() / len(y)


def predict(
    classifier: str | Path | nn.Module,
    images: Any,
    *,
    device: str | None = None,
    batch_size: int = 256,
) -> list[Prediction]:
    """What a classifier says of images, in order; those that cannot be read say why.

    Args:
        classifier: what ``classify`` wrote, or any encoder with a classifier that
            ``selfsame.load`` takes.
        images: what ``Encoder.embed`` takes.
        device: where to compute.
        batch_size: images a forward pass.

    Raises:
        UsageError: the encoder has no classifier.
        DataError: not one image can be read.
    """
    return list(predictions(classifier, images, device=device, batch_size=batch_size))


def predictions(
    classifier: str | Path | nn.Module,
    images: Any,
    *,
    device: str | None = None,
    batch_size: int = 256,
) -> Iterator[Prediction]:
    """`predict` one after the other, for more images than fit in memory."""
    encoder = load(classifier, device=device)
    if encoder.head is None:
        name = classifier if isinstance(classifier, str | Path) else type(classifier).__name__
        raise UsageError(
            f"{name} has no classifier",
            tip="fit one on labelled images: selfsame classify MODEL LABELLED -o classifier/",
        )
    width = encoder.head(torch.zeros(1, encoder.dim, device=encoder.device)).shape[1]
    classes = encoder.classes or tuple(str(c) for c in range(width))
    with images_of(images, encoder) as opened:
        source = opened.source
        for start in range(0, len(opened), batch_size):
            last = min(start + batch_size, len(opened))
            rows: dict[int, Prediction] = {}
            for batch in opened.readable(batch_size, start, last):
                share = encoder.scores(batch.images, batch.sizes).softmax(1).cpu()
                for i, values in zip(batch.index.tolist(), share.tolist(), strict=True):
                    rows[i] = _prediction(source.name(i), classes, values)
            for bad in opened.bad:
                if start <= bad.index < last:
                    rows[bad.index] = Prediction(bad.name, None, None, {}, bad.reason)
            yield from (rows[i] for i in sorted(rows))


def _prediction(path: str, classes: Sequence[str], values: list[float]) -> Prediction:
    best = max(range(len(values)), key=values.__getitem__)
    named = dict(zip(classes, values, strict=True))
    return Prediction(path, classes[best], values[best], named, None)


def _open(data: Any) -> tuple[Source, Source | None]:
    """Labelled images, and the test part where the data has one of its own."""
    if isinstance(data, Labelled):
        return data.train, data.test
    parts = open_parts(data)
    if len(parts) > 1:
        found = open_labelled(data)
        return found.train, found.test
    (source,) = parts.values()
    if source.labels is None:
        open_labelled(data)  # says what is missing
        raise DataError("the data has no labels", tip="one folder a class, or a list with labels")
    return source, None


def _features(encoder: Encoder, source: Source, refused: list[str]) -> tuple[Tensor, Tensor]:
    """Features [n, D] and labels [n] of the readable images, on the CPU."""
    found = extract(encoder, source)
    good = set(found["index"].tolist())
    refused += [source.name(i) for i in range(len(source)) if i not in good]
    assert source.labels is not None
    return found["pooled"], torch.from_numpy(source.labels)[found["index"]]


def _check_output(out: Path) -> None:
    """Refuse to write over anything but a classifier."""
    if out.is_dir() and any(out.iterdir()) and not ((out / HEAD).exists() and _no_run(out)):
        raise UsageError(
            f"{out} exists and is not a classifier", tip="name a new folder: -o classifier"
        )
    if out.is_file():
        raise UsageError(f"{out} is a file", tip="name a new folder: -o classifier")


def _no_run(folder: Path) -> bool:
    return (folder / CARD).exists() and not (folder / "recipe.toml").exists()


def _save(fitted: Fitted, out: Path, train: Source) -> None:
    """Write the encoder with its classifier, in one go."""
    kept = {key: fitted.encoder.card[key] for key in TRAINED if key in fitted.encoder.card}
    facts = {
        key: value
        for key, value in fitted._asdict().items()
        if key not in ("encoder", "classes", "refused")
    }
    try:
        with atomic(out) as temporary:
            temporary.mkdir()
            fitted.encoder.save(
                temporary, **kept, classifier={**facts, "data": train.fingerprint()}
            )
    except OSError as error:
        raise UsageError(
            f"cannot write {out}: {error.strerror or error}",
            tip="name a folder inside one that exists and that you may write to",
        ) from None
