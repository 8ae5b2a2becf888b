"""The loop, top to bottom."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from selfsame import accumulate, checkpoint, dist, machine, optim, parallel, sharded
from selfsame.console import Console
from selfsame.data import Loader
from selfsame.errors import RunError, UsageError
from selfsame.plan import Plan
from selfsame.rng import key
from selfsame.run import RunDirectory
from selfsame.types import Method, Progress

SAVE_SECONDS = 600.0  # between checkpoints, where the user names no number of steps


def train(
    plan: Plan,
    method: Method,
    run: RunDirectory,
    console: Console,
    *,
    save_every: int | None = None,
    log_every: int = 10,
    eval_every: int | None = None,
    evaluate: Callable[[Method, int], None] | None = None,
) -> int:
    """Train ``method`` from the run's newest checkpoint, or from the start, to the plan's end.

    State is (step, method, optimizer). Data order, augmentation, schedules and every other random
    draw are functions of the seed and the step, so a run that was stopped anywhere and continued
    ends bit for bit as one that never stopped. Every rank calls it; each does its part of every
    batch, and rank 0 alone writes, prints and evaluates.

    Args:
        plan: what to do.
        method: as ``plan.build`` gives it; trained in place.
        run: where to write.
        console: where to say it.
        save_every: steps between checkpoints; by default one every ten minutes.
        log_every: steps between lines of ``metrics.jsonl``.
        eval_every: steps between calls of ``evaluate``, None for none.
        evaluate: called with the method and the number of steps done.

    Returns:
        The number of steps done: fewer than ``plan.total`` where the user interrupted the run,
        which then ends with a checkpoint.

    Raises:
        RunError: a loss or gradient that is not finite, a disk that refuses, or a lost process.
    """
    recipe, rank, world = plan.recipe, dist.rank(), dist.world_size()
    parallel.prepare(method, plan.layout)
    optimizer = optim.build(method, recipe.optim, recipe.batch_size)
    with dist.agreed():
        start = restore(run, method, optimizer)
    if len(set(dist.everyone(start))) > 1:
        raise dist.once(
            RunError(
                f"the processes do not see the same checkpoints in {run.path}",
                tip="put the run on a file system that all machines share",
            )
        )
    if start:
        console.say(f"continuing from step {start:,} of {plan.total:,}")
    run.rewind(start)
    method.train()
    loader = Loader(
        plan.images, recipe.batch_size, recipe.seed, start, plan.total, rank=rank, world=world
    )
    autocast = partial(machine.autocast, plan.device, recipe.precision)
    done = saved = start
    peak = optim.scaled_lr(recipe.optim, recipe.batch_size)
    healthy = torch.ones((), dtype=torch.bool, device=plan.device)
    clock = saved_at = time.monotonic()
    waited, reported = 0.0, 0

    with Interrupt() as interrupt, loader:
        for step, (epoch, batch) in enumerate(loader, start):
            # 1. the views of this step, made on the device
            t = plan.progress(step)
            if step % plan.steps_per_epoch == 0:
                torch.manual_seed(key(recipe.seed, 2, step))
                for parameter in method.before_epoch(t, plan.sweep(method)):
                    optimizer.state.pop(parameter, None)
            parts = accumulate.split(batch, plan.layout.accumulate)
            views = (plan.views(method, part, epoch) for part in parts)
            # 2. the loss and its gradient, of all ranks
            rates = optim.rates(recipe.optim, recipe.batch_size, t, plan.steps_per_epoch)
            optim.set_rates(optimizer, rates.lr, rates.weight_decay, peak)
            optimizer.zero_grad(set_to_none=True)
            seed = key(recipe.seed, 1, step)  # of drop-path and dropout
            out = accumulate.backward(
                method, views, t, count=len(parts), images=plan.share, seed=seed, autocast=autocast
            )
            loss = parallel.average(method, out.loss)
            gradient = optim.clip(method, recipe.optim)
            for parameter in method.frozen(t):
                parameter.grad = None
            # 3. the update, unless something is not finite; a GPU is asked only now and then
            done = step + 1
            healthy &= torch.isfinite(loss + gradient)
            log = done % log_every == 0 or done == plan.total
            stop, save, bad = dist.anywhere(
                interrupt.asked,
                interrupt.asked or save_is_due(done, plan.total, save_every, saved_at),
                len(plan.images.bad) > reported,
            )
            evaluating = evaluate is not None and (
                done == plan.total or (eval_every is not None and done % eval_every == 0)
            )
            ask = plan.device.type == "cpu" or log or save or evaluating
            if ask and not healthy.item():
                raise dist.once(not_finite(run, step, loss, gradient, rates.lr))
            optimizer.step()
            method.after_step(t, out.carry)
            # 4. what is written and shown; the checkpoint last, so that it vouches for the rest
            if log:
                row = {"step": done, **measurements(t, loss, out.metrics, gradient, rates)}
                now = time.monotonic()
                seconds, waited_now = now - clock, loader.waited - waited
                clock, waited = now, loader.waited
                steps = (done - start) % log_every or log_every
                row["images_per_second"] = round(steps * recipe.batch_size / seconds, 1)
                row["waiting"] = round(waited_now / seconds, 3)  # share of the time, for data
                run.append("metrics", [row])
                console.progress(done, plan.total, row)
            if bad:
                found = dist.everyone(list(plan.images.bad))
                run.add_bad_images(image for each in found for image in each)
                reported = len(plan.images.bad)
            if evaluating:
                assert evaluate is not None
                dist.on_main(partial(evaluate, parallel.whole(method, plan.build), done))
                clock = time.monotonic()
            if save:
                write(run, done, method, optimizer)
                saved, saved_at = done, time.monotonic()
            if stop:
                break
    if saved != done:
        write(run, done, method, optimizer)
    return done


def restore(run: RunDirectory, method: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the newest checkpoint into the method and the optimiser; the number of steps done."""
    newest = checkpoint.latest(run.checkpoints)
    if newest is None:
        return 0
    if sharded.is_one(newest):
        sharded.load(newest, method, optimizer)
        return checkpoint.step_of(newest)
    if parallel.is_sharded(method):
        raise UsageError(
            f"{run.path} was saved with whole weights", tip="continue it with --parallel ddp"
        )
    state = checkpoint.load(newest)
    method.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def write(
    run: RunDirectory, done: int, method: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Save a checkpoint: rank 0 for all, or every rank its part."""
    if parallel.is_sharded(method):
        sharded.save(run.checkpoints, done, method, optimizer)
    else:
        dist.on_main(partial(checkpoint.save, run.checkpoints, done, method, optimizer))


def save_is_due(done: int, total: int, every: int | None, saved_at: float) -> bool:
    """Whether to save after this step: by count, else by time, and always after the last."""
    if done == total:
        return True
    if every is not None:
        return done % every == 0
    return time.monotonic() - saved_at >= SAVE_SECONDS


def measurements(
    t: Progress, loss: Tensor, metrics: Mapping[str, Tensor], gradient: Tensor, rates: optim.Rates
) -> dict[str, float]:
    """The values of one step, means over ranks, fetched from the device in one go."""
    means = dist.mean(torch.stack([value.float() for value in metrics.values()] or [loss[None]]))
    named = {"loss": loss, **dict(zip(metrics, means, strict=False)), "grad_norm": gradient}
    values = torch.stack([value.float() for value in named.values()]).tolist()
    return {"epoch": t.epoch, **dict(zip(named, values, strict=True)), **rates._asdict()}


def not_finite(run: RunDirectory, step: int, loss: Tensor, gradient: Tensor, lr: float) -> RunError:
    """The error of a step whose loss or gradient is not finite."""
    last = checkpoint.latest(run.checkpoints)
    kept = f"the checkpoint of step {checkpoint.step_of(last)} is kept" if last else ""
    return RunError(
        f"at step {step} the loss is {loss.item():.4g} and the gradient's norm "
        f"{gradient.item():.4g}" + (f"; {kept}" if kept else ""),
        tip=f"lower the learning rate (now {lr:.3g}) with --set optim.lr=..., bound the gradient "
        "with --set optim.clip_norm=1.0, or use --precision fp32",
    )


class Interrupt:
    """SIGINT and SIGTERM ask the loop to stop after the step; a second one stops at once.

    A second one within a second is the first again: a terminal and torchrun both send theirs.
    """

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self.asked and time.monotonic() - self._since > 1.0:
            raise KeyboardInterrupt
        self.asked, self._since = True, time.monotonic()
