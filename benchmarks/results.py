"""One table of all methods under one protocol; it writes its part of RESULTS.md.

Every method learns from the CIFAR-10 sample with its small recipe at 32 px on one of two small
networks, for the same CPU minutes on one core, and is scored at its last step: kNN and a linear
probe on the 2,000 test images. Steps are chosen before the first seed from the measured cost of a
step (and of the pass before an epoch, where a method makes one) and kept for the other seeds.

Resumable: what is finished is kept in the folder, what was stopped continues. The rows are also
written to ``benchmarks/results/methods.json``; those whose recipe and budget are still the same are
not run again.

    scripts/results --minutes 10 --seeds 3 --jobs 2
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "RESULTS.md"
ROWS = ROOT / "benchmarks" / "results" / "methods.json"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

CONVOLUTIONAL = {
    "backbone.name": "resnet14",
    "backbone.options.stem": "patch",
    "backbone.options.width": "32",
}
TRANSFORMER = {
    "backbone.name": "vit_tiny",
    "backbone.options.width": "96",
    "backbone.options.depth": "4",
    "backbone.options.heads": "3",
    "backbone.options.patch": "4",
}
CALIBRATION = 12  # steps that are timed, after a third as many
PIXELS = "raw pixels"  # a control; the other is each network at random initialisation


def recipe_of(method: str, steps: int, seed: int, settings: Sequence[str] = ()) -> Any:
    """The small recipe of a method on the network of this table that suits it."""
    from selfsame import methods
    from selfsame.recipe import with_settings

    recipe = methods.recipe(method, "small", 32)
    network = TRANSFORMER if recipe.backbone.name.startswith("vit") else CONVOLUTIONAL
    chosen = [f"{key}={value}" for key, value in network.items()]
    fixed = ["color=exact", f"steps={steps}", f"seed={seed}"]
    return with_settings(recipe, [*chosen, *fixed, *settings])


def steps_for(method: str, seconds: float, settings: Sequence[str] = ()) -> int:
    """How many steps of a method take ``seconds`` of CPU time on this machine."""
    import torch

    from selfsame import demo, machine, optim, plan
    from selfsame.plan import Choices

    made = plan.make(
        method, demo.sample().train, Choices(recipe=recipe_of(method, 100, 0, settings)), "cpu"
    )
    recipe = made.recipe
    built = made.build().train()
    optimizer = optim.build(built, recipe.optim, recipe.batch_size)
    with made.images:
        made.images.batch(torch.arange(len(made.images)))  # decode once: later runs do not
        begin = time.process_time()
        list(built.before_epoch(made.progress(0), made.sweep(built)))
        epoch = time.process_time() - begin
        for step in range(CALIBRATION + CALIBRATION // 3):
            if step == CALIBRATION // 3:
                begin = time.process_time()
            index = torch.randperm(len(made.images))[: recipe.batch_size]
            views = made.views(built, made.images.batch(index), 0)
            with machine.autocast(made.device, recipe.precision):
                out = built(views, made.progress(step))
            optimizer.zero_grad(set_to_none=True)
            out.loss.backward()
            optimizer.step()
            built.after_step(made.progress(step), [out.carry])
    step_seconds = (time.process_time() - begin) / CALIBRATION
    return max(1, round(seconds / (step_seconds + epoch / made.steps_per_epoch)))


def one(method: str, seed: int, folder: Path, seconds: float, settings: Sequence[str]) -> None:
    """Train and score one method with one seed; writes ``result.json``."""
    from selfsame import api, demo
    from selfsame.encoder import random_like
    from selfsame.evals import Data, Subject, evaluators, knn, score
    from selfsame.evals.features import bank
    from selfsame.evals.pixels import pixels
    from selfsame.files import atomic

    data = demo.sample()
    out = folder / f"{method.replace(' ', '-')}-{seed}"
    if method == PIXELS:
        subject = Subject(pixels(), centred=True)
        result: dict[str, Any] = {}
        out.mkdir(parents=True, exist_ok=True)
    else:
        budget = folder / f"{method}.steps"
        if not budget.exists():
            budget.parent.mkdir(parents=True, exist_ok=True)
            with atomic(budget) as file:
                file.write_text(str(steps_for(method, seconds, settings)))
        recipe = recipe_of(method, int(budget.read_text()), seed, settings)
        trained = api.pretrain(
            method, data.train, out=out, recipe=recipe, resume=True, quiet=True, device="cpu"
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        result = {
            "steps": trained.steps,
            "batch": recipe.batch_size,
            "rate": statistics.median(row["images_per_second"] for row in rows),
            "peak": peak,
            "rankme": trained.health["rankme"],
            "dim": trained.health["dim"],
            "network": recipe.backbone.name,
            "recipe": recipe.hash(),
            "loss": [rows[0]["loss"], rows[-1]["loss"]],
        }
        control = random_like(trained.encoder, seed)
        assert control is not None
        result["random"] = knn(*bank(control, data), ks=(20,))["knn"]
        subject = Subject(trained.encoder)
    result |= score(subject, Data(data), evaluators(["knn", "linear"]).values())
    with atomic(out / "result.json") as file:
        file.write_text(json.dumps({"method": method, "seed": seed, **result}))
    print(json.dumps({"method": method, "seed": seed, **result}), flush=True)


def run_all(
    names: Sequence[str],
    seeds: int,
    jobs: int,
    folder: Path,
    minutes: float,
    known: Sequence[dict[str, Any]],
) -> None:
    """Run what is missing, ``jobs`` processes of one thread at a time, first seeds first."""
    have = {(row["method"], row["seed"]) for row in [*known, *rows_of(folder, names)]}
    pending = [(name, seed) for seed in range(seeds) for name in names if (name, seed) not in have]
    running: list[tuple[subprocess.Popen[bytes], str]] = []
    failed = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    while pending or running:
        while pending and len(running) < jobs:
            name, seed = pending.pop(0)
            command = [sys.executable, __file__, "--one", name, "--seed", str(seed)]
            command += ["--folder", str(folder), "--minutes", str(minutes)]
            running.append((subprocess.Popen(command, env=environment), f"{name}, seed {seed}"))
        for process, what in list(running):
            if process.poll() is not None:
                running.remove((process, what))
                if process.returncode:
                    failed.append(what)
        time.sleep(0.2)
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}. Run the same command again to continue.")


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation over seeds."""
    mean = statistics.fmean(values)
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{deviation}"


