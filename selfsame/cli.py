"""The command line. It imports what a command needs when the command runs: help stays fast.

Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 the run
failed, 2 wrong use, 128 + N stopped by signal N: 130 Ctrl-C, 143 SIGTERM, 138 SIGUSR1 on Linux. A
run that was stopped has a checkpoint, where training had begun, and ``--resume`` continues it.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from selfsame import __version__
from selfsame.errors import SelfsameError, UsageError, nearest

app = typer.Typer(
    name="selfsame",
    help="Learn image representations without labels, and judge them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# typer brings its own copy of click in some versions and imports the package in others
ClickUsageError: Any = typer.BadParameter.__bases__[0]

Data = Annotated[
    list[str],
    typer.Argument(
        help="Folders, image files, patterns, .pack, .tar, .zip, .parquet, lists of paths (.csv, "
        ".tsv, .txt), .npz, .npy, a TIFF stack, CIFAR, saved Hugging Face data, URLs.",
        metavar="DATA",
    ),
]
Labelled = Annotated[
    str,
    typer.Argument(
        help="As DATA: one folder a class, or a list, table, .tar or arrays with labels."
    ),
]
Model = Annotated[
    str,
    typer.Argument(
        help="A run, an exported encoder, timm/NAME, torchvision/NAME, transformers/NAME or a "
        "folder of transformers."
    ),
]
Runs = Annotated[list[str], typer.Argument(help="Run directories, finished or not.", metavar="RUN")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1 ... [default: a GPU if there is one]")
]
IndexFile = Annotated[Path, typer.Argument(help="What embed wrote.", metavar="INDEX")]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", help="Also write a page with the pictures.")
]
Embedded = Annotated[
    list[str] | None,
    typer.Option("--data", help="For the page: what was embedded, where it is not where it was."),
]
Exact = Annotated[
    bool | None,
    typer.Option(
        "--exact/--approximate",
        help="Compare all with all, or by FAISS. [default: FAISS from 200,000 images on, if "
        "installed]",
    ),
]
Out = Annotated[Path, typer.Option(help="The run directory: new, or a run with --resume.")]
RecipeName = Annotated[
    str | None, typer.Option(help="small, paper or a .toml file. [default: by data size]")
]
Size = Annotated[int | None, typer.Option(help="Side of the views, pixels.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps, instead.")]
BatchSize = Annotated[int | None, typer.Option(help="Images a step.")]
Seed = Annotated[int | None, typer.Option(help="Of everything random.")]
Precision = Annotated[
    str | None, typer.Option(help="auto, bf16 or fp32. [default: bf16 where native]")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any field of the recipe; repeatable."),
]
Val = Annotated[str | None, typer.Option(help="Labelled images to judge by.")]
SaveEvery = Annotated[
    int | None, typer.Option(help="Steps between checkpoints. [default: 10 minutes]")
]
LogEvery = Annotated[int, typer.Option(help="Steps between lines of metrics.jsonl.")]
Log = Annotated[
    str, typer.Option(help="Also log to wandb, mlflow; TensorBoard reads the run anyway.")
]
Report = Annotated[bool, typer.Option("--report", help="Write report.html at the end.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out, or begin it.")]
Accumulate = Annotated[
    int, typer.Option(help="Take each batch in this many parts, where memory is short.")
]
Init = Annotated[
    str | None,
    typer.Option(
        help="Begin with these weights: a run, an export, a file, timm/NAME, torchvision/NAME, "
        "transformers/NAME or a folder of transformers."
    ),
]
LoRA = Annotated[
    str | None,
    typer.Option(help="r=8: only low-rank updates learn, merged at the end (needs peft)."),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the networks' blocks before the first step.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"selfsame {__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="The run directory to write.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    json_: Json = False,
) -> None:
    """Learn from images that ship with selfsame.

    8,000 of CIFAR-10, without their labels, judged beside three controls: up to five minutes on
    two CPU cores.
    """
    from selfsame.demo import demo as run_demo

    report = run_demo(out, seed=seed)
    _print_scores(report, json_)
    if not json_:
        _say(f"saved      {out} (recipe, metrics, checkpoints, encoder)")
        _say("next       selfsame pretrain simclr YOUR_PHOTOS/ --out runs/a")


@app.command()
def pretrain(
    method: Annotated[str, typer.Argument(help="For example simclr, or my_package.mine:Mine.")],
    data: Data,
    out: Out,
    backbone: Annotated[
        str | None, typer.Option(help="A name of selfsame, timm or torchvision.")
    ] = None,
    init: Init = None,
    lora: LoRA = None,
    recipe: RecipeName = None,
    size: Size = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    precision: Precision = None,
    settings: Settings = None,
    val: Val = None,
    save_every: SaveEvery = None,
    log_every: LogEvery = 10,
    log: Log = "",
    report: Report = False,
    resume: Resume = False,
    accumulate: Accumulate = 1,
    parallel: Annotated[
        str, typer.Option(help="ddp, or fsdp: each process keeps a part of the weights.")
    ] = "ddp",
    checkpoint_activations: Annotated[
        bool,
        typer.Option("--checkpoint-activations", help="Compute activations twice, keep few."),
    ] = False,
    compile: Compile = False,
    device: Device = None,
) -> None:
    """Learn a representation from unlabelled images.

    Ctrl-C, SIGTERM and SIGUSR1 save and stop, with exit code 128 + signal (130, 143, 138); the same
    command with --resume goes on, bit for bit as if it had never stopped. With torchrun
    --nproc-per-node N -m selfsame pretrain ... N processes share each batch.
    """
    import selfsame

    result = selfsame.pretrain(
        method,
        _data(data),
        out=out,
        backbone=backbone,
        init=init,
        lora=lora,
        recipe=recipe,
        size=size,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        precision=precision,
        settings=settings or [],
        val=val,
        save_every=save_every,
        log_every=log_every,
        log=_words(log),
        report=report,
        resume=resume,
        accumulate=accumulate,
        parallel=parallel,  # type: ignore[arg-type]  # checked by pretrain
        checkpoint_activations=checkpoint_activations,
        compile=compile,
        device=device,
    )
    _after(result, out, report)


@app.command()
def distill(
    teacher: Annotated[
        str,
        typer.Argument(help="A run, an exported encoder, timm/NAME, torchvision/NAME ..."),
    ],
    data: Data,
    out: Out,
    student: Annotated[
        str | None, typer.Option(help="A name of selfsame, timm or torchvision.")
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            help="distill, seed: any teacher, no labels. kd, dkd, deit: its classes. fitnets, "
            "attention_transfer: its maps. rkd, crd: relations."
        ),
    ] = "distill",
    alpha: Annotated[
        float | None, typer.Option(help="Weight of the soft targets. [default: the loss's own]")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Of the soft targets. [default: the loss's own]")
    ] = None,
    view_sets: Annotated[
        int | None,
        typer.Option(
            help="Views come again after this many epochs, and what the teacher says of them is "
            "kept on the disk. [default: new ones in each]"
        ),
    ] = None,
    cache: Annotated[
        bool, typer.Option(help="Keep it, in SELFSAME_CACHE or the user's cache.")
    ] = True,
    init: Init = None,
    lora: LoRA = None,
    recipe: RecipeName = None,
    size: Size = None,
    epochs: Epochs = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    precision: Precision = None,
    settings: Settings = None,
    val: Val = None,
    save_every: SaveEvery = None,
    log_every: LogEvery = 10,
    log: Log = "",
    report: Report = False,
    resume: Resume = False,
    accumulate: Accumulate = 1,
    compile: Compile = False,
    device: Device = None,
) -> None:
    """Teach a small network what a trained one knows.

    A run like any other, on images with or without labels: it resumes, is judged and reported
    alike. Losses of classes take the teacher's classifier, and the student is saved with its own.
    """
    import selfsame

    result = selfsame.distill(
        teacher,
        _data(data),
        out=out,
        student=student,
        loss=loss,
        alpha=alpha,
        temperature=temperature,
        view_sets=view_sets,
        keep_teacher=cache,
        init=init,
        lora=lora,
        recipe=recipe,
        size=size,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        precision=precision,
        settings=settings or [],
        val=val,
        save_every=save_every,
        log_every=log_every,
        log=_words(log),
        report=report,
        resume=resume,
        accumulate=accumulate,
        compile=compile,
        device=device,
    )
    _after(result, out, report)


def _after(result: Any, out: Path, report: bool) -> None:
    """How a run ended, as an exit code, and what to do next."""
    if not result.finished:
        raise typer.Exit(128 + (result.signal or 2))
    if int(os.environ.get("RANK", "0")):
        return
    run = shlex.quote(str(out))
    _say(f"next       selfsame evaluate {run} LABELLED/")
    _say(f"           selfsame embed {run} PHOTOS/ -o embeddings.parquet")
    if not report:
        _say(f"           selfsame report {run}")


@app.command()
def evaluate(
    model: Model,
    data: Labelled,
    protocol: Annotated[
        str,
        typer.Option(
            help="Comma-separated: knn, linear, linear-sgd, lowshot, finetune, retrieval, cluster, "
            "segment, copies."
        ),
    ] = "knn,linear",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PROTOCOL.KEY=VALUE", help="Any option of a protocol; repeatable."
        ),
    ] = None,
    controls: Annotated[bool, typer.Option(help="Also score random weights and pixels.")] = True,
    weights: Annotated[
        Path | None, typer.Option(help="A file of weights for a named network.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Input side of a named network, pixels. [default: 224]")
    ] = None,
    cache: Annotated[
        bool, typer.Option(help="Keep features on the disk, in SELFSAME_CACHE or the user's cache.")
    ] = True,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Judge a model on labelled images.

    Beside it stand controls that learnt nothing: random weights and raw pixels. segment takes
    images/PART/x.jpg with masks/PART/x.png; copies needs no labels.
    """
    # read when PyTorch is imported: threads that spin while they wait take the cores from each
    # other where the machine is busy, and a probe waits thousands of times
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import selfsame

    report = selfsame.evaluate(
        model,
        data,
        protocols=[name.strip() for name in protocol.split(",") if name.strip()],
        settings=settings or [],
        controls=controls,
        weights=weights,
        image_size=size,
        device=device,
        cache=cache,
    )
    _print_scores(report, json_)
    if not json_:
        if report["refused"]:
            _say(f"bad        {report['refused']} images cannot be read and count for no score")
        if "cache" in report:
            _say(f"cache      {report['cache']}")


