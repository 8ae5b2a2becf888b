"""Digits of scikit-learn, and perceptrons that learn them in a second: for claims about logits.

1,797 handwritten digits of 8 x 8 pixels (Alpaydin and Kaynak, UCI), which ship with scikit-learn.
Where the engine needs images of a folder and a backbone, these need neither: what a loss of logits
does is seen on logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DATA = "1,797 handwritten digits of 8 x 8 pixels that ship with scikit-learn, 1,200 to learn from"
TRAIN = 1200
CLASSES = 10
BATCH = 64


class Digits(NamedTuple):
    """Pixels, float32 [N, 64] in [0, 1], and labels, int64 [N], of two parts."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


@cache
def digits() -> Digits:
    """The same division always."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(found.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(found.target, dtype=torch.int64)[order]
    return Digits(x[:TRAIN], y[:TRAIN], x[TRAIN:], y[TRAIN:])


def perceptron(width: int, dropout: float = 0.0) -> nn.Sequential:
    """Two hidden layers, ten logits."""
    return nn.Sequential(
        nn.Linear(64, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, CLASSES),
    )


def fit(network: nn.Module, rows: Tensor, steps: int, loss: Callable[[Tensor], Tensor]) -> None:
    """Minimise ``loss`` of batches of ``rows``, int64 [n] of the training part, with Adam."""
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    network.train()
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (BATCH,))]
        optimizer.zero_grad()
        loss(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    network.eval()


def teacher(steps: int) -> nn.Module:
    """A perceptron of 256 with dropout that learnt all digits by their labels."""
    data, network = digits(), perceptron(256, dropout=0.5)
    rows = torch.arange(TRAIN)
    fit(network, rows, steps, lambda b: F.cross_entropy(network(data.train_x[b]), data.train_y[b]))
    return network


def accuracy(logits: Tensor, label: Tensor) -> float:
    """Share of the largest logits that are the label's, in [0, 1]."""
    return float((logits.argmax(1) == label).float().mean())
