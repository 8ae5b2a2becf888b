"""Judging during a run takes the share of its time that it may, whatever an image costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import textures
from torch import Tensor, nn

import selfsame
from selfsame.data import Labelled
from selfsame.data.arrays import ArraySource
from selfsame.evals.online import FREE, LEAST, TEST, TRAIN, Online


class Clock:
    """Time that passes when somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Costly(nn.Module):
    """A network whose images take time."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += self.seconds * len(x)
        return self.weight * x.mean((2, 3))


def labelled(count: int) -> Labelled:
    label = np.arange(count) % 3
    images = textures(count, 8) // 2
    images[np.arange(count), :, :, label] += 100
    names = ["a", "b", "c"]
    return Labelled(ArraySource(images, label, names), ArraySource(images, label, names), "made")


@pytest.mark.parametrize("seconds", [1e-4, 1e-2, 0.05])
def test_the_share_is_kept(seconds: float) -> None:
    clock = Clock()
    data = labelled(600)
    encoder = selfsame.load(Costly(clock, seconds), image_size=8)
    with Online(data, share=0.05, clock=clock) as online:
        for step in range(1, 101):
            clock.now += 60.0  # a hundred minutes of training
            if step % 10 == 0 and online.due(encoder, last=step == 100):
                scores = online(encoder)
    assert online.spent <= 0.06 * clock.now
    assert online.count >= 2
    assert set(scores) == {"knn", "linear"}
    assert scores["knn"]["knn"] > 0.9, "each class has its colour"
    assert scores["linear"]["linear"] > 0.9
    used = scores["knn"]["train_images"]
    assert used == scores["linear"]["train_images"]
    assert used >= min(600, round(LEAST * TRAIN))
    assert used == min(600, TRAIN) or seconds * used < 0.05 * clock.now
    assert scores["knn"]["test_images"] <= min(600, TEST)
    assert f"{online.count} times" in online.describe()


def test_only_the_last_is_made_where_there_is_no_time() -> None:
    clock = Clock()
    encoder = selfsame.load(Costly(clock, 1.0), image_size=8)
    clock.now = 0.0
    with Online(labelled(600), clock=clock) as online:
        made = []
        for step in range(1, 11):
            clock.now += 1.0
            if online.due(encoder, last=step == 10):
                online(encoder)
                made.append(step)
    assert made == [10]


@pytest.mark.parametrize(("seconds", "count"), [(1e-4, 10), (1e-3, 2), (4e-3, 1)])
def test_a_very_short_run_spends_two_seconds_or_a_twentieth(seconds: float, count: int) -> None:
    clock = Clock()
    encoder = selfsame.load(Costly(clock, seconds), image_size=8)
    clock.now = 0.0
    with Online(labelled(600), clock=clock) as online:
        for step in range(1, 11):
            clock.now += 4.0
            if online.due(encoder, last=step == 10):
                online(encoder)
    least = seconds * round(LEAST * (TRAIN + TEST))
    assert online.spent <= max(FREE, 0.05 * clock.now, least + 32 * seconds)
    assert online.count == count