@app.command()
def report(
    runs: Runs,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Images to look at, labelled or not. [default: those of the training]"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The file. [default: RUN/report.html; report.html for several runs]"),
    ] = None,
    images: Annotated[int, typer.Option(help="How many to look at, at most; 0 for none.")] = 1000,
    device: Device = None,
) -> None:
    """Write a report of a run, or of several side by side, as one HTML file."""
    from selfsame.report import write_report

    file = write_report(runs, _data(data) if data else None, out=out, images=images, device=device)
    _say(f"saved      {file} ({file.stat().st_size / 1e6:.1f} MB)")


@app.command()
def compare(runs: Runs, json_: Json = False) -> None:
    """Print scores, health and differing recipe keys of runs side by side."""
    from selfsame.report.compare import print_comparison

    print_comparison(runs, as_json=json_)


@app.command()
def embed(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("-o", "--out", help="The Parquet file to write.")],
    dtype: Annotated[str, typer.Option(help="Of the vectors: float32, or float16.")] = "float32",
    batch_size: Annotated[
        int | None, typer.Option(help="Images a forward pass. [default: what fits]")
    ] = None,
    device: Device = None,
) -> None:
    """Write embeddings to a Parquet file: an index.

    Columns: id (position in the data), path, sha256 (of the file), vector. What was stopped goes on
    with the same command. With torchrun --nproc-per-node N -m selfsame embed ... N processes share
    the images.
    """
    import selfsame

    _tell_unused(data)
    try:
        done = selfsame.embed(
            model, _data(data), out, dtype=dtype, batch_size=batch_size, device=device, quiet=False
        )
    except KeyboardInterrupt:
        _say(f"\nstopped    {out} is not finished; the same command goes on")
        raise typer.Exit(130) from None
    if int(os.environ.get("RANK", "0")):
        return
    _say(f"{done['images']:,} vectors of {done['dim']} in {out}")
    if done["refused"]:
        _say(f"{done['refused']} images could not be read and are left out; the file lists them")
    file = shlex.quote(str(out))
    _say(f"next       selfsame search {file} PHOTO.jpg")
    _say(f"           selfsame dedup {file}, outliers {file}, select {file} -n 100")


