"""The gradient of a step from micro-batches: that of the whole batch, in the memory of a part.

Where the loss is a mean over images, the mean of the parts' gradients is the gradient. Where it
looks across images, the step goes through the networks twice (Gao, Zhang, Han, Callan, "Scaling
deep contrastive learning batch size under memory limited setup", arXiv 2101.06983): all parts are
embedded without gradient, the loss of all embeddings gives the gradient at each of them, and a
second pass takes that to the weights, with the dropout of the first.

BatchNorm is the exception: it normalises each part on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor

from selfsame import dist
from selfsame.nn.batchnorm import resting_statistics
from selfsame.types import Batch, Method, Output, Progress

Views = Mapping[str, Tensor]


class Step(NamedTuple):
    """What the forward and backward passes of one optimiser step leave behind."""

    loss: Tensor  # [] of this rank's images
    metrics: Mapping[str, Tensor]  # means over the micro-batches
    carry: list[Mapping[str, Tensor]]  # as ``after_step`` takes them


def split(batch: Batch, count: int) -> list[Batch]:
    """``count`` equal micro-batches of a batch, in order."""
    parts = [[None] * count if x is None else x.tensor_split(count) for x in batch]
    return [Batch(*each) for each in zip(*parts, strict=True)]


def backward(
    method: Method,
    views: Iterable[Views],
    t: Progress,
    *,
    count: int,
    images: int,
    seed: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Step:
    """Leave the gradient of this rank's images in the parameters, added to what is there.

    Args:
        method: what is trained.
        views: of each micro-batch, in order.
        t: where the run stands.
        count: micro-batches.
        images: in each of them.
        seed: of what the networks draw at random.
        autocast: the region for forward passes.
    """

    def forward(function: Callable[[Views, Progress], object], k: int, x: Views) -> object:
        torch.manual_seed(seed)  # draws are for the whole batch: `nn.rows`
        with dist.micro_batch(k, count, images), autocast():
            return function(x, t)

    if count > 1 and method.batch_coupled:
        return _two_passes(method, list(views), t, forward, autocast)
    outputs: list[Output] = []
    for k, x in enumerate(views):
        out = forward(method, k, x)
        assert isinstance(out, Output)
        (out.loss / count).backward()  # type: ignore[no-untyped-call]
        outputs.append(out._replace(loss=out.loss.detach()))
    loss = torch.stack([out.loss for out in outputs]).mean()
    names = outputs[0].metrics
    metrics = {name: torch.stack([o.metrics[name] for o in outputs]).mean() for name in names}
    return Step(loss, metrics if count > 1 else names, [out.carry for out in outputs])


def _two_passes(
    method: Method,
    views: list[Views],
    t: Progress,
    forward: Callable[[Callable[[Views, Progress], object], int, Views], object],
    autocast: Callable[[], AbstractContextManager[object]],
) -> Step:
    def embed(k: int) -> Mapping[str, Tensor]:
        found = forward(method.embed, k, views[k])
        assert isinstance(found, Mapping)
        return found

    with torch.no_grad(), resting_statistics(method):
        parts = [embed(k) for k in range(len(views))]
    whole = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
    for z in whole.values():
        z.requires_grad_(z.is_floating_point())
    with autocast():
        out = method.loss(whole, t)
    out.loss.backward()  # type: ignore[no-untyped-call]
    sizes = [{name: z.shape[1] for name, z in part.items()} for part in parts]
    del parts
    begin = dict.fromkeys(whole, 0)
    for k, size in enumerate(sizes):
        again = embed(k)
        reached = []
        for name, z in again.items():
            gradient = whole[name].grad
            if z.requires_grad and gradient is not None:
                reached.append((z, gradient.narrow(1, begin[name], size[name])))
            begin[name] += size[name]
        outputs, gradients = zip(*reached, strict=True)
        torch.autograd.backward(outputs, gradients)
    return Step(out.loss.detach(), out.metrics, [out.carry])
