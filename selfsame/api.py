"""The verbs, from ``pretrain`` to ``pack``. The commands say the same words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from selfsame import dist, machine, methods
from selfsame import plan as planning
from selfsame.console import Console
from selfsame.data import (
    Images,
    count_channels,
    measure_levels,
    open_parts,
    suggest_canvas,
)
from selfsame.data.pack import ENCODINGS, expected_size, write_pack
from selfsame.data.place import absolute
from selfsame.encoder import Encoder, load
from selfsame.errors import DivergedError, UsageError, unknown
from selfsame.evals import Data, evaluators, score
from selfsame.evals.cache import Cache
from selfsame.evals.subject import learnt_from, seen, subjects
from selfsame.evals.verdict import Verdict
from selfsame.files import output
from selfsame.interrupt import Interrupt
from selfsame.judge import Judge, encoder_of
from selfsame.nn.taught import Taught
from selfsame.parallel import Layout, whole
from selfsame.plan import Choices, Plan, format_bytes, free_bytes
from selfsame.recipe import Recipe, lora_settings
from selfsame.run import RunDirectory, environment
from selfsame.trackers import Trackers
from selfsame.train import train
from selfsame.types import Source
from selfsame.views.native import kernel

PACK_VIEW = 224  # pixels: the side of views that a pack is made for by default


@dataclass(frozen=True)
class Result:
    """What a run ended with."""

    run: Path
    encoder: Encoder
    steps: int  # optimiser steps done
    finished: bool  # False where it was interrupted
    health: Mapping[str, float]  # the last row of label-free health: `selfsame.evals.probe`
    verdict: Verdict
    signal: int | None = None  # that interrupted it


@dist.launched()
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
    accumulate: int = 1,
    parallel: Literal["ddp", "fsdp"] = "ddp",
    checkpoint_activations: bool = False,
    compile: bool = False,
    teacher: str | Path | nn.Module | None = None,
    keep_teacher: bool = True,
    init: str | Path | None = None,
    lora: str | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> Result:
    """Learn a representation from unlabelled images.

    Under torchrun every process calls it alike: each learns from its part of every batch.

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
        val: labelled images: kNN and a linear probe during training, at most a twentieth of its
            time (or two seconds), and at its end.
        save_every: steps between checkpoints; by default one every ten minutes.
        log_every: steps between lines of ``metrics.jsonl``.
        log: "wandb", "mlflow": who else gets the numbers. TensorBoard reads the run directory.
        report: write ``report.html`` at the end.
        resume: continue the run in ``out``, on any number of processes; begin it where there is
            none yet.
        accumulate: micro-batches that each step's batch is taken in, with the gradient of the
            whole, where memory is short.
        parallel: "ddp" gives every process the whole network, "fsdp" a part of its weights,
            gradients and optimiser state: for large ViTs with mae, dino, ibot and dinov2.
        checkpoint_activations: compute the activations inside blocks a second time instead of
            keeping them.
        compile: ``torch.compile`` the blocks of the networks: seconds to minutes before the first
            step, and faster ones after it. Needs Triton, or on a CPU a C++ compiler.
        teacher: for the methods that have one: see `distill`.
        keep_teacher: the same.
        init: weights to begin with, in the place of random ones: a run, an exported encoder, a file
            of weights of the network that ``backbone`` names, a folder of transformers; or
            ``timm/NAME``, ``torchvision/NAME``, ``transformers/NAME``, whose library takes them
            from its cache or downloads them. Heads begin anew, and teachers as the network.
        lora: "r=8", "r=8,alpha=16,dropout=0.1": only low-rank updates of a transformer's linear
            layers learn. They are merged into the encoder that is saved.
        device: "cpu", "cuda", ...; by default the first GPU where there is one.
        quiet: say nothing on the terminal.

    Raises:
        UsageError: wrong names, keys or values, or an ``out`` that cannot be used.
        DataError: no images.
        RunError: too many steps that are not finite, a disk that refuses, or a process that was
            lost.
    """
    choices = Choices(
        recipe,
        backbone,
        size,
        epochs,
        steps,
        batch_size,
        seed,
        precision,
        (*lora_settings(lora), *settings),
        teacher,
        init,
    )
    with ExitStack() as stack:
        stack.enter_context(
            torch.random.fork_rng(devices=[])
        )  # the caller's numbers go on as before
        with dist.agreed():
            if epochs is not None and steps is not None:
                raise UsageError("give either epochs or steps, not both")
            for name, count in (("save_every", save_every), ("log_every", log_every)):
                if count is not None and count < 1:
                    raise UsageError(f"{name} is {count}", tip="it is a number of steps, 1 or more")
            continuing = dist.on_main(lambda: resume and (Path(out) / "recipe.toml").is_file())
            labelled = None if val is None else Data(val).labelled
            followers = stack.enter_context(Trackers(log))
            run = RunDirectory(out)
            if continuing:
                run = RunDirectory.open(out)
                locks = stack.enter_context(run.lock())
                plan = planning.resume(run, method, data, choices, device)
            else:
                plan = planning.make(method, data, choices, device)
            plan.keep = keep_teacher
            plan.lay_out(Layout(accumulate, parallel, checkpoint_activations, compile))
        stack.enter_context(plan.images)
        if labelled is not None and learnt_from(labelled.test, plan.images.source.fingerprint()):
            plan.notes.append("the test images of --val are trained on, too")
        with dist.agreed():
            checked = plan.images.check()
            built = plan.build()  # what cannot be built leaves no run directory behind
        plan.agree()
        description = plan.describe(built)
        if not continuing:
            with dist.agreed():
                locks = stack.enter_context(run.lock())
                run = RunDirectory.create(out)
                run.write_json("run.json", _facts(plan, data))
                run.write("recipe.toml", plan.recipe.to_toml())  # last: it makes the folder a run
        console = Console(run, quiet=quiet)
        console.say(*description)
        if not locks:
            console.say(f"note       no locks on this file system: start no other run in {out}")
        if checked.bad:
            console.say(
                f"bad        {checked.bad} of {checked.sampled} sampled images cannot be read; "
                "each is replaced by the next readable one and listed in bad_images.jsonl"
            )

        judge = Judge(plan, run, console, labelled)
        stack.callback(judge.close)
        if dist.is_main():
            followers.follow(run, plan.recipe, console.say)
        interrupt = Interrupt()
        try:
            steps = train(
                plan,
                built,
                run,
                console,
                interrupt=interrupt,
                save_every=save_every,
                log_every=log_every,
                eval_every=judge.every,
                evaluate=judge,
            )
            encoder = encoder_of(plan, whole(built, plan.build)).eval()
            health = dist.on_main(lambda: judge.health(encoder, steps))
        except DivergedError as error:
            if dist.is_main():
                console.say(*judge.verdict(plan.total, diverged=str(error)).lines())
            raise
        (stopped,) = dist.anywhere(interrupt.asked)
        finished = followers.finished = steps == plan.total and not stopped
        verdict = dist.on_main(lambda: judge.verdict(steps))
        encoder.save(
            run.path,
            method=plan.recipe.method.name,
            recipe=plan.recipe.hash(),
            data=plan.images.source.fingerprint(),
            labels=built.labelled,
            step=steps,
            steps=plan.total,
            evaluation=health,
        )
        if isinstance(built, Taught) and built.teacher.memo is not None:
            console.say(built.teacher.memo.describe())
        console.say(*judge.describe(), *_closing(plan, run, steps, finished, health, verdict))
    if report and dist.is_main():
        from selfsame.report import write_report

        console.say(f"report     {write_report([run.path], data, backbone=plan.module)}")
    return Result(run.path, encoder, steps, finished, health, verdict, interrupt.signal)


def distill(
    teacher: str | Path | nn.Module,
    data: Any,
    *,
    out: str | Path,
    student: str | nn.Module | None = None,
    loss: str = "distill",
    alpha: float | None = None,
    temperature: float | None = None,
    view_sets: int | None = None,
    settings: Sequence[str] = (),
    **options: Any,
) -> Result:
    """Teach a small network what a trained one knows.

    A run like any other: `pretrain` with a method that has a teacher.

    Args:
        teacher: what ``selfsame.load`` takes: a run, an exported encoder, a ``timm/NAME``, a module
            of yours. Its weights stay as they are.
        data: images, with labels or without, as for ``pretrain``. Labels are used by the losses of
            classes where there are some; ``method.labels=0`` leaves them out.
        out: the run directory.
        student: a name, or a module that maps images [B, C, S, S] to features [B, D].
        loss: "distill" (features, any teacher), "seed" (similarities, any teacher), "kd", "dkd",
            "deit" (classes), "fitnets", "attention_transfer" (maps), "rkd", "crd" (relations), or
            ``module:Class``.
        alpha: weight of the soft targets; of "kd" and "deit", labels have the rest.
        temperature: of the soft targets.
        view_sets: epochs whose views are drawn; later ones see them again, and what the teacher
            says of them is read from the disk.
        settings: ``key=value`` for any other field of the recipe.
        options: any of ``pretrain``'s; ``keep_teacher=False`` asks the teacher at every step.

    Raises:
        UsageError: a teacher or a student that does not go with the loss or the images; and as
            ``pretrain``.
    """
    losses = [name for name in methods.METHODS if methods.find(name).taught]
    if ":" not in loss and loss not in losses:
        raise unknown("loss", loss, losses)
    fields = {"view_sets": view_sets, "method.alpha": alpha, "method.temperature": temperature}
    chosen = [f"{name}={value}" for name, value in fields.items() if value is not None]
    return pretrain(
        loss,
        data,
        out=out,
        backbone=student,
        teacher=teacher,
        settings=[*chosen, *settings],
        **options,
    )


def evaluate(
    model: str | Path | nn.Module,
    data: Any,
    *,
    protocols: Sequence[str] = ("knn", "linear"),
    settings: Sequence[str] = (),
    controls: bool = True,
    weights: str | Path | None = None,
    backbone: nn.Module | None = None,
    image_size: int | None = None,
    device: str | None = None,
    cache: bool = True,
) -> dict[str, Any]:
    """Judge a model on images, beside controls that learnt nothing.

    Args:
        model: what ``selfsame.load`` takes: a run, an exported encoder, a ``timm/NAME``, a module.
        data: labelled images with or without parts of their own for training and testing; with
            masks for ``segment``; any images for ``copies``.
        protocols: of ``selfsame.evals.EVALUATORS``, or ``module:Class``.
        settings: ``protocol.key=value`` for any option of a protocol.
        controls: also score the same network at random initialisation, and raw pixels.
        weights: a file of weights for a named network.
        backbone: the network, where a run trained a module of the user's.
        image_size: input side, pixels, for a named network or a module; 224 by default.
        device: where to compute features.
        cache: keep features on the disk (``$SELFSAME_CACHE``) and take them from there.

    Returns:
        ``model``, ``data`` in words and its ``fingerprint``, ``seen``, a warning where the test
        images were trained on, ``settings``, ``results``, ``cache`` and ``refused``, the number of
        images left out because they cannot be read. ``results`` has the scores of the model and
        each control as fractions, with 95 % bootstrap intervals over test images as
        ``NAME_interval``. Where the model is a run, the result is appended to its ``eval.jsonl``.

    Raises:
        UsageError: an unknown protocol or option, or a model that cannot be loaded.
        DataError: no labels or masks where a protocol needs them.
    """
    chosen = evaluators(protocols, settings)
    encoder = load(model, device=device, weights=weights, image_size=image_size, backbone=backbone)
    store = Cache() if cache else None
    given = Data(data)
    found = subjects(encoder, store, controls=controls)
    results = {name: score(each, given, chosen.values()) for name, each in found.items()}
    report = {
        "model": str(model) if isinstance(model, str | Path) else type(model).__name__,
        "data": given.how,
        "fingerprint": given.fingerprint(),
        "seen": seen(encoder, given.labelled.test) if "labelled" in vars(given) else None,
        "settings": list(settings),
        "results": {name: scores for name, scores in results.items() if scores},
        "refused": sum(found["model"].refused.values()),
    }
    if isinstance(model, str | Path) and (Path(model) / "recipe.toml").is_file():
        run = RunDirectory.open(model)
        step = encoder.card.get("step", 0)
        run.append("eval", [{"step": step, "protocol": ",".join(protocols), **report}])
    if store is not None:
        report["cache"] = store.describe()
    return report


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
        with output(out) as temporary:
            free = free_bytes(out.parent)
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


def _facts(plan: Plan, data: Any) -> dict[str, Any]:
    source = plan.images.source
    return {
        **environment(machine.describe(plan.device)),
        "device": str(plan.device),
        "layout": plan.layout._asdict(),
        "views": "compiled" if plan.device.type == "cpu" and kernel() else "operations",
        "recipe": plan.recipe.hash(),
        "classes": None if plan.classes is None else list(plan.classes),  # of its classifier
        "data": {
            "images": len(source),
            "fingerprint": source.fingerprint(),
            "classes": None if source.classes is None else list(source.classes),
            "paths": absolute(data),
        },
    }


def _closing(
    plan: Plan,
    run: RunDirectory,
    steps: int,
    finished: bool,
    health: Mapping[str, float],
    verdict: Verdict,
) -> list[str]:
    """What the run amounts to, and where things are."""
    most = min(health["dim"], health["images"])
    lines = [
        f"health     RankMe {health['rankme']:.1f} of {most:.0f}, feature deviation "
        f"{health['feature_std']:.4f} (1/sqrt(d) is {health['feature_std_reference']:.4f})",
        *verdict.lines(),
    ]
    if plan.images.bad:
        lines.append(f"bad        {len(plan.images.bad)} images could not be read")
    if skipped := run.rows("nonfinite"):
        lines.append(
            f"left out   {len(skipped)} steps whose loss or gradient was not finite; "
            "nonfinite.jsonl lists their images"
        )
    if not finished:
        lines.append(f"stopped    at step {steps:,} of {plan.total:,}; continue with --resume")
    return [*lines, f"saved      {run.path}"]