@app.command()
def search(
    index: IndexFile,
    query: Annotated[list[str], typer.Argument(help="Images, or folders of them.")],
    k: Annotated[int | None, typer.Option("-k", help="How many to find. [default: 10]")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="What wrote the index, where it is not where it was."),
    ] = None,
    html: HtmlFile = None,
    data: Embedded = None,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Find the images that are most like a query.

    By cosine similarity, exact, in one pass over the file.
    """
    import selfsame
    from selfsame.index.show import show_answers

    found = selfsame.search(
        index, _data(query), k=k, model=model, device=device, html=html, data=_maybe(data)
    )
    show_answers(found, json_)
    _saved(html)


@app.command()
def dedup(
    index: IndexFile,
    threshold: Annotated[
        float, typer.Option(help="Cosine similarity from which two images are alike.")
    ] = 0.99,
    exact: Exact = None,
    html: HtmlFile = None,
    data: Embedded = None,
    json_: Json = False,
) -> None:
    """Find images that are in the data twice, or nearly.

    Groups are connected: a is like b and b is like c. Files with the same bytes are named as such.
    """
    import selfsame
    from selfsame.index.show import show_groups

    opened = selfsame.Index(index)
    found = selfsame.dedup(opened, threshold=threshold, exact=exact, html=html, data=_maybe(data))
    show_groups(found, len(opened), threshold, json_)
    _saved(html)


@app.command()
def outliers(
    index: IndexFile,
    n: Annotated[int | None, typer.Option("-n", help="How many to show. [default: 20]")] = None,
    k: Annotated[int | None, typer.Option("-k", help="Neighbours. [default: 10]")] = None,
    exact: Exact = None,
    html: HtmlFile = None,
    data: Embedded = None,
    json_: Json = False,
) -> None:
    """Find the images that are least like any other.

    The score is the mean cosine distance to the k nearest other images.
    """
    import selfsame
    from selfsame.index.show import show_outliers

    found = selfsame.outliers(index, n=n, k=k, exact=exact, html=html, data=_maybe(data))
    show_outliers(found, json_)
    _saved(html)


@app.command()
def select(
    index: IndexFile,
    n: Annotated[int, typer.Option("-n", help="How many.")],
    how: Annotated[
        str, typer.Option(help="typical: of each of n clusters the most typical; or k-centre.")
    ] = "typical",
    seed: Annotated[int, typer.Option(help="Of the clusters.")] = 0,
    html: HtmlFile = None,
    data: Embedded = None,
    json_: Json = False,
) -> None:
    """Choose images to label first: a few that stand for all."""
    import selfsame
    from selfsame.index.show import show_picks

    found = selfsame.select(
        index,
        n,
        how=how,  # type: ignore[arg-type]  # checked by select
        seed=seed,
        html=html,
        data=_maybe(data),
    )
    show_picks(found, json_)
    _saved(html)


@app.command()
def classify(
    model: Model,
    data: Labelled,
    out: Annotated[Path, typer.Option("-o", "--out", help="The folder to write.")],
    kind: Annotated[str, typer.Option(help="linear, or knn.")] = "linear",
    k: Annotated[int, typer.Option("-k", help="Neighbours of knn.")] = 20,
    seed: Annotated[int, typer.Option(help="Of what is held out.")] = 0,
    device: Device = None,
    json_: Json = False,
) -> None:
    """Fit a classifier on a model, from a handful of labels.

    It says how often it is right on images that it was not fitted on, and is saved with the model.
    """
    import selfsame
    from selfsame.index.show import show_fitted

    fitted = selfsame.classify(model, data, out, kind=kind, k=k, seed=seed, device=device)
    show_fitted(fitted, out, json_)


@app.command()
def predict(
    classifier: Annotated[
        str, typer.Argument(help="What classify wrote, or another model with a classifier.")
    ],
    images: Data,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write a table: FILE.csv.")
    ] = None,
    device: Device = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Say which class images are of, with its probability."""
    from selfsame.classifier import predictions
    from selfsame.index.show import show_predictions

    _tell_unused(images)
    found = predictions(classifier, _data(images), device=device)
    show_predictions(found, out, json_)


