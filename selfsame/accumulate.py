"""The gradient of a step from micro-batches: that of the whole batch, in the memory of a part.

Where the loss is a mean over images, the mean of the parts' gradients is the gradient. Where it
looks across images, the step goes through the networks twice (Gao, Zhang, Han, Callan, "Scaling
deep contrastive learning batch size under memory limited setup", arXiv 2101.06983): all parts are
embedded without gradient, the loss of all embeddings gives the gradient at each of them, and a
second pass takes that to the weights, with the dropout of the first.

BatchNorm is the exception: it normalises each part on its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
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
    if count > 1 and method.batch_coupled:
        return _two_passes(method, list(views), t, images, seed, autocast)
    outputs: list[Output] = []
    for k, x in enumerate(views):
        # the backward pass is inside, too: checkpointed activations are computed there again
        with _micro_batch(k, count, images, seed):
            with autocast():
                out = method(x, t)
            (out.loss / count).backward()
        outputs.append(out._replace(loss=out.loss.detach()))
    if count == 1:
        return Step(*outputs[0][:2], [outputs[0].carry])
    loss = torch.stack([out.loss for out in outputs]).mean()
    names = outputs[0].metrics
    metrics = {name: torch.stack([out.metrics[name] for out in outputs]).mean() for name in names}
    return Step(loss, metrics, [out.carry for out in outputs])


def _two_passes(
    method: Method,
    views: list[Views],
    t: Progress,
    images: int,
    seed: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Step:
    count = len(views)
    parts = []
    for k, x in enumerate(views):
        first_look = resting_statistics(method)
        with _micro_batch(k, count, images, seed), torch.no_grad(), autocast(), first_look:
            parts.append(method.embed(x, t))
    whole = {name: torch.cat([part[name] for part in parts], dim=1) for name in parts[0]}
    for z in whole.values():
        z.requires_grad_(z.is_floating_point())
    with autocast():
        out = method.loss(whole, t)
    out.loss.backward()  # type: ignore[no-untyped-call]
    for k, x in enumerate(views):
        with _micro_batch(k, count, images, seed):
            with autocast():
                again = method.embed(x, t)
            outputs, gradients = [], []
            for name, z in again.items():
                begin = sum(part[name].shape[1] for part in parts[:k])
                gradient = whole[name].grad
                if z.requires_grad and gradient is not None:
                    outputs.append(z)
                    gradients.append(gradient.narrow(1, begin, z.shape[1]))
            torch.autograd.backward(outputs, gradients)
    return Step(out.loss.detach(), out.metrics, [out.carry])


@contextmanager
def _micro_batch(number: int, count: int, images: int, seed: int) -> Iterator[None]:
    """Draws of the networks are for the whole batch (`nn.rows`), so every part begins alike."""
    torch.manual_seed(seed)
    with dist.micro_batch(number, count, images):
        yield
