"""Training runs with one planted fault each, and healthy ones: what a verdict is calibrated on.

Every run has the small recipe of its method at 32 px on the network of ``RESULTS.md``, and learns
from the CIFAR-10 sample. ``python tests/evals/planted.py --help`` says how the recorded rows in
``tests/evals/data`` are made anew.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsame import demo, methods
from selfsame.api import pretrain
from selfsame.errors import DivergedError
from selfsame.evals import probe
from selfsame.evals.faults import Evidence
from selfsame.evals.verdict import judge
from selfsame.methods.byol import BYOL, NORM_EPS
from selfsame.methods.simsiam import SimSiam
from selfsame.nn.pairs import pair, spread
from selfsame.nn.precision import unit
from selfsame.recipe import Recipe, with_settings
from selfsame.run import RunDirectory
from selfsame.types import Output, Progress

RESNET = ["backbone.name=resnet14", "backbone.options.stem=patch", "backbone.options.width=32"]
DATA = Path(__file__).parent / "data"
VIT = [
    *("backbone.name=vit_tiny", "backbone.options.width=96", "backbone.options.depth=4"),
    *("backbone.options.heads=3", "backbone.options.patch=4"),
]


class OpenSimSiam(SimSiam):
    """SimSiam without its stop-gradient."""

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        x1, x2 = pair(views["global"])
        z1, p1 = self.branch(x1)
        z2, p2 = self.branch(x2)
        cosines = [(unit(p) * unit(z)).sum(-1).mean() for p, z in ((p1, z2), (p2, z1))]
        return Output(-(cosines[0] + cosines[1]) / 2, {"spread": spread(z1)}, {})


class OpenBYOL(BYOL):
    """BYOL whose target is the online branch itself, gradient and all."""

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        x1, x2 = pair(views["global"])
        z1, z2 = self.online(x1), self.online(x2)
        q1, q2 = self.predictor(z1), self.predictor(z2)
        pairs = ((q1, z2), (q2, z1))
        losses = [(unit(q, NORM_EPS) - unit(z, NORM_EPS)).square().sum(-1) for q, z in pairs]
        return Output(torch.stack(losses).sum(0).mean(), {"spread": spread(z1)}, {})


def photos() -> np.ndarray:
    """The 8,000 images, uint8 [N, 32, 32, 3]."""
    images: np.ndarray = demo.sample().train.images  # type: ignore[attr-defined]
    return images


def marked() -> np.ndarray:
    """The images in gray, with a second channel of one random value an image: an offset, say."""
    gray = photos().mean(-1, keepdims=True).round().astype(np.uint8)
    level = np.random.default_rng(0).integers(0, 256, (len(gray), 1, 1, 1), dtype=np.uint8)
    return np.concatenate([gray, np.broadcast_to(level, gray.shape)], axis=-1)


@dataclass(frozen=True)
class Case:
    """A run: of a method, with settings, on images; and what its verdict must name."""

    method: str
    settings: tuple[str, ...] = ()
    images: Callable[[], np.ndarray] = photos
    cause: str | None = None
    state: str | None = None
    steps: int = 100
    log_every: int = 10


def peak(method: str, factor: float) -> str:
    return f"optim.lr={methods.recipe(method, 'small', 32).optim.lr * factor}"


def teacher_temperature(value: float) -> tuple[str, str]:
    return (
        f"method.teacher_temperature={value}",
        f"method.teacher_temperature_start={value}",
    )


# after two fifths of the run the rate is too small to learn anything
REST = ('optim.schedule="step"', "optim.milestones=[0.4]", "optim.step_factor=1e-4")
NO_COLOR = ("views.jitter=0.0", "views.grayscale=0.0", "views.solarize=0.0")
STILL = (*NO_COLOR, "views.scale=[0.9, 1.0]", "views.ratio=[1.0, 1.0]", "views.flip=0.0")
HEALTHY = {
    **{name: Case(name, steps=200) for name in ("simclr", "vicreg", "moco", "byol", "simsiam")},
    **{name: Case(name, steps=150) for name in ("mocov3", "barlow_twins", "mae")},
    **{name: Case(name, steps=100) for name in ("swav", "dino", "deepclusterv2")},
    "deepcluster": Case("deepcluster", steps=250),  # two clusterings
    **{name: Case(name, steps=60) for name in ("ibot", "dinov2", "data2vec2")},
    "mocov3-one": Case("mocov3", ("method.temperature=1.0",)),  # the paper's, of ResNet-50
    "simclr-sharp": Case("simclr", ("method.temperature=0.1",)),  # the paper's, on ImageNet
    "simclr-soft": Case("simclr", ("method.temperature=0.5",)),  # the paper's, on CIFAR-10
    "simclr-rest": Case("simclr", REST, steps=400, log_every=1, state="plateaued"),
    "mae-rest": Case("mae", REST, steps=250, log_every=2, state="plateaued"),
}
FAULTS = {
    "simsiam-open": Case("planted:OpenSimSiam", cause="stop-gradient", steps=250),
    "byol-open": Case("planted:OpenBYOL", cause="stop-gradient"),
    "dino-uncentred": Case("dino", ("method.center_momentum=1.0",), cause="centring"),
    **{
        f"{name}-rate": Case(name, (peak(name, 100),), cause="learning rate")
        for name in ("simclr", "simsiam", "vicreg", "mae", "dino")
    },
    **{
        f"{name}-weak": Case(name, STILL, cause="weak views", steps=60)
        for name in ("simclr", "vicreg", "moco", "byol")
    },
    **{
        f"{name}-colour": Case(name, NO_COLOR, cause="shortcut")
        for name in ("simclr", "moco", "vicreg")
    },
    "simclr-mark": Case("simclr", ("views.jitter=0.0",), marked, cause="shortcut"),
    **{
        f"{name}-hot": Case(name, ("method.temperature=2.0",), cause="temperature too high")
        for name in ("simclr", "moco", "mocov3")
    },
    **{
        f"{name}-cold": Case(
            name, ("method.temperature=0.02",), cause="temperature too low", steps=200
        )
        for name in ("simclr", "moco", "mocov3")
    },
    "dino-hot": Case("dino", teacher_temperature(0.4), cause="temperature too high", steps=60),
    "dino-cold": Case("dino", teacher_temperature(0.004), cause="temperature too low"),
}
CASES = HEALTHY | FAULTS


def recipe_of(case: Case, seed: int) -> Recipe:
    """The recipe of a case, its channels those of the images."""
    recipe = methods.recipe(case.method, "small", 32) if ":" not in case.method else _open(case)
    network = VIT if recipe.backbone.name.startswith("vit") else RESNET
    lengths = [f"steps={case.steps}", f"seed={seed}"]
    return with_settings(recipe, [*network, *lengths, *case.settings])


def _open(case: Case) -> Recipe:
    parent = {"planted:OpenSimSiam": "simsiam", "planted:OpenBYOL": "byol"}[case.method]
    recipe = methods.recipe(parent, "small", 32)
    return recipe.model_copy(
        update={"method": recipe.method.model_copy(update={"name": case.method})}
    )


@contextmanager
def unhurried() -> Iterator[None]:
    """Health on all images of the probe, however busy the machine is."""
    seconds, probe.SECONDS = probe.SECONDS, math.inf
    try:
        yield
    finally:
        probe.SECONDS = seconds


def run(case: Case, seed: int, out: Path) -> RunDirectory:
    """Train a case, whatever becomes of it, to its end: a run that a signal stops has no verdict.

    Raises:
        RuntimeError: it was stopped.
    """
    recipe = recipe_of(case, seed)
    with unhurried(), suppress(DivergedError):
        done = pretrain(
            case.method,
            case.images(),
            out=out,
            recipe=recipe,
            log_every=case.log_every,
            device="cpu",
            quiet=True,
        )
        if not done.finished:
            raise RuntimeError(f"stopped by signal {done.signal} after {done.steps} steps")
    return RunDirectory(out)


def record(name: str, seed: int) -> None:
    """Train a case and keep what a verdict reads of it in ``tests/evals/data``."""
    with tempfile.TemporaryDirectory() as folder:
        done = run(CASES[name], seed, Path(folder) / "run")
        rows = {"metrics": done.rows("metrics"), "eval": done.rows("eval")}
    kept = {
        "health": [_short(row) for row in rows["eval"] if row["protocol"] == "health"],
        "metrics": [_short(row) for row in rows["metrics"]],
    }
    DATA.mkdir(exist_ok=True)
    (DATA / f"{name}-{seed}.json").write_text(json.dumps(kept) + "\n")


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers of four digits, without what depends on the machine's speed."""
    return {
        key: float(f"{value:.4g}") if isinstance(value, float) else value
        for key, value in row.items()
        if key not in ("images_per_second", "waiting")
    }


