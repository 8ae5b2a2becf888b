"""Whether a library computes from an export what the encoder computes, on real images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from selfsame.data import Subset, open_source
from selfsame.data.order import spaced
from selfsame.data.sample import sample
from selfsame.encoder import Encoder
from selfsame.errors import DataError, RunError, SelfsameError
from selfsame.evals import Data
from selfsame.formats.format import Format, Reading, tensors
from selfsame.formats.reader import digests
from selfsame.types import Source

IMAGES = 8  # that are compared


class Difference(NamedTuple):
    """How far what the library computes is from what the encoder computes."""

    what: str
    on: str  # which input
    largest: float  # absolute difference
    scale: float  # largest absolute value of the encoder's

    @property
    def relative(self) -> float:
        """Difference over scale; infinite where it is no number."""
        share = self.largest / max(self.scale, 1e-30)
        return share if share == share else float("inf")


class Own(NamedTuple):
    """The library's own preprocessing, beside ours."""

    mean: float  # difference of pixels in levels of 255
    largest: float
    cosine: float  # of the pooled features: the smallest over the images


class Findings(NamedTuple):
    """What reading an export back has shown."""

    version: str  # of the library
    images: str  # that were compared, in words
    differences: tuple[Difference, ...]
    own: Own | None  # None where the library has no preprocessing or cannot read the pictures
    outputs: Mapping[str, np.ndarray]  # what the library computed

    def facts(self) -> dict[str, Any]:
        """The same as plain values."""
        return {
            "library": self.version,
            "images": self.images,
            "differences": [each._asdict() for each in self.differences],
            "own_preprocessing": None if self.own is None else self.own._asdict(),
        }


class Sample(NamedTuple):
    """Real images."""

    x: Tensor  # float32 [B, C, S, S], as the encoder sees them
    source: Source  # of these images alone
    readable: list[int]  # positions in it
    words: str


def real_images(
    encoder: Encoder, data: Any = None, fallback: Any = None, count: int = IMAGES
) -> Sample:
    """Images to compare on: of ``data``, of ``fallback`` where it is there, else our own sample.

    There are ``count`` or fewer, evenly spaced.

    Raises:
        DataError: none can be read as the encoder wants them.
    """
    if data is not None:
        return _some(encoder, Data(data).images, count, "of the data")
    if fallback is not None:
        with suppress(SelfsameError, OSError):
            return _some(encoder, open_source(fallback), count, "of the run's training data")
    try:
        return _some(encoder, sample().test, count, "of the CIFAR-10 sample in selfsame")
    except DataError:
        raise DataError(
            f"no images of {encoder.channels} channels to check the export on",
            tip="give some: --data IMAGES",
        ) from None


def verify(
    kind: Format,
    encoder: Encoder,
    reading: Reading,
    folder: Path,
    images: Sample,
    tolerance: float | None = None,
) -> Findings:
    """Read an export in a new process and compare, by the format's tolerance or another one.

    Raises:
        RunError: it cannot be read, or what comes out differs by more than the tolerance.
    """
    given = {"x": images.x, "one": images.x[:1]}  # a batch of one is what many users have
    if reading.other is not None:
        shape = (2, encoder.channels, reading.other, reading.other)
        given["other"] = F.interpolate(images.x[:2], shape[2:], mode="bilinear")
    found = _read(kind, reading, folder, given, images)
    version = f"{kind.library} {found.pop('version')}"
    tolerance = kind.tolerance if tolerance is None else tolerance
    words = f"{len(images.readable)} images {images.words}"
    if not reading.use:
        differences = tuple(_bits(encoder, found))
    else:
        differences = tuple(_compare(encoder, reading, given, found))
    for difference in differences:
        if difference.relative > tolerance:
            raise RunError(
                f"{version} computes other {difference.what} than the encoder: they differ by "
                f"{difference.largest:.2g}, of values up to {difference.scale:.2g} (tolerance "
                f"{tolerance:g} of that); nothing was written",
                tip="please report this network; onnx or torch-export may do meanwhile",
            )
    own = _own(encoder, images, found) if "own.x" in found else None
    return Findings(version, words, differences, own, found)


def at(reading: Reading, folder: Path) -> Reading:
    """A reading with its folder filled in."""
    place = json.dumps(folder.as_posix(), ensure_ascii=False)[1:-1]
    fill = [[line.replace("{at}", place) for line in lines] for lines in reading[:2]]
    transform = [line.replace("{at}", place) for line in reading.transform]
    return reading._replace(load=fill[0], use=fill[1], transform=transform)


def _some(encoder: Encoder, source: Source, count: int, words: str) -> Sample:
    few = Subset(source, np.array(spaced(len(source), count)))
    with encoder.open(few, cache_bytes=0) as images:
        batches = list(images.readable(count))
    if not batches:
        raise DataError("not one of the images that were tried can be read", tip="give others")
    batch = batches[0]
    x = encoder.view(batch.images, batch.sizes).contiguous()
    return Sample(x, few, batch.index.tolist(), words)


