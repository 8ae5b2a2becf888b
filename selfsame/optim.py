"""Optimisers: options, parameter groups, learning-rate scaling, LARS, and the rates of a step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from selfsame import schedule
from selfsame.config import Config
from selfsame.errors import UsageError
from selfsame.types import Method, Progress, Rate

MomentumForm = Literal["popular", "classic", "momentum_first"]
Ratio = Literal["joint", "split"]

MAX_WARMUP_SHARE = 0.2
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Optim(Config):
    """How weights are updated.

    A field that the chosen optimiser does not read is ignored where it has its default and refused
    where it was set.
    """

    name: Literal["sgd", "adamw", "lars"] = "sgd"

    lr: float = Field(0.05, gt=0)
    """Peak learning rate at ``reference_batch`` images a step; `scaled_lr` gives the real one."""
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    reference_batch: int = Field(256, gt=0)
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    warmup: float = Field(10.0, ge=0)
    """Linear warm-up from 0, in epochs; at most a fifth of the run, so that short runs train."""
    final_lr: float = Field(0.0, ge=0, le=1)
    """Where the cosine ends, as a share of the peak."""
    warmup_start: float = Field(0.0, ge=0, le=1)
    """Where the warm-up starts, as a share of the peak."""
    closed_warmup: bool = False
    """Whether the warm-up's last step has the peak already (`schedule.warmup_cosine`)."""
    milestones: tuple[float, ...] = ()
    """Where the step schedule multiplies by ``step_factor``, as shares of the run in (0, 1)."""
    step_factor: float = Field(0.1, gt=0, lt=1)

    weight_decay: float = Field(0.0, ge=0)
    final_weight_decay: float | None = Field(None, ge=0)
    """Where a cosine takes the weight decay over the whole run; None keeps it constant."""
    exclude_1d: bool = True
    """Biases, norm parameters and 1-D tensors get no weight decay and no LARS adaptation."""
    lr_1d: float = Field(1.0, gt=0)
    """Learning rate of those tensors, as a share of everyone else's."""
    clip_norm: float | None = Field(None, gt=0)
    """Largest norm of a gradient; None leaves it as it is."""
    clip: Literal["global", "module", "tensor"] = "global"
    """Whose norm: that of the whole gradient, of each part of the method (its backbone, each of its
    heads: DINOv2), or of each tensor alone (DINO, iBOT)."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD and LARS."""
    nesterov: bool = False
    """SGD and LARS."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW."""
    eps: float = Field(1e-8, ge=0)
    """AdamW, and the split ratio of LARS."""
    trust_coefficient: float = Field(0.001, gt=0)
    """LARS, like the three that follow; `LARS` explains them."""
    momentum_form: MomentumForm = "popular"
    ratio: Ratio = "joint"
    clip_ratio: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Optim:
        readers = {
            "nesterov": ("sgd", "lars"),
            "momentum": ("sgd", "lars"),
            "betas": ("adamw",),
            "eps": ("adamw", "lars"),
            "trust_coefficient": ("lars",),
            "momentum_form": ("lars",),
            "ratio": ("lars",),
            "clip_ratio": ("lars",),
        }
        for field, names in readers.items():
            default = type(self).model_fields[field].default
            if self.name not in names and getattr(self, field) != default:
                raise ValueError(f"{field} is read by {' and '.join(names)}, not by {self.name}")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), not {self.betas}")
        if self.ratio == "split" and self.momentum_form == "momentum_first":
            raise ValueError("ratio 'split' needs momentum_form 'popular' or 'classic'")
        if (self.schedule == "step") != bool(self.milestones):
            raise ValueError("schedule 'step' and milestones go together: set both or neither")
        if list(self.milestones) != sorted({m for m in self.milestones if 0 < m < 1}):
            raise ValueError(f"milestones must be ascending shares in (0, 1): {self.milestones}")
        return self


class Rates(NamedTuple):
    """What the schedule sets at one step."""

    lr: float
    weight_decay: float