def recorded(name: str) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]], Recipe]]:
    """What a verdict reads of the recorded runs of a case: one a seed."""
    found = []
    for file in sorted(DATA.glob(f"{name}-[0-9].json")):
        kept = json.loads(file.read_text("utf-8"))
        found.append((kept["health"], kept["metrics"], recipe_of(CASES[name], int(file.stem[-1]))))
    return found


MEASURES: dict[str, Callable[[Evidence], float | None]] = {
    "pixel match": lambda e: e.last["pixel_match"],
    "view match": lambda e: e.last["view_match"],
    "neutral match / start": lambda e: e.last["neutral_match"] / e.first["neutral_match"],
    "RankMe / start": lambda e: e.last["rankme"] / e.first["rankme"],
    "weights / start": lambda e: e.last["weight_rms"] / e.first["weight_rms"],
    "`spread`": lambda e: e.late("spread"),
    "`negatives`": lambda e: e.late("negatives"),
    "H": lambda e: e.late("teacher_entropy"),
    "I": lambda e: e.late("information"),
}


def table() -> str:
    """The recorded runs as the table of ``docs/health.md``: smallest to largest over seeds."""
    lines = ["| run | seeds | steps | " + " | ".join(MEASURES) + " | verdict |"]
    lines.append("|---|---:|---:|" + "---:|" * len(MEASURES) + "---|")
    for name in CASES:
        runs = recorded(name)
        if not runs:
            continue
        cells = [name, str(len(runs)), str(CASES[name].steps)]
        for measure in MEASURES.values():
            values = [measure(Evidence(*each)) for each in runs]
            known = sorted(value for value in values if value is not None)
            ends = dict.fromkeys(f"{value:.3g}" for value in (known[0], known[-1])) if known else ()
            cells.append(" to ".join(ends))
        cells.append("; ".join(dict.fromkeys(judge(*each).headline for each in runs)))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train planted runs and keep their rows.")
    parser.add_argument("cases", nargs="*", default=list(CASES), help="by default all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print what was recorded")
    chosen = parser.parse_args()
    if chosen.table:
        print(table())
        raise SystemExit
    for seed in range(chosen.seeds):
        for name in chosen.cases:
            if not (DATA / f"{name}-{seed}.json").exists():
                record(name, seed)
