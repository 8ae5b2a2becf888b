"""What most claims share: the engine, the images that ship with selfsame, and a score."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfsame import checkpoint, machine, methods
from selfsame import plan as planning
from selfsame.api import Result, pretrain
from selfsame.claims.claim import Setting
from selfsame.data import Labelled
from selfsame.data.arrays import ArraySource
from selfsame.data.sample import SIDE, sample
from selfsame.encoder import Encoder
from selfsame.evals.features import bank
from selfsame.evals.knn import knn
from selfsame.plan import Choices, Plan
from selfsame.recipe import Recipe, with_settings
from selfsame.run import RunDirectory
from selfsame.types import Method, Source

DATA = "CIFAR-10 sample that ships with selfsame: 8,000 training and 2,000 test images of 32 px"
RESNET = (
    "backbone.name=resnet10",
    "backbone.options.stem=patch",
    "backbone.options.width=16",
)
VIT = (
    "backbone.name=vit_tiny",
    "backbone.options.width=96",
    "backbone.options.depth=4",
    "backbone.options.heads=3",
    "backbone.options.patch=4",
)
LOGS = 50  # rows of a run that are measured


class Learnt(NamedTuple):
    """A run to its end."""

    result: Result
    rows: list[dict[str, Any]]  # of ``metrics.jsonl``
    plan: Plan

    def curve(self, key: str) -> list[tuple[float, float]]:
        """A value of ``metrics.jsonl`` over steps."""
        return [(row["step"], row[key]) for row in self.rows]

    def late(self, key: str) -> float:
        """Its mean over the last tenth of the rows."""
        last = [row[key] for row in self.rows[-max(1, len(self.rows) // 10) :]]
        return float(sum(last) / len(last))

    def method(self) -> Method:
        """The method with its weights after the last step: its heads and teachers, too."""
        built = self.plan.build()
        state = checkpoint.load_latest(RunDirectory(self.result.run).checkpoints, lambda line: None)
        assert state is not None
        built.load_state_dict(state["method"])
        return built


@cache
def images() -> Labelled:
    """The images that ship with selfsame, decoded once."""
    return sample()


def small(method: str, network: Sequence[str], *settings: str, like: str | None = None) -> Recipe:
    """The small recipe of a method at 32 px on a tiny network.

    Args:
        method: a name of the table, or ``module:Class``.
        network: settings that name it.
        settings: any others.
        like: whose recipe it is, where the method is none of the table.
    """
    recipe = methods.recipe(like or method, "small", SIDE)
    config = recipe.method.model_copy(update={"name": method})
    return with_settings(recipe.model_copy(update={"method": config}), [*network, *settings])


def learn(recipe: Recipe, setting: Setting, data: Source | None = None) -> Learnt:
    """Train to the last step; what was stopped continues.

    Args:
        recipe: of what; its length and seed are the setting's.
        setting: of the arm.
        data: to learn from; by default the training images that ship with selfsame.

    Raises:
        KeyboardInterrupt: a signal stopped it.
    """
    fixed = (f"steps={setting.steps}", f"seed={setting.seed}")
    recipe = with_settings(recipe, fixed)
    data, name = images().train if data is None else data, recipe.method.name
    result = pretrain(
        name,
        data,
        out=setting.folder,
        recipe=recipe,
        log_every=max(1, setting.steps // LOGS),
        resume=True,
        device=setting.device,
        quiet=True,
    )
    if not result.finished:
        raise KeyboardInterrupt
    lines = (setting.folder / "metrics.jsonl").read_text("utf-8").splitlines()
    plan = planning.make(name, data, Choices(recipe=recipe), setting.device)
    return Learnt(result, [json.loads(line) for line in lines], plan)


def neighbours(encoder: Encoder) -> float:
    """Accuracy of 20 nearest neighbours on the 2,000 test images, in [0, 1]."""
    return float(knn(*bank(encoder, images()), ks=(20,))["knn"])


def first(source: Source, count: int) -> Source:
    """The first images of a source that is in memory, as the sample is."""
    assert isinstance(source, ArraySource)
    labels = None if source.labels is None else source.labels[:count]
    return ArraySource(source.images[:count], labels, source.classes, source.title)


@torch.inference_mode()
def scores(encoder: Encoder, source: Source) -> tuple[Tensor, Tensor]:
    """What the encoder's own classifier says: scores, float32 [N, K], and labels, int64 [N]."""
    with encoder.open(source) as opened:
        batches = list(opened.readable(250))
        said = [encoder.scores(batch.images, batch.sizes).cpu() for batch in batches]
    return torch.cat(said), torch.cat([batch.label for batch in batches if batch.label is not None])


def classified(encoder: Encoder, source: Source) -> float:
    """Share of the images that the encoder's own classifier has right, in [0, 1]."""
    said, label = scores(encoder, source)
    return float((said.argmax(1) == label).float().mean())


@torch.no_grad()
def fresh_views(plan: Plan, method: Method, images: int, epoch: int = 10**6) -> dict[str, Any]:
    """Views of the first images that no epoch of the run has had."""
    with plan.images:
        batch = plan.images.batch(torch.arange(images))
        return plan.views(method, batch, epoch)


def milliseconds(method: Method, plan: Plan, views: Mapping[str, Any], steps: int) -> float:
    """Time of a forward and backward pass: the median of ``steps``, after a third as many.

    It is the process's own on a CPU, so that a busy machine counts less.
    """
    device = plan.device
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(steps + steps // 3):
        begin = clock()
        with machine.autocast(device, plan.recipe.precision):
            out = method(views, plan.progress(0))
        out.loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(clock() - begin)
    return 1000 * statistics.median(times[-steps:])