def scaled_lr(optim: Optim, batch_size: int) -> float:
    """Peak learning rate for ``batch_size`` images an optimiser step, over all ranks.

    ``lr * B / reference_batch`` ("linear": Goyal et al., arXiv 1706.02677), ``lr * sqrt(B /
    reference_batch)`` ("sqrt": SimCLR, arXiv 2002.05709, table B.1) or ``lr`` ("none").
    """
    share = batch_size / optim.reference_batch
    return optim.lr * {"linear": share, "sqrt": math.sqrt(share), "none": 1.0}[optim.scaling]


def warmup_steps(optim: Optim, total: int, steps_per_epoch: float) -> int:
    """Warm-up in optimiser steps: ``warmup`` epochs, at most `MAX_WARMUP_SHARE` of the run."""
    return round(min(optim.warmup * steps_per_epoch, MAX_WARMUP_SHARE * total))


def rates(optim: Optim, batch_size: int, t: Progress, steps_per_epoch: float) -> Rates:
    """Learning rate and weight decay of step ``t.step``.

    Args:
        optim: The options.
        batch_size: Images an optimiser step, over all ranks and micro-batches.
        t: Where the run stands; only ``step`` and ``total`` are read.
        steps_per_epoch: Optimiser steps in one pass over the data, not necessarily whole.
    """
    peak = scaled_lr(optim, batch_size)
    warm = warmup_steps(optim, t.total, steps_per_epoch)
    if optim.schedule == "cosine":
        lr = schedule.warmup_cosine(
            t.step,
            t.total,
            warm,
            peak,
            optim.final_lr * peak,
            start=optim.warmup_start * peak,
            closed=optim.closed_warmup,
        )
    else:
        passed = sum(t.step >= milestone * t.total for milestone in optim.milestones)
        ramp = schedule.linear(t.step, warm, optim.warmup_start * peak, peak)
        lr = ramp * optim.step_factor**passed
    decay = optim.weight_decay
    if optim.final_weight_decay is not None:
        decay = schedule.cosine(t.step, t.total, decay, optim.final_weight_decay)
    return Rates(lr, decay)