def rows_of(folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """What each finished run ended with."""
    return [
        json.loads(file.read_text())
        for name in names
        for file in sorted(folder.glob(f"{name.replace(' ', '-')}-[0-9]*/result.json"))
    ]


def known_rows(minutes: float) -> list[dict[str, Any]]:
    """Rows of an earlier table that still hold: the same budget and the same recipe."""
    if not ROWS.exists():
        return []
    stored = json.loads(ROWS.read_text("utf-8"))
    return [
        row
        for row in stored["rows"]
        if stored["about"]["minutes"] == minutes
        and (
            row["method"] == PIXELS
            or recipe_of(row["method"], row["steps"], row["seed"]).hash() == row["recipe"]
        )
    ]


def table(rows: Sequence[dict[str, Any]], minutes: float) -> str:
    """The table in Markdown, best kNN first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["method"], []).append(row)
    lines = [
        f"{minutes:g} CPU minutes of one core a run; mean ± standard deviation over seeds.",
        "",
        "| method | network | steps x batch | kNN, % | at random init | linear, % | RankMe "
        "| images/s | peak MiB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, runs in sorted(
        found.items(), key=lambda item: -statistics.fmean(run["knn"] for run in item[1])
    ):
        neighbours = spread([100 * run["knn"] for run in runs])
        linear = spread([100 * run["linear"] for run in runs])
        if name == PIXELS:
            cells = [f"*{name}*", "", "", neighbours, "", linear, "", "", ""]
        else:
            first = runs[0]
            network = "ViT" if first["network"].startswith("vit") else "ResNet-14"
            cells = [
                name,
                network,
                f"{first['steps']:,} x {first['batch']}",
                neighbours,
                spread([100 * run["random"] for run in runs]),
                linear,
                f"{statistics.fmean(run['rankme'] for run in runs):.0f} of {first['dim']:.0f}",
                f"{statistics.fmean(run['rate'] for run in runs):,.0f}",
                f"{statistics.fmean(run['peak'] for run in runs):,.0f}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    from selfsame.methods import METHODS, find

    alone = (name for name in METHODS if name != "supervised" and not find(name).taught)
    every = [PIXELS, *alone]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("methods", nargs="*", default=every, metavar="METHOD")
    parser.add_argument("--minutes", type=float, default=10.0, help="CPU minutes a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--set", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    seconds = 60 * options.minutes
    if options.one:
        one(options.one, options.seed, options.folder, seconds, options.set)
        return
    from selfsame import machine

    known = known_rows(options.minutes)
    run_all(options.methods, options.seeds, options.jobs, options.folder, options.minutes, known)
    found = {(row["method"], row["seed"]): row for row in [*known, *rows_of(options.folder, every)]}
    rows = [row for _, row in sorted(found.items())]
    text = table(rows, options.minutes)
    print(text)
    ROWS.parent.mkdir(exist_ok=True)
    about = {"machine": machine.describe(machine.device("cpu")), "minutes": options.minutes}
    lines = ",\n".join(json.dumps(row) for row in rows)
    ROWS.write_text(f'{{"about": {json.dumps(about)}, "rows": [\n{lines}\n]}}\n', "utf-8")
    before, _, rest = TABLE.read_text("utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    if rest:
        TABLE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
