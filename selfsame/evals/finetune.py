"""Fine-tuning: how good does the whole network become, taught from these weights?

The recipe of MAE (He et al., arXiv 2111.06377, appendix A.1, table 9) on the engine of every other
run: the method ``supervised`` with mixup, CutMix, label smoothing and rates that decay towards the
input. Nothing is chosen on the test part: the last step counts. Departures: colour jitter in the
place of RandAugment and random erasing, the network's own stochastic depth, and a length and rate
for small data.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from selfsame import plan as planning
from selfsame.console import Console
from selfsame.encoder import Encoder
from selfsame.evals.evaluator import Evaluator, Scores
from selfsame.evals.interval import bootstrap_interval
from selfsame.evals.subject import Data, Subject
from selfsame.methods import supervised
from selfsame.optim import Optim
from selfsame.plan import Choices
from selfsame.recipe import Recipe
from selfsame.run import RunDirectory
from selfsame.train import train
from selfsame.views.spec import SMALL_IMAGE, View


class FineTune(Evaluator):
    """All weights trained on the labels of the train part, a new classifier on top.

    Its control, the same network at random initialisation, is training from scratch.
    """

    title: ClassVar[str] = "fine-tuning"
    facts: ClassVar[frozenset[str]] = frozenset({"finetune_steps", "finetune_loss"})

    epochs: Annotated[float, Field(gt=0)] = 20
    batch_size: Annotated[int, Field(ge=2)] = 128
    lr: Annotated[float, Field(gt=0)] = 1e-3  # peak at 256 images a step, scaled by the root
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.75
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup: Annotated[float, Field(ge=0)] = 5  # epochs, at most a fifth of the run
    mixup: Annotated[float, Field(ge=0)] = 0.8
    cutmix: Annotated[float, Field(ge=0)] = 1.0
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    seed: int = 0

    def __call__(self, subject: Subject, data: Data) -> Scores:
        """Accuracy on the test part after the last step. Raw pixels have no weights to tune."""
        encoder = subject.encoder
        if not any(True for _ in encoder.parameters()):
            return {}
        labelled = data.labelled
        classes = len(labelled.train.classes or ())
        made = planning.make(
            "supervised",
            labelled.train,
            Choices(recipe=self.recipe(encoder, classes), backbone=deepcopy(encoder.backbone)),
            str(encoder.device),
        )
        with TemporaryDirectory(prefix="selfsame-finetune-") as folder, made.images:
            built = made.build()
            assert isinstance(built, supervised.Supervised)
            run = RunDirectory.create(Path(folder) / "run")
            steps = train(made, built, run, Console(quiet=True), save_every=made.total)
            loss = run.rows("metrics")[-1]["loss"]
        if steps < made.total:
            raise KeyboardInterrupt
        taught = Encoder(
            built.backbone,
            config=None,
            image_size=encoder.image_size,
            channels=encoder.channels,
            norm=encoder.norm,
            levels=encoder.levels,
        )
        x, y = Subject(taught).labelled_part(labelled.test)
        with torch.inference_mode():
            guess = built.classifier(x.to(encoder.device)).argmax(dim=1).cpu()
        accuracy = (guess == y).double().mean().item()
        return {
            "finetune": accuracy,
            "finetune_interval": bootstrap_interval(accuracy, len(y)),
            "finetune_steps": steps,
            "finetune_loss": loss,
        }

    def recipe(self, encoder: Encoder, classes: int) -> Recipe:
        """What the run learns with."""
        size = encoder.image_size
        return Recipe(
            source="arXiv 2111.06377, appendix A.1, table 9; facebookresearch/mae, FINETUNE.md",
            seed=self.seed,
            batch_size=self.batch_size,
            epochs=self.epochs,
            channels=encoder.channels,
            levels=encoder.levels,
            norm=encoder.norm,
            method=supervised.Settings(
                classes=classes,
                smoothing=self.smoothing,
                mixup=self.mixup,
                cutmix=self.cutmix,
                layer_decay=self.layer_decay,
            ),
            optim=Optim(
                name="adamw",
                lr=self.lr,
                scaling="sqrt",
                weight_decay=self.weight_decay,
                warmup=self.warmup,
            ),
            views=(
                View(
                    size=size,
                    # most of a small image is needed to tell what it shows
                    scale=(0.4 if size <= SMALL_IMAGE else 0.08, 1.0),
                    brightness=0.4,
                    contrast=0.4,
                    saturation=0.4,
                    hue=0.0,
                    grayscale=0.0,
                    blur=0.0,
                ),
            ),
        )
