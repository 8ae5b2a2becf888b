"""The main job on real data that ships with selfsame: 8,000 + 2,000 images of CIFAR-10.

Learn from the images without their labels, then score the encoder beside three controls. The labels
of the 8,000 are used by the evaluators alone (and 100 of them by the supervised control).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from selfsame.api import Result, pretrain
from selfsame.console import Console
from selfsame.data import Subset
from selfsame.data.sample import SIDE, sample
from selfsame.encoder import random_like
from selfsame.evals import Data, Subject, evaluators, score
from selfsame.evals.pixels import pixels
from selfsame.methods import simclr, supervised
from selfsame.optim import Optim
from selfsame.recipe import BackboneConfig, Recipe
from selfsame.run import RunDirectory
from selfsame.views.spec import View

LABELS_A_CLASS = 10  # that the supervised control learns from

NETWORK = BackboneConfig(name="resnet14", options={"stem": "patch", "width": 32})


def recipe() -> Recipe:
    """SimCLR for four minutes of two CPU cores; every value measured on this data."""
    return Recipe(
        source="arXiv 2002.05709, shortened to four minutes",
        deviations=("a ResNet of 14 layers on half resolution", "batch 64, AdamW, 1200 steps"),
        batch_size=64,
        steps=1200,
        method=simclr.Settings(temperature=0.2, hidden=512),
        backbone=NETWORK,
        optim=Optim(name="adamw", lr=2e-3, scaling="none", weight_decay=0.05, warmup=1),
        views=(
            View(
                count=2,
                size=SIDE,
                scale=(0.35, 1.0),
                brightness=0.4,
                contrast=0.4,
                saturation=0.4,
                hue=0.1,
                blur=0.0,
            ),
        ),
    )


def control_recipe() -> Recipe:
    """The same encoder, taught by labels."""
    return Recipe(
        source="arXiv 1512.03385, shortened",
        batch_size=50,
        steps=150,
        method=supervised.Settings(classes=10),
        backbone=NETWORK,
        optim=Optim(name="adamw", lr=1e-3, scaling="none", weight_decay=0.05, warmup=1),
        views=(View(size=SIDE, scale=(0.4, 1.0), jitter=0.0, grayscale=0.0, blur=0.0),),
    )


def demo(out: Path, seed: int = 0) -> dict[str, Any]:
    """Pretrain, score beside the controls, and leave a run directory: ``evaluate``'s report."""
    data = sample()
    result = _whole(pretrain("simclr", data.train, out=out, recipe=recipe(), seed=seed))
    run = RunDirectory(out)
    console = Console(run)
    console.say(f"control    the same encoder, supervised, with {LABELS_A_CLASS} labels a class")
    assert data.train.labels is not None
    few = [np.flatnonzero(data.train.labels == c)[:LABELS_A_CLASS] for c in range(10)]
    taught = _whole(
        pretrain(
            "supervised",
            Subset(data.train, np.concatenate(few)),
            out=out / "control-supervised",
            recipe=control_recipe(),
            seed=seed,
            quiet=True,
        )
    )
    console.say("scoring    kNN and a linear probe on each")
    random = random_like(result.encoder, seed)
    assert random is not None
    judged = {
        "SimCLR, no labels": Subject(result.encoder),
        "raw pixels": Subject(pixels(), centred=True),
        "random init": Subject(random),
        f"supervised, {LABELS_A_CLASS} labels a class": Subject(taught.encoder),
    }
    protocols = evaluators(("knn", "linear")).values()
    report = {
        "model": str(out),
        "data": data.how,
        "results": {
            name: score(subject, Data(data), protocols) for name, subject in judged.items()
        },
    }
    run.append("eval", [{"step": result.steps, "protocol": "demo", **report}])
    return report


def _whole(result: Result) -> Result:
    """The result of a run to its end; a signal that stopped it stops the demonstration too."""
    if not result.finished:
        raise KeyboardInterrupt
    return result