@app.command()
def export(
    model: Model,
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="safetensors, timm, torchvision, transformers, onnx, torch-export or torchscript.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="The folder to write. [default: MODEL-FORMAT]"),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Images to compare on. [default: those of the training, or our sample]"),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="onnx: also 8-bit weights, scored on a labelled --data.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="A file of weights for a named network.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Input side of a named network, pixels. [default: 224]")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an export that lies there.")
    ] = False,
) -> None:
    """Write a model for another library, and check that it computes the same there.

    The folder has a model card and preprocessing. It is there only if that library, in a process
    of its own, read it and came to the same features. Prints the Python that loads it.
    """
    import selfsame

    done = selfsame.export(
        model,
        format,
        out,
        data=_data(data) if data else None,
        int8=int8,
        weights=weights,
        image_size=size,
        overwrite=overwrite,
    )
    print("\n".join([*done.load, *done.use]))


@app.command()
def pack(
    data: Data,
    out: Annotated[Path, typer.Option("-o", "--out", help="The file to write: NAME.pack.")],
    canvas: Annotated[
        int | None,
        typer.Option(help="Scale down to this side, pixels. [default: enough for views of 224]"),
    ] = None,
    encode: Annotated[str, typer.Option(help="raw, or jpeg: smaller and slower.")] = "raw",
    quality: Annotated[int, typer.Option(help="Of jpeg, 1 to 100.")] = 95,
    channels: Annotated[
        int | None, typer.Option(help="3 for RGB, 1 for gray. [default: the images' own, or 3]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads that decode. [default: one a core]")
    ] = None,
) -> None:
    """Convert images to one file that is read faster.

    It stands for the data in every command, with its labels and parts. Runs on a canvas of the same
    side get the same pixels (raw); a run's canvas is twice its views' side, or the images' own.
    """
    import selfsame

    try:
        selfsame.pack(
            _data(data),
            out,
            canvas=canvas,
            encode=encode,
            quality=quality,
            channels=channels,
            workers=workers,
        )
    except KeyboardInterrupt:
        _say(f"\nstopped    {out} is as it was")
        raise typer.Exit(130) from None
    _say(f"next       selfsame pretrain simclr {shlex.quote(str(out))} --out runs/a")


