"""The verbs: ``pretrain``, ``evaluate``, ``embed``, ``pack``. The commands say the same words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from selfsame import machine
from selfsame import plan as planning
from selfsame.console import Console
from selfsame.data import (
    Images,
    count_channels,
    measure_levels,
    open_labelled,
    open_parts,
    open_source,
    suggest_canvas,
)
from selfsame.data.pack import ENCODINGS, expected_size, write_pack
from selfsame.data.place import is_url
from selfsame.encoder import Encoder, load, of_recipe, random_like
from selfsame.errors import UsageError, unknown
from selfsame.evals import bootstrap_interval, feature_std, knn, linear, rankme
from selfsame.evals.features import Bank, bank, pixel_bank
from selfsame.files import atomic
from selfsame.plan import Choices, Plan, format_bytes
from selfsame.recipe import Recipe
from selfsame.report import write_report
from selfsame.run import RunDirectory, environment
from selfsame.trackers import Trackers
from selfsame.train import train
from selfsame.types import Method, Source

PROBE = 2048  # images of the training set that label-free health is measured on
PACK_VIEW = 224  # pixels: the side of views that a pack is made for by default
EVALUATIONS = 10  # of a run with labelled data, evenly spaced

PROTOCOLS = {"knn": knn, "linear": linear}


@dataclass(frozen=True)
class Result:
    """What a run ended with."""

    run: Path
    encoder: Encoder
    steps: int  # optimiser steps done
    finished: bool  # False where the user interrupted it
    health: Mapping[str, float]


def pretrain(
    method: str,
    data: Any,
    *,
    out: str | Path,
    recipe: str | Path | Recipe | None = None,
    backbone: str | nn.Module | None = None,
    size: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    precision: str | None = None,
    settings: Sequence[str] = (),
    val: Any = None,
    save_every: int | None = None,
    log_every: int = 10,
    log: Sequence[str] = (),
    report: bool = False,
    resume: bool = False,
    device: str | None = None,
    quiet: bool = False,
) -> Result:
    """Learn a representation from unlabelled images.

    Args:
        method: a name of ``selfsame.methods.METHODS``, or ``module:Class``.
        data: images: a folder, a list of folders and files, a ``.pack``, a ``.npz`` or ``.npy``
            file, a uint8 array [N, H, W, C], or a map-style data set. Labels, where there are any,
            are not used.
        out: the run directory: new or empty, or an existing run with ``resume``.
        recipe: "small", "paper", a TOML file or a ``Recipe``; by default chosen by the number of
            images.
        backbone: a name, or a module that maps images [B, C, S, S] to features [B, D].
        size: side of the views, pixels; by default chosen from the images.
        epochs: length of the run in passes over the data.
        steps: length of the run in optimiser steps, instead of epochs.
        batch_size: images an optimiser step.
        seed: of everything random.
        precision: "auto", "bf16" or "fp32".
        settings: ``key=value`` for any field of the recipe, as ``--set`` of the command line.
        val: labelled images: kNN during training and at its end.
        save_every: steps between checkpoints; by default one every ten minutes.
        log_every: steps between lines of ``metrics.jsonl``.
        log: "wandb", "mlflow": who else gets the numbers. TensorBoard reads the run directory.
        report: write ``report.html`` at the end.
        resume: continue the run in ``out``.
        device: "cpu", "cuda", ...; by default the first GPU where there is one.
        quiet: say nothing on the terminal.

    Raises:
        UsageError: wrong names, keys or values, or an ``out`` that cannot be used.
        DataError: no images.
        RunError: a loss that is not finite, or a full disk.
    """
    choices = Choices(
        recipe, backbone, size, epochs, steps, batch_size, seed, precision, tuple(settings)
    )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("a run is one process for now", tip="start it without torchrun")
    if epochs is not None and steps is not None:
        raise UsageError("give either epochs or steps, not both")
    for name, count in (("save_every", save_every), ("log_every", log_every)):
        if count is not None and count < 1:
            raise UsageError(f"{name} is {count}", tip="it is a number of steps, 1 or more")
    labelled = None if val is None else open_labelled(val)
    continuing = resume and (Path(out) / "recipe.toml").is_file()
    if continuing:
        run = RunDirectory.open(out)
        plan = planning.resume(run, method, data, choices, device)
    else:
        plan = planning.make(method, data, choices, device)
    with plan.images, Trackers(log) as followers:
        checked = plan.images.check()
        built = plan.build()  # what cannot be built leaves no run directory behind
        description = plan.describe(built)
        if not continuing:
            run = RunDirectory.create(out)
            run.write_json("run.json", _facts(plan, data))
            run.write("recipe.toml", plan.recipe.to_toml())  # last: it makes the folder a run
        console = Console(run, quiet=quiet)
        console.say(*description)
        if checked.bad:
            console.say(
                f"bad        {checked.bad} of {checked.sampled} sampled images cannot be read; "
                "each is replaced by the next readable one and listed in bad_images.jsonl"
            )

        def judge(method: Method, step: int) -> None:
            assert labelled is not None
            features = bank(_encoder(plan, method), labelled)
            scores = knn(*features, ks=(20,))
            run.append("eval", [{"step": step, "protocol": "knn", **scores}])
            console.say(f"step {step:,}: kNN {scores['knn']:.3f}")

        followers.follow(run, plan.recipe, console.say)
        steps = train(
            plan,
            built,
            run,
            console,
            save_every=save_every,
            log_every=log_every,
            eval_every=max(1, plan.total // EVALUATIONS),
            evaluate=judge if labelled is not None else None,
        )
        finished = followers.finished = steps == plan.total
        encoder = _encoder(plan, built).eval()
        health = _health(encoder, plan.images)
        run.append("eval", [{"step": steps, "protocol": "health", **health}])
        encoder.save(
            run.path,
            method=plan.recipe.method.name,
            recipe=plan.recipe.hash(),
            data=plan.images.source.fingerprint(),
            step=steps,
            steps=plan.total,
            evaluation=health,
        )
        console.say(*_closing(plan, run, steps, health))
    if report:
        console.say(f"report     {write_report([run.path], data, backbone=plan.module)}")
    return Result(run.path, encoder, steps, finished, health)


def evaluate(
    model: str | Path | nn.Module,
    data: Any,
    *,
    protocols: Sequence[str] = ("knn", "linear"),
    controls: bool = True,
    weights: str | Path | None = None,
    image_size: int = 224,
    device: str | None = None,
) -> dict[str, Any]:
    """Judge a model on labelled images, beside controls that learnt nothing.

    Args:
        model: what ``selfsame.load`` takes: a run, an exported encoder, a ``timm/NAME``, a module.
        data: labelled images with or without parts of their own for training and testing.
        protocols: of ``PROTOCOLS``.
        controls: also score the same network at random initialisation, and raw pixels.
        weights: a file of weights for a named network.
        image_size: input side, pixels, for a named network or a module.
        device: where to compute features.

    Returns:
        ``model``, ``data`` and ``results``: for the model and each control the scores as
        fractions, with 95 % bootstrap intervals over test images as ``NAME_interval``. Where the
        model is a run, the result is appended to its ``eval.jsonl`` as well.

    Raises:
        UsageError: an unknown protocol, or a model that cannot be loaded.
        DataError: no labels.
    """
    for name in protocols:
        if name not in PROTOCOLS:
            raise unknown("protocol", name, PROTOCOLS)
    encoder = load(model, device=device, weights=weights, image_size=image_size)
    labelled = open_labelled(data)
    results = {"model": score(bank(encoder, labelled), protocols)}
    if controls:
        random = random_like(encoder)
        if random is not None:
            results["random init"] = score(bank(random, labelled), protocols)
        results["raw pixels"] = score(pixel_bank(labelled, encoder), protocols)
    report = {
        "model": str(model) if isinstance(model, str | Path) else type(model).__name__,
        "data": labelled.how,
        "results": results,
    }
    if isinstance(model, str | Path) and (Path(model) / "recipe.toml").is_file():
        run = RunDirectory.open(model)
        step = encoder.card.get("step", 0)
        run.append("eval", [{"step": step, "protocol": ",".join(protocols), **report}])
    return report


def score(features: Bank, protocols: Sequence[str]) -> dict[str, Any]:
    """Scores of features under protocols, each headline with its interval."""
    found: dict[str, Any] = {}
    for name in protocols:
        found |= PROTOCOLS[name](*features)
        found[f"{name}_interval"] = bootstrap_interval(found[name], len(features.test_y))
    return found


def embed(
    model: str | Path | nn.Module,
    data: Any,
    out: str | Path,
    *,
    device: str | None = None,
    batch_size: int = 256,
) -> dict[str, int]:
    """Write the embeddings of images to a Parquet file with columns id, path and vector.

    Args:
        model: what ``selfsame.load`` takes.
        data: what ``pretrain`` takes.
        out: the file to write; complete or absent.
        device: where to compute.
        batch_size: images a forward pass.

    Returns:
        ``images`` written, ``refused`` because they cannot be read (left out of the file), and
        ``dim``, the width of a vector.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoder = load(model, device=device)
    source = open_source(data)
    schema = pa.schema(
        [("id", pa.int64()), ("path", pa.string()), ("vector", pa.list_(pa.float32(), encoder.dim))]
    )
    written = 0
    with (
        encoder.open(source, cache_bytes=0) as images,
        _output(Path(out)) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        for batch, vectors in encoder.embed_batches(images, batch_size):
            ids = batch.index.tolist()
            flat = pa.array(vectors.numpy().reshape(-1))
            columns = [
                pa.array(ids, pa.int64()),
                pa.array([source.name(i) for i in ids]),
                pa.FixedSizeListArray.from_arrays(flat, encoder.dim),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
            written += len(ids)
        refused = len(images.bad)
    return {"images": written, "refused": refused, "dim": encoder.dim}


def pack(
    data: Any,
    out: str | Path,
    *,
    canvas: int | None = None,
    encode: str = "raw",
    quality: int = 95,
    channels: int | None = None,
    workers: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Convert images to one file that later runs read several times faster.

    Names, labels and the train and test parts are kept; images keep their own shape. Images that
    cannot be read are left out. The same data gives the same bytes.

    Args:
        data: what ``pretrain`` takes.
        out: the file to write, ``NAME.pack``; complete or absent.
        canvas: side in pixels that larger images are scaled down to; by default what views of
            224 pixels can show. A run whose canvas is this one gets the same pixels as from the
            original; a smaller one scales them down once more.
        encode: "raw" for pixels, read fastest, or "jpeg" for a smaller file of nearly those pixels.
        quality: of JPEG, 1 to 100; its colour is not subsampled. At 95 the pixels of photographs
            are off by half a level of 255 in the mean.
        channels: 3 for RGB, 1 for gray; arrays and TIFF files may have any other number. By default
            what the images have where that is another number, else 3.
        workers: threads that decode; by default one a core.
        quiet: say nothing on the terminal.

    Returns:
        ``images`` written, ``bytes`` of the file, and what its index says: ``canvas``,
        ``channels``, ``levels``, ``parts``, and ``bad``, the images left out, with reasons.

    Raises:
        UsageError: a value that cannot be used, or an ``out`` that cannot be written or is too
            small for the pack.
        DataError: no images, or not one of a part is readable.
    """
    out = Path(out)
    if out.suffix.lower() != ".pack":
        raise UsageError(
            f"'{out}' does not end in .pack", tip=f"write '{out.with_suffix('.pack')}'"
        )
    if encode not in ENCODINGS:
        raise unknown("encoding", encode, ENCODINGS)
    if not 1 <= quality <= 100:
        raise UsageError(f"quality is {quality}", tip="it is 1 to 100; 95 is hard to tell apart")
    sources = open_parts(data)
    some = next(iter(sources.values()))
    channels = channels or count_channels(some) or 3
    if encode == "jpeg" and channels not in (1, 3):
        raise UsageError(f"JPEG has 1 or 3 channels, not {channels}", tip="use --encode raw")
    levels = measure_levels(some)
    how = "as asked"
    if canvas is None:
        canvas = max(suggest_canvas(source, PACK_VIEW) for source in sources.values())
        how = f"what views of {PACK_VIEW} px can show; --canvas overrides"
    console = Console(quiet=quiet)
    with ExitStack() as stack:
        parts = {
            name: stack.enter_context(
                Images(
                    source,
                    canvas=canvas,
                    channels=channels,
                    levels=levels,
                    workers=workers,
                    cache_bytes=0,
                )
            )
            for name, source in sources.items()
        }
        total = sum(map(len, parts.values()))
        expected = sum(expected_size(images, encode, quality) for images in parts.values())
        console.say(
            "data       " + " and ".join(map(_described, sources, sources.values())),
            f"canvas     {canvas} px ({how})",
            f"records    {encode}, {channels} channel{'s' if channels > 1 else ''}"
            + (f", quality {quality}" if encode == "jpeg" else "")
            + (f", raw values {levels[0]:g} to {levels[1]:g} become 0 to 255" if levels else ""),
        )
        with _output(out) as temporary:
            free = shutil.disk_usage(out.absolute().parent).free
            need, have = format_bytes(expected), format_bytes(free)
            console.say(f"size       about {need}, {have} free there")
            if expected > free:
                raise UsageError(
                    f"{out} needs about {need}, and {have} are free there",
                    tip="choose another place, --encode jpeg or a smaller --canvas",
                )
            facts = write_pack(
                temporary,
                parts,
                encode=encode,
                quality=quality,
                progress=lambda done: console.count(done, total, "images"),
            )
    bad = facts["bad"]
    if bad:
        console.say(f"bad        {len(bad):,} of {total:,} images cannot be read; left out:")
        console.say(*(f"           {each['part']}{each['name']}: {each['reason']}" for each in bad))
    written = {"images": total - len(bad), "bytes": out.stat().st_size}
    console.say(f"saved      {out}: {written['images']:,} images, {format_bytes(written['bytes'])}")
    return written | {key: facts[key] for key in ("canvas", "channels", "levels", "parts", "bad")}


def _described(name: str, source: Source) -> str:
    """A part of a data set in words."""
    classes = "no labels" if source.labels is None else f"{len(source.classes or ())} classes"
    return f"{len(source):,} images ({', '.join(filter(None, (name, classes)))})"


@contextmanager
def _output(path: Path) -> Iterator[Path]:
    """A temporary path for an output file of the user's, with errors that name the file."""
    if path.is_dir():  # which would be replaced, with all that is in it
        raise UsageError(f"{path} is a folder", tip="name a file to write, in a folder that exists")
    try:
        with atomic(path) as temporary:
            yield temporary
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}",
            tip="name a file in a folder that exists and that you may write to",
        ) from None


def _encoder(plan: Plan, method: Method) -> Encoder:
    return of_recipe(method.encoder(), plan.recipe, named=plan.module is None)


def _facts(plan: Plan, data: Any) -> dict[str, Any]:
    source = plan.images.source
    return {
        **environment(machine.describe(plan.device)),
        "device": str(plan.device),
        "recipe": plan.recipe.hash(),
        "data": {
            "images": len(source),
            "fingerprint": source.fingerprint(),
            "paths": _paths(data),
        },
    }


def _paths(data: Any) -> list[str] | None:
    """Where the data is, so that a report finds it; None for what is in memory."""
    several = data if isinstance(data, list | tuple) else [data]
    if not all(isinstance(path, str | os.PathLike) for path in several):
        return None
    texts = [os.fspath(path) for path in several]
    return [t if is_url(t) else os.path.abspath(os.path.expanduser(t)) for t in texts]


def _health(encoder: Encoder, images: Images) -> dict[str, float]:
    """Label-free numbers on a fixed probe set: do the features use their dimensions?"""
    count = min(PROBE, len(images))
    index = torch.arange(count) * len(images) // count  # evenly spaced
    parts = [images.batch(part) for part in torch.tensor_split(index, (count + 255) // 256)]
    z = torch.cat([encoder.features(b.images, b.sizes).cpu() for b in parts])
    std, reference = feature_std(z)
    return {
        "rankme": rankme(z.double()).item(),
        "dim": float(z.shape[1]),
        "feature_std": std.item(),
        "feature_std_reference": reference,
    }


def _closing(plan: Plan, run: RunDirectory, steps: int, health: Mapping[str, float]) -> list[str]:
    """The verdict, and where things are."""
    collapsed = health["feature_std"] < 0.1 * health["feature_std_reference"]
    lines = [
        f"health     RankMe {health['rankme']:.1f} of {health['dim']:.0f}, feature deviation "
        f"{health['feature_std']:.4f} (1/sqrt(d) is {health['feature_std_reference']:.4f}): "
        + ("COLLAPSED, all images look alike to it" if collapsed else "not collapsed"),
    ]
    if plan.images.bad:
        lines.append(f"bad        {len(plan.images.bad)} images could not be read")
    if steps < plan.total:
        lines.append(f"stopped    at step {steps:,} of {plan.total:,}; continue with --resume")
    return [*lines, f"saved      {run.path}"]