def parameter_groups(module: nn.Module, optim: Optim) -> list[dict[str, Any]]:
    """Sort the trainable parameters of ``module`` into groups for a torch optimiser.

    Biases, parameters of normalisation layers and tensors of at most one dimension are ``exclude``:
    no weight decay, no LARS adaptation, their own learning rate. Every trainable parameter is in
    exactly one group, a tied one once; frozen ones are in none. A ``Method`` may give parameters
    rates of their own.

    Returns:
        "weights" and "excluded", one of each for every rate, where not empty; each with ``name``,
        ``params``, ``exclude``, ``lr_scale``, ``fixed`` and ``weight_decay``.

    Raises:
        UsageError: ``module`` has nothing to train.
    """
    norms = {id(p) for m in module.modules() if isinstance(m, NORMS) for p in m.parameters()}
    found: dict[tuple[bool, Rate], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        simple = parameter.ndim <= 1 or id(parameter) in norms or name.split(".")[-1] == "bias"
        rate = module.rate(name) if isinstance(module, Method) else Rate()
        found.setdefault((simple and optim.exclude_1d, rate), []).append(parameter)
    if not found:
        raise UsageError(
            f"{type(module).__name__} has no trainable parameter",
            tip="set requires_grad on the parameters that should learn",
        )
    return [
        {
            "name": "excluded" if exclude else "weights",
            "params": found[exclude, rate],
            "exclude": exclude,
            "lr_scale": rate.scale * (optim.lr_1d if exclude else 1.0),
            "fixed": rate.fixed,
            "weight_decay": 0.0 if exclude else optim.weight_decay,
        }
        for exclude, rate in sorted(found)
    ]


def build(module: nn.Module, optim: Optim, batch_size: int) -> torch.optim.Optimizer:
    """Build the optimiser of ``module``'s trainable parameters, at the peak learning rate.

    SGD and AdamW run fused where all parameters lie on devices that have the kernel.

    Args:
        module: What is trained, already on its device.
        optim: The options.
        batch_size: Images an optimiser step, over all ranks and micro-batches.

    Raises:
        UsageError: ``module`` has nothing to train.
    """
    groups = parameter_groups(module, optim)
    lr = scaled_lr(optim, batch_size)
    devices = {p.device.type for group in groups for p in group["params"]}
    fused = devices <= {"cpu", "cuda"} or None  # None lets torch choose
    optimizer: torch.optim.Optimizer
    if optim.name == "adamw":
        optimizer = _AdamW(groups, lr, betas=optim.betas, eps=optim.eps, fused=fused)
    elif optim.name == "sgd":
        if any(hasattr(p, "full_tensor") for group in groups for p in group["params"]):
            fused = None  # torch has no such kernel for sharded weights
        optimizer = _SGD(groups, lr, momentum=optim.momentum, nesterov=optim.nesterov, fused=fused)
    else:
        optimizer = LARS(
            groups,
            lr,
            momentum=optim.momentum,
            nesterov=optim.nesterov,
            trust_coefficient=optim.trust_coefficient,
            momentum_form=optim.momentum_form,
            ratio=optim.ratio,
            clip_ratio=optim.clip_ratio,
            eps=optim.eps,
        )
    set_rates(optimizer, lr, optim.weight_decay)
    return optimizer


def set_rates(
    optimizer: torch.optim.Optimizer, lr: float, weight_decay: float, peak: float | None = None
) -> None:
    """Give every group its rates: ``lr * lr_scale``, and the decay unless it is ``exclude``.

    ``fixed`` groups take ``peak`` for ``lr``, where it is given.
    """
    for group in optimizer.param_groups:
        fixed = peak is not None and group.get("fixed", False)
        group["lr"] = (peak if fixed else lr) * group.get("lr_scale", 1.0)
        group["weight_decay"] = 0.0 if group.get("exclude", False) else weight_decay


def clip(module: nn.Module, optim: Optim) -> Tensor:
    """Bound the gradients of ``module`` in place; the norm of the whole gradient before that."""
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # of sharded gradients it is a norm of parts, which becomes a number here
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    if optim.clip_norm is None:
        return whole
    if optim.clip == "global":
        nn.utils.clip_grads_with_norm_(parameters, optim.clip_norm, norm)
        return whole
    if optim.clip == "tensor":
        parts = [[p] for p in parameters]
    else:
        parts = [list(part.parameters()) for part in module.children()]
        parts.append(list(module.parameters(recurse=False)))
    for part in parts:
        nn.utils.clip_grad_norm_(part, optim.clip_norm)
    return whole


class Eager(torch.optim.Optimizer):
    """An optimiser without the guards that tell ``torch.compile`` to leave its methods alone.

    The first call of one imports ``torch._dynamo``, which takes as long as torch itself. What the
    methods do stays the same.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class _AdamW(Eager, torch.optim.AdamW):
    """Torch's own, started sooner."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class _SGD(Eager, torch.optim.SGD):
    """Torch's own, started sooner, for parameters that get their first gradient later, too.

    Its fused kernel wants a momentum of all parameters or of none. One of zero is none: what it
    becomes is the gradient.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"] if group["momentum"] else ():
                if p.grad is not None and "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        _sgd_step(self)
        return loss


_sgd_step = inspect.unwrap(torch.optim.SGD.step)


class LARS(Eager):
    r"""Layer-wise adaptive rate scaling: the step of each tensor is proportional to its norm.

    With weight :math:`w`, gradient :math:`g`, decay :math:`\lambda`, trust coefficient
    :math:`\eta`, momentum :math:`m` and learning rate :math:`\gamma`, and norms over whole tensors:

    .. math::
        u &= g + \lambda w \\
        r &= \eta \lVert w \rVert / \lVert u \rVert, \quad 1 \text{ where a norm is } 0 \\
        v &\leftarrow m v + r u \\
        w &\leftarrow w - \gamma v

    Groups with ``exclude`` set have :math:`\lambda = 0` and :math:`r = 1`: momentum SGD.

    Sources: You, Gitman, Ginsburg, arXiv 1708.03888, algorithm 1, whose denominator is "split"; the
    form above is that of BYOL, Barlow Twins, VICReg, DINO, MoCo v3 and MAE. The others:

    * ``momentum_form``: "popular" is above. "classic" keeps the learning rate in the buffer,
      ``v <- m v + lr r u; w <- w - v`` (SimCLR's default); the two agree while ``lr`` is constant.
      "momentum_first" adapts what the momentum gives, ``v <- m v + u; w <- w - lr r(v) v`` (what
      SimCLR's code calls popular).
    * ``nesterov``: the step is ``r u + m v`` in place of ``v``, with the same factors.
    * ``ratio``: "joint" is above. "split" has the denominator ``|g| + wd |w| + eps``; a tensor with
      zero weights takes its plain gradient, one with zero gradient is not decayed (apex LARC, used
      by SwAV and DeepCluster v2).
    * ``clip_ratio``: ``r <- min(r / lr, 1)``, so that adaptation only slows down (apex LARC).

    Norms are computed in float32, or float64 for float64 parameters.

    Args:
        params: Tensors or groups, as for every torch optimiser; a group may set any option and
            ``exclude``.
        lr: Learning rate.
        momentum: In [0, 1).
        nesterov: See above.
        weight_decay: L2 coefficient, added to the gradient before the ratio is taken.
        trust_coefficient: The share of its norm that a tensor moves per unit of learning rate.
        momentum_form: See above.
        ratio: See above.
        clip_ratio: See above.
        eps: Added to the denominator of the split ratio.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        momentum_form: MomentumForm = "popular",
        ratio: Ratio = "joint",
        clip_ratio: bool = False,
        eps: float = 1e-8,
    ) -> None:
        if ratio == "split" and momentum_form == "momentum_first":
            raise ValueError("ratio 'split' needs momentum_form 'popular' or 'classic'")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "momentum_form": momentum_form,
            "ratio": ratio,
            "clip_ratio": clip_ratio,
            "eps": eps,
            "exclude": False,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            # A GPU wants one launch for many tensors, a CPU one tensor at a time in its cache.
            one_by_one = all(p.device.type == "cpu" for p in params)
            for chunk in [[p] for p in params] if one_by_one else [params]:
                self._update(group, chunk)
        return loss

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        lr, form = group["lr"], group["momentum_form"]
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        grads = [p.grad for p in params if p.grad is not None]

        decay = 0.0 if group["exclude"] else group["weight_decay"]
        update: Any = torch._foreach_add(grads, params, alpha=decay)  # a copy, changed in place
        if form != "momentum_first":
            self._adapt(group, params, grads, update)
        if form == "classic":
            torch._foreach_mul_(update, lr)

        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, update)
        if group["nesterov"]:
            torch._foreach_add_(update, buffers, alpha=group["momentum"])
        elif form == "momentum_first":
            torch._foreach_copy_(update, buffers)
        else:
            update = buffers

        if form == "momentum_first":
            self._adapt(group, params, update, update)
        torch._foreach_add_(params, update, alpha=-1.0 if form == "classic" else -lr)

    def _adapt(self, group: dict[str, Any], params: Any, grads: Any, update: Any) -> None:
        """Scale each update in place by its trust ratio; no ratio ever leaves the device."""
        if group["exclude"]:
            return
        dtype = torch.float64 if params[0].dtype == torch.float64 else torch.float32
        weight = torch.stack(torch._foreach_norm(params, 2, dtype=dtype))
        eta = group["trust_coefficient"]
        if group["ratio"] == "joint":
            norm = torch.stack(torch._foreach_norm(update, 2, dtype=dtype))
            ratio = eta * weight / norm
            idle = 1.0
        else:
            norm = torch.stack(torch._foreach_norm(grads, 2, dtype=dtype))
            ratio = eta * weight / (norm + group["weight_decay"] * weight + group["eps"])
            idle = 0.0  # no gradient, no decay
        if group["clip_ratio"]:
            ratio = (ratio / group["lr"]).clamp(max=1.0)
        ratio = ratio.masked_fill(norm == 0, idle).masked_fill((weight == 0) & (norm > 0), 1.0)
        torch._foreach_mul_(update, ratio.unbind())