@app.command()
def recipes(
    method: Annotated[str | None, typer.Argument(help="Print this method's recipes.")] = None,
    scale: Annotated[str | None, typer.Option(help="Only small or paper, as TOML.")] = None,
    size: Annotated[int, typer.Option(help="Side of the views, pixels.")] = 224,
) -> None:
    """Print recipes, sources and deviations.

    With a method every value of both recipes; with --scale one of them as a TOML file.
    """
    from selfsame import methods
    from selfsame.recipe import SCALES

    if scale is not None and method is None:
        raise UsageError("--scale needs a method", tip="selfsame recipes simclr --scale small")
    for name in [method] if method else list(methods.METHODS):
        if scale is not None:
            print(methods.recipe(name, scale, size).to_toml(), end="")
            continue
        title = (methods.module_of(name).__doc__ or name).strip().splitlines()[0]
        print(f"{name}: {title}")
        for each in SCALES:
            recipe = methods.recipe(name, each, size)
            print(f"\n  {each}  source: {recipe.source}")
            for deviation in recipe.deviations:
                print(f"         deviates: {deviation}")
            if method:
                lines = recipe.to_toml().splitlines()
                print("\n" + "\n".join(f"    {line}".rstrip() for line in lines))


@app.command()
def claim(
    name: Annotated[
        str, typer.Argument(help="A claim; or list, all, page: docs/claims anew from the ledger.")
    ],
    seeds: Annotated[int, typer.Option(help="How many, from 0.")] = 3,
    budget: Annotated[str, typer.Option(help="fast, a minute an arm and seed; or full.")] = "fast",
    out: Annotated[
        Path, typer.Option(help="Of the ledger, the pages and what the arms leave.")
    ] = Path("claims"),
    device: Device = None,
) -> None:
    """Run a paper's key claim as a small experiment, with a control.

    What ended is kept in OUT/arms and not run again. The numbers go to OUT/ledger/NAME.json, a page
    with the figure to OUT/NAME.html.
    """
    from selfsame.claims import command

    command(name, seeds=seeds, budget=budget, out=out, device=device, say=_say)


