"""Batch normalisation over the images of several ranks, on any device (PyTorch's needs a GPU)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as torch_dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selfsame import dist
from selfsame.nn.precision import wide

Group = Any  # a process group, or None for all ranks


class SyncBatchNorm(_BatchNorm):
    """BatchNorm whose training statistics are those of the images of a group of ranks.

    Forward and backward are those of one process with all the images, to rounding. Ranks of
    different groups have different statistics; the running ones are the mean over the groups, and
    bit-equal on all ranks.

    Args:
        norm: what it stands for; its parameters and buffers are shared.
        group: the ranks, None for all.
    """

    def __init__(self, norm: _BatchNorm, group: Group = None) -> None:
        nn.Module.__init__(self)
        for name in ("num_features", "eps", "momentum", "affine", "track_running_stats"):
            setattr(self, name, getattr(norm, name))
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.group = group
        # timm's norms go on with dropout and an activation
        self.drop, self.act = getattr(norm, "drop", None), getattr(norm, "act", None)
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """[B, C, ...] -> [B, C, ...]."""
        if self.training:
            y, mean, variance, count = _Normalize.apply(
                input, self.weight, self.bias, self.eps, self.group
            )
            if self.track_running_stats and self.running_mean is not None:
                self._remember(mean, variance * count / (count - 1).clamp(min=1))
        else:
            y = super().forward(input)
        for then in (self.drop, self.act):
            y = y if then is None else then(y)
        return y  # type: ignore[no-any-return]

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = self.momentum
        if momentum is None:  # the mean of all batches
            momentum = 1.0 / float(self.num_batches_tracked)
        if self.group is not None:
            mean, variance = dist.mean(torch.stack([mean, variance])).unbind()
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, with the statistics of a group of ranks."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Group
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [0, *range(2, x.ndim)]
        count = x.numel() // max(1, x.shape[1])
        local_var, local_mean = torch.var_mean(wide(x), axes, correction=0)
        # mean and variance of each rank, put together without a difference of large numbers
        packed = torch.cat([local_mean, local_var, local_mean.new_full((1,), count)])
        each = _gather(packed, group)  # [W, 2 C + 1]
        means, variances = each[:, :-1].reshape(len(each), 2, -1).unbind(1)
        share = each[:, -1:] / each[:, -1].sum()
        mean = (share * means).sum(0)
        variance = (share * (variances + (means - mean).square())).sum(0)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.group, ctx.count, ctx.has_bias = group, each[:, -1].sum(), bias is not None
        y = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.mark_non_differentiable(mean, variance, ctx.count)
        return y, mean, variance, ctx.count

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        shape = [1, -1, *[1] * (x.ndim - 2)]
        axes = [0, *range(2, x.ndim)]
        dy = wide(grads[0])
        normal = (wide(x) - mean.view(shape)) * scale.view(shape)
        of_bias, of_weight = dy.sum(axes), (dy * normal).sum(axes)
        packed = torch.cat([of_bias, of_weight])
        first, second = _gather(packed, ctx.group).sum(0).div(ctx.count).chunk(2)
        dx = dy - first.view(shape) - normal * second.view(shape)
        dx = dx * (scale if weight is None else scale * weight).view(shape)
        return (
            dx.to(x.dtype),
            None if weight is None else of_weight.to(weight.dtype),
            of_bias.to(weight.dtype) if ctx.has_bias and weight is not None else None,
            None,
            None,
        )


def _gather(x: Tensor, group: Group) -> Tensor:
    """[D] of each rank of the group, [W, D]: summed in one order, the same bits on all."""
    count = torch_dist.get_world_size(group) if dist.world_size() > 1 else 1
    if count == 1:
        return x[None]
    found = [torch.empty_like(x) for _ in range(count)]
    with dist.together():
        torch_dist.all_gather(found, x.contiguous(), group=group)
    return torch.stack(found)


@contextmanager
def resting_statistics(network: nn.Module) -> Iterator[None]:
    """BatchNorms normalise as they do in training, and remember nothing: for a second look."""
    norms = [norm for norm in norms_of(network) if norm.num_batches_tracked is not None]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]  # type: ignore[union-attr]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = count


def norms_of(network: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms of a network."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm)]
