"""Small networks on the digits, and a loop that trains any method of the table on them in seconds.

Where `digits` has losses of logits, here the methods themselves learn, with their heads, banks and
queues, from a teacher that is a `Teacher`. Only the engine is left out: images, views and
networks of this size need none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.claims import digits
from selfsame.nn.classify import Linear
from selfsame.nn.teacher import Teacher
from selfsame.types import Backbone, Features, Method, Norm, Progress

NORM = Norm((0.5,), (0.5,))
RATE = 2e-3  # of Adam
POINTS = 40  # of a curve


class Images(NamedTuple):
    """Normalised images, float32 [N, 1, S, S], and labels, int64 [N], of two parts."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def images() -> Images:
    """The digits as images of 8 px."""
    found = digits.digits()
    return Images(image(found.train_x), found.train_y, image(found.test_x), found.test_y)


def image(pixels: Tensor, side: int = 8) -> Tensor:
    """Pixels in [0, 1], float32, as normalised images [N, 1, side, side]."""
    return (pixels.reshape(-1, 1, side, side) - NORM.mean[0]) / NORM.std[0]


class Perceptron(Backbone):
    """Linear layers with ReLU between them, in stages whose maps have a single place.

    Args:
        stages: widths of the layers of each stage.
        dropout: share of the hidden units that rest.
        batchnorm: whether each layer has one.
        rectified: whether the features, too, go through a ReLU.
    """

    can = frozenset({"stages"})
    stride = None
    norm = NORM

    def __init__(
        self,
        *stages: Sequence[int],
        dropout: float = 0.0,
        batchnorm: bool = False,
        rectified: bool = True,
    ) -> None:
        super().__init__()
        self.dim = stages[-1][-1]
        parts: list[list[nn.Module]] = []
        before = 64
        for widths in stages:
            layers: list[nn.Module] = []
            for width in widths:
                layers.append(nn.Linear(before, width))
                layers += [nn.BatchNorm1d(width)] if batchnorm else []
                layers += [nn.ReLU(), nn.Dropout(dropout)]
                before = width
            parts.append(layers)
        if not rectified:
            del parts[-1][-2:]
        self.parts = nn.ModuleList(nn.Sequential(*layers) for layers in parts)

    def stages(self, x: Tensor) -> tuple[Sequence[Tensor], Features]:
        """The outputs of the stages, [B, C, 1, 1], and features."""
        maps, x = [], x.flatten(1)
        for part in self.parts:
            x = part(x)
            maps.append(x[:, :, None, None])
        return maps, Features(x, None, (0, 0))

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images [B, 1, 8, 8]."""
        return self.stages(x)[1]


class Convolutions(Backbone):
    """A 3 x 3 convolution a stage, with BatchNorm and ReLU; the resolution is halved in between."""

    can = frozenset({"stages"})
    stride = None
    norm = NORM

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.dim = widths[-1]
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
            for before, width in zip((1, *widths), widths, strict=False)
        )

    def stages(self, x: Tensor) -> tuple[Sequence[Tensor], Features]:
        """The maps of the stages, [B, C, h, w], and features, the mean over the last one."""
        maps: list[Tensor] = []
        for part in self.parts:
            maps.append(part(F.max_pool2d(maps[-1], 2) if maps else x))
        return maps, Features(maps[-1].mean((2, 3)), None, (0, 0))

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images [B, 1, S, S]."""
        return self.stages(x)[1]


def teach(network: Backbone, x: Tensor, y: Tensor, steps: int) -> Teacher:
    """A teacher of the digits' classes: the network, trained with labels.

    Args:
        network: what learns.
        x: images, [N, 1, S, S].
        y: labels, int64 [N].
        steps: of Adam.
    """
    head = Linear(network.dim, int(y.max()) + 1)
    both = nn.ModuleList([network, head])
    optimizer = torch.optim.Adam(both.parameters(), lr=RATE)
    for _ in range(steps):
        batch = torch.randint(len(x), (digits.BATCH,))
        optimizer.zero_grad()
        F.cross_entropy(head(network(x[batch]).pooled), y[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return Teacher(network, image_size=x.shape[-1], head=head)


def learn(
    method: Method,
    x: Tensor,
    y: Tensor,
    steps: int,
    views: Callable[[Tensor], Tensor] = lambda batch: batch[None],
) -> dict[str, list[tuple[float, float]]]:
    """Train a method with Adam on batches of images: its metrics over steps.

    Args:
        method: what learns; it is in evaluation mode afterwards.
        x: images, [N, 1, S, S], or what ``views`` makes images of.
        y: labels, int64 [N], for methods that look at them.
        steps: of Adam.
        views: rows of ``x`` to their views, [V, B, 1, S, S]; by default the images themselves.
    """
    optimizer = torch.optim.Adam(method.parameters(), lr=RATE)
    method.train()
    curves: dict[str, list[tuple[float, float]]] = {}
    for step in range(steps):
        batch = torch.randint(len(x), (digits.BATCH,))
        given = {"global": views(x[batch]), "label": y[batch], "set": torch.zeros_like(batch)}
        given |= method.draw(given, batch, seed=0, epoch=step)
        t = Progress(step, steps, step * digits.BATCH, step * digits.BATCH / len(x))
        output = method(given, t)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        method.after_step(t, [output.carry])
        if (step + 1) % max(1, steps // POINTS) == 0:
            for key, value in output.metrics.items():
                curves.setdefault(key, []).append((step + 1, float(value)))
    method.eval()
    return curves


@torch.no_grad()
def neighbours(bank: Tensor, label: Tensor, query: Tensor, truth: Tensor) -> float:
    """Share of queries [M, D] whose nearest by cosine in a bank [N, D] has their label."""
    similarity = F.normalize(query, dim=1) @ F.normalize(bank, dim=1).T
    return float((label[similarity.argmax(1)] == truth).float().mean())
