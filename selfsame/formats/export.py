"""The verb ``export``: write, read back, compare, then move into place."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, from_numpy, nn

from selfsame import formats
from selfsame.console import Console
from selfsame.encoder import EXPORT, Encoder, load
from selfsame.errors import DataError, RunError, UsageError
from selfsame.evals import Data, Subject
from selfsame.evals.knn import KNN
from selfsame.files import atomic, refused
from selfsame.formats.card import describe, facts_of, readme
from selfsame.formats.check import Findings, Sample, at, computed, cosines, real_images, verify
from selfsame.formats.format import Format, Reading
from selfsame.formats.preprocess import Preprocess
from selfsame.run import RunDirectory

CALIBRATION = 256  # images whose activations give an int8 model its scales


@dataclass(frozen=True)
class Export:
    """What was written, and how to load it."""

    folder: Path
    load: Sequence[str]  # lines of Python, from the file to the model
    use: Sequence[str]  # lines of Python that take features of ``x``
    findings: Findings  # of the check
    int8: Mapping[str, float] | None = None  # of the quantised model, where there is one


def export(
    model: str | Path | nn.Module,
    format: str,
    out: str | Path | None = None,
    *,
    data: Any = None,
    int8: bool = False,
    weights: str | Path | None = None,
    backbone: nn.Module | None = None,
    image_size: int | None = None,
    channels: int = 3,
    overwrite: bool = False,
    quiet: bool = False,
) -> Export:
    """Write a model for another library, and check that it computes the same there.

    The folder is complete or absent, and is there only where the library read it back in a process
    of its own and came to the same features on real images.

    Args:
        model: what ``selfsame.load`` takes: a run, an exported encoder, a ``timm/NAME``, a module.
        format: one of ``selfsame.formats.FORMATS``, or ``module:Class``.
        out: the folder to write; by default ``NAME-FORMAT`` in the current one.
        data: images to compare on; with labels, also to score an int8 model by. By default those
            that the run was trained on, else a sample that ships with selfsame.
        int8: onnx only: also write a model with weights of 8 bits, and score it beside the other.
        weights: a file of weights for a named network.
        backbone: the network, where a run trained a module of the user's.
        image_size: input side, pixels, for a named network or a module.
        channels: of the images, for a named network or a module.
        overwrite: replace an export that lies at ``out``.
        quiet: say nothing on the terminal.

    Raises:
        UsageError: an unknown format, a missing package, a network that the library cannot
            express, an ``out`` that cannot be used.
        RunError: the library does not read it back, or computes something else.
    """
    kind = formats.find(format)()
    if int8 and kind.name != "onnx":
        raise UsageError(
            f"int8 is for onnx, not for {kind.name}",
            tip="selfsame export MODEL --format onnx --int8",
        )
    kind.available()
    folder = _place(model, kind, out, overwrite)
    if isinstance(model, nn.Module):
        model = copy.deepcopy(model)  # it is moved to the CPU
    encoder = load(
        model,
        device="cpu",
        weights=weights,
        image_size=image_size,
        channels=channels,
        backbone=copy.deepcopy(backbone),
    )
    formats.check_network(kind, encoder)
    console = Console(quiet=quiet)
    facts, pre = facts_of(encoder, model), Preprocess.of(encoder)
    name = f"{model}: " if isinstance(model, str | Path) else ""
    head = f", {encoder.head.facts()['kind']} classifier" if encoder.head is not None else ""
    console.say(
        f"model      {name}{facts['network']}, {encoder.dim} features{head}, images of "
        f"{pre.size} px with {pre.channels} channel{'s' * (pre.channels > 1)}"
    )
    trained_on = _training_data(model)
    images = real_images(encoder, data, trained_on)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic(folder) as temporary:
            temporary.mkdir()
            reading = kind.write(encoder, temporary)
            console.say(f"format     {'; '.join((kind.name, *reading.notes))}")
            findings = verify(kind, encoder, reading, temporary, images)
            console.say(
                f"read       by {findings.version} in a new process, on {findings.images}",
                *describe(kind, reading, findings),
            )
            small = None
            if int8:
                seen = real_images(encoder, data, trained_on, CALIBRATION).x
                small = _quantised(kind, encoder, reading, temporary, images, seen, data)
            words = [] if small is None else _int8_words(small)
            if words:
                console.say(*(f"int8       {line}" for line in words))
            facts["format"] = kind.name
            facts["check"] = {"tolerance": kind.tolerance, **findings.facts()}
            if small is not None:
                facts["int8"] = dict(small)
            _write(temporary / EXPORT, json.dumps(facts, indent=2) + "\n")
            card = readme(kind, reading, findings, facts, pre, words)
            _write(temporary / "README.md", card)
            listed = _listing(temporary)
    except OSError as error:
        raise refused(str(folder), error, "write it again") from error
    console.say(f"saved      {folder}: {listed}; README.md waits for your licence")
    if reading.use:
        shape = f"[B, {pre.channels}, {pre.size}, {pre.size}]"
        console.say(f"load       x is float32 {shape}, preprocessed as README.md says:")
    filled = at(reading, folder)
    return Export(folder, filled.load, filled.use, findings, small)


def _place(model: Any, kind: Format, out: str | Path | None, overwrite: bool) -> Path:
    """The folder to write, which is free or holds an export that may go."""
    if out is None:
        name = str(model).rstrip("/").split("/")[-1] if isinstance(model, str | Path) else "model"
        out = f"{name or 'model'}-{kind.name}"
    folder = Path(out)
    if folder.is_file():
        raise UsageError(f"{folder} is a file", tip="name a folder: an export is several files")
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / EXPORT).is_file():
            raise UsageError(f"{folder} is not empty", tip="name a new folder with -o")
        if not overwrite:
            raise UsageError(
                f"{folder} holds an export already", tip="--overwrite replaces it, -o names another"
            )
    return folder


def _training_data(model: Any) -> list[str] | None:
    """Where the images are that a run was trained on, if it says so."""
    if not isinstance(model, str | Path) or not (Path(model) / "run.json").is_file():
        return None
    found: list[str] | None = RunDirectory(model).info().get("data", {}).get("paths")
    return found


def _quantised(
    kind: Format,
    encoder: Encoder,
    reading: Reading,
    folder: Path,
    images: Sample,
    seen: Tensor,
    data: Any,
) -> dict[str, float]:
    """Write the int8 model beside the float one; sizes, cosines and, with labels, accuracies."""
    from selfsame.formats.onnx import FILE, INT8, OnnxBackbone, quantise

    small = quantise(folder, seen)
    load = [line.replace(FILE, INT8) for line in reading.load]
    reading = reading._replace(load=load, transform=())
    found = verify(kind, encoder, reading, folder, images, tolerance=float("inf"))
    pooled = from_numpy(found.outputs["x.pooled"])
    wanted: Tensor = computed(encoder, images.x)["pooled"]
    if not pooled.isfinite().all():
        raise RunError("the int8 model's features are not finite", tip="leave --int8 out")
    result = {
        "bytes": float(small.stat().st_size),
        "float_bytes": float(sum(f.stat().st_size for f in folder.glob(f"{FILE}*"))),
        "cosine": cosines(pooled, wanted).min().item(),
    }
    try:
        labelled = None if data is None else Data(data).labelled
    except DataError:
        labelled = None  # unlabelled images, which the user may well have given
    if labelled is not None:
        eight = Encoder(
            OnnxBackbone(small, encoder),
            config=None,
            image_size=encoder.image_size,
            channels=encoder.channels,
            norm=encoder.norm,
            levels=encoder.levels,
        )
        for name, each in (("knn", eight), ("float_knn", encoder)):
            scores = KNN()(Subject(each), Data(labelled))
            result[name] = scores["knn"]
            result[f"{name}_low"], result[f"{name}_high"] = scores["knn_interval"]
    return result


def _int8_words(found: Mapping[str, float]) -> list[str]:
    lines = [
        f"{found['bytes'] / 1e6:.1f} MB, {found['bytes'] / found['float_bytes']:.0%} of the float "
        f"model; cosine of the features {found['cosine']:.4f} or more"
    ]
    if "knn" not in found:
        return [*lines, "accuracy not measured: give labelled images with --data"]
    kept = found["knn"] / found["float_knn"] if found["float_knn"] else float("nan")
    parts = [
        f"{word} {100 * found[key]:.1f} % [{100 * found[f'{key}_low']:.1f}, "
        f"{100 * found[f'{key}_high']:.1f}]"
        for word, key in (("kNN", "knn"), ("float", "float_knn"))
    ]
    return [*lines, f"{', '.join(parts)}: {kept:.1%} kept"]


def _listing(folder: Path) -> str:
    """The files of a folder with their sizes, the large ones first."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    ordered = sorted(sizes, key=lambda name: -sizes[name])
    return ", ".join(f"{n} ({sizes[n] / 1e6:.1f} MB)" if sizes[n] > 50_000 else n for n in ordered)


def _write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")