def _read(
    kind: Format, reading: Reading, folder: Path, given: Mapping[str, Tensor], images: Sample
) -> dict[str, np.ndarray]:
    """What the library computes, in a new process."""
    with TemporaryDirectory(prefix="selfsame-") as name:
        place = Path(name)
        filled = at(reading, folder.absolute())
        np.savez(place / "given.npz", **{key: x.numpy() for key, x in given.items()})  # type: ignore[arg-type]
        pictures = _pictures(images, place) if reading.transform else []
        job = {
            "load": "\n".join(filled.load),
            "use": "\n".join(filled.use),
            "transform": "\n".join(filled.transform),
            "arrays": reading.arrays,
            "outputs": list(reading.outputs),
            "pictures": pictures,
            "library": kind.library,
        }
        (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
        run_apart(place, kind.library)
        with np.load(place / "found.npz") as found:
            return dict(found)


def run_apart(place: Path, library: str) -> None:
    """Run ``reader`` in a new process, from its text: no module of ours is in its way."""
    text = files("selfsame").joinpath("formats/reader.py").read_text("utf-8")
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(
        [sys.executable, "-c", text, str(place)],
        capture_output=True,
        text=True,
        cwd=place,
        env=os.environ | offline,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RunError(
            f"{library} cannot read what was written: {last}; nothing was written",
            tip="please report this network; onnx or torch-export may do meanwhile",
        )


def _pictures(images: Sample, place: Path) -> list[str]:
    """The pictures as files that Pillow opens; none where one is no such picture."""
    names = []
    for i in images.readable:
        raw = images.source.read(i)
        name = f"{i}.picture"
        if isinstance(raw, bytes):
            (place / name).write_bytes(raw)
        elif raw.dtype == np.uint8 and (raw.ndim == 2 or raw.shape[-1] in (1, 3)):
            Image.fromarray(raw.squeeze(-1) if raw.shape[-1] == 1 else raw).save(
                place / name, "PNG"
            )
        else:
            return []
        names.append(name)
    return names


def _compare(
    encoder: Encoder, reading: Reading, given: Mapping[str, Tensor], found: Mapping[str, np.ndarray]
) -> list[Difference]:
    result = []
    for key, x in given.items():
        wanted = computed(encoder, x)
        for output in reading.outputs:
            a, b = torch.from_numpy(found[f"{key}.{output}"]), wanted[output]
            on = {"x": f"{len(x)} images", "one": "one alone", "other": f"at {x.shape[-1]} px"}[key]
            if a.shape != b.shape:
                raise RunError(
                    f"{output} ({on}) have the shape {list(a.shape)}, not {list(b.shape)}; "
                    "nothing was written",
                    tip="please report this network",
                )
            result.append(Difference(output, on, _largest(a - b), _largest(b)))
    return result


def computed(encoder: Encoder, x: Tensor) -> dict[str, Tensor]:
    """Pooled, tokens and scores of normalised images, as there are."""
    with encoder.judging(), torch.no_grad():
        features = encoder.backbone(x)
        found = {"pooled": features.pooled}
        if features.tokens is not None:
            found["tokens"] = features.tokens
        if encoder.head is not None:
            found["scores"] = encoder.head(features.pooled)
    return {name: value.float() for name, value in found.items()}


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the rows of two tensors, however small the rows are: [B]."""
    return F.cosine_similarity(a.double(), b.double(), dim=1, eps=1e-30)


def _bits(encoder: Encoder, found: Mapping[str, np.ndarray]) -> list[Difference]:
    """Whether every tensor came back bit by bit."""
    parts: dict[str, Any] = {"state": tensors(encoder.backbone.state_dict())}
    if encoder.head is not None:
        parts["head"] = tensors(encoder.head.state_dict())
    wanted = digests(parts)
    wrong = sum(str(found.get(key)) != value for key, value in wanted.items())
    wrong += len(set(found) - set(wanted))
    return [Difference(f"{len(wanted)} tensors", "", float(wrong), 1.0)]


def _own(encoder: Encoder, images: Sample, found: Mapping[str, np.ndarray]) -> Own:
    ours, theirs = images.x, torch.from_numpy(found["own.x"])
    deviation = torch.tensor(encoder.norm.std)[:, None, None]
    levels = ((ours - theirs) * deviation * 255).abs()
    wanted = computed(encoder, ours)["pooled"]
    cosine = cosines(wanted, torch.from_numpy(found["own.pooled"]))
    return Own(levels.mean().item(), levels.max().item(), cosine.min().item())


def _largest(x: Tensor) -> float:
    """The largest absolute value; NaN where one is."""
    return x.abs().max().item() if x.numel() else 0.0