@app.command()
def doctor(
    data: Annotated[list[str] | None, typer.Argument(help="What you would train on.")] = None,
    method: Annotated[str, typer.Option(help="What you would train.")] = "simclr",
    backbone: Annotated[str | None, typer.Option(help="As for pretrain.")] = None,
    recipe: Annotated[str | None, typer.Option(help="As for pretrain.")] = None,
    size: Annotated[int | None, typer.Option(help="As for pretrain.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="As for pretrain.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As for pretrain.")
    ] = None,
    verify_resume: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="A method or a .toml file: train a few steps with and without a stop, compare.",
        ),
    ] = None,
    device: Device = None,
) -> None:
    """Print what a run would do, and stop there.

    With --verify-resume: does a run on DATA that is stopped and resumed learn the same, bit for
    bit? Exit code 1 where it does not.
    """
    from selfsame.doctor import examine

    if verify_resume is not None:
        from selfsame.plan import Choices
        from selfsame.verify import verify_resume as verify

        if not data:
            raise UsageError(
                "--verify-resume needs data",
                tip=f"selfsame doctor DATA --verify-resume {verify_resume}",
            )
        choices = Choices(
            recipe, backbone, size, batch_size=batch_size, settings=tuple(settings or ())
        )
        for line in verify(verify_resume, _data(data), choices, device=device):
            print(line, flush=True)
        return

    for line in examine(
        _data(data) if data else None,
        method=method,
        backbone=backbone,
        recipe=recipe,
        size=size,
        batch_size=batch_size,
        settings=settings or [],
        device=device,
    ):
        print(line)


def keep_memory() -> None:
    """Have glibc keep what is freed for what comes next, as PyTorch itself does on a GPU.

    Large tensors would be given back and got anew in every step, page by page, which takes the
    system 2 to 10 % of a step on a CPU, and half a second and more of the first one.
    """
    mmap_max, trim_threshold = -4, -1  # malloc.h
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another libc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(mmap_max, 0)
            mallopt(trim_threshold, -1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    keep_memory()
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files that the terminal cannot spell
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        # a command ends with Exit(code), which comes back as the code outside standalone mode
        return int(app(arguments, prog_name="selfsame", standalone_mode=False) or 0)
    except ClickUsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # `selfsame` alone
            _say(error.format_message())
            return 2
        return _refuse(_usage(error), arguments)
    except SelfsameError as error:
        return _refuse(error, arguments)
    except (KeyboardInterrupt, typer.Abort):
        _say("stopped")
        return 130
    except BrokenPipeError:  # the reader of our output, `head` say, has gone
        sys.stderr.close()
        return 0
    except SystemExit as stop:  # the parser's own form of the same
        if isinstance(stop.__context__, BrokenPipeError):
            return 0
        raise


def _usage(error: Any) -> UsageError:
    """A complaint of the argument parser as an error of ours, with the nearest legal word."""
    message = error.format_message().partition(" (")[0].partition(" Did you mean")[0].rstrip(".?")
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "selfsame"
    words = list(getattr(getattr(context, "command", None), "commands", {}) or {})
    wrong = message.partition("'")[2].partition("'")[0]
    if "No such command" in message and words:
        close = nearest(wrong, words)
        tip = (f"did you mean '{close}'? " if close else "") + f"commands: {', '.join(words)}"
    elif getattr(error, "possibilities", None):
        tip = f"did you mean {error.possibilities[0]}?"
    else:
        tip = f"{command} --help lists what it takes"
    return UsageError(message[:1].lower() + message[1:], tip=tip)


def _refuse(error: SelfsameError, arguments: Sequence[str] | None) -> int:
    if error.told:
        return error.exit_code
    _say(f"error: {error}")
    if error.tip:
        _say(f"tip: {error.tip}")
    return error.exit_code


def _data(paths: list[str]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else paths


def _tell_unused(paths: list[str]) -> None:
    """Say which of the images are left out: of data with parts, those for testing."""
    from selfsame.data import open_source

    notes: list[str] = []
    open_source(_data(paths), notes)
    if int(os.environ.get("RANK", "0")) == 0:
        for note in notes:
            if not note.startswith("labels"):
                _say(f"note       {note}")


def _maybe(paths: list[str] | None) -> str | list[str] | None:
    return _data(paths) if paths else None


def _saved(html: Path | None) -> None:
    if html is not None:
        _say(f"saved      {html}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _print_scores(report: dict[str, Any], as_json: bool) -> None:
    """The table of a model and its controls, or the whole report as JSON."""
    if as_json:
        print(json.dumps(report))
        return
    from selfsame.evals.table import print_table

    print_table(report)


if __name__ == "__main__":
    sys.exit(main())
