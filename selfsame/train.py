"""The loop, top to bottom."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import nn

from selfsame import checkpoint, machine, optim
from selfsame.console import Console
from selfsame.data import Loader
from selfsame.errors import DivergedError
from selfsame.plan import Plan
from selfsame.rng import key
from selfsame.run import RunDirectory
from selfsame.types import Method, Output, Progress

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
    ends bit for bit as one that never stopped.

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
        RunError: a loss or gradient that is not finite, or a disk that refuses.
    """
    recipe = plan.recipe
    optimizer = optim.build(method, recipe.optim, recipe.batch_size)
    start = restore(run, method, optimizer)
    if start:
        console.say(f"continuing from step {start:,} of {plan.total:,}")
    run.rewind(start)
    method.train()
    loader = Loader(plan.images, recipe.batch_size, recipe.seed, start, plan.total)
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
            views = plan.views(method, batch, epoch)
            # 2. the loss and its gradient
            rates = optim.rates(recipe.optim, recipe.batch_size, t, plan.steps_per_epoch)
            optim.set_rates(optimizer, rates.lr, rates.weight_decay, peak)
            torch.manual_seed(key(recipe.seed, 1, step))  # drop-path and dropout
            with machine.autocast(plan.device, recipe.precision):
                out: Output = method(views, t)
            optimizer.zero_grad(set_to_none=True)
            out.loss.backward()  # type: ignore[no-untyped-call]
            gradient = optim.clip(method, recipe.optim)
            for parameter in method.frozen(t):
                parameter.grad = None
            # 3. the update, unless something is not finite; a GPU is asked only now and then
            done = step + 1
            healthy &= torch.isfinite(out.loss.detach() + gradient)
            log = done % log_every == 0 or done == plan.total
            save = save_is_due(done, plan.total, save_every, saved_at) or interrupt.asked
            evaluating = evaluate is not None and (
                done == plan.total or (eval_every is not None and done % eval_every == 0)
            )
            ask = plan.device.type == "cpu" or log or save or evaluating
            if ask and not healthy.item():
                raise not_finite(run, step, out, gradient, rates.lr)
            optimizer.step()
            method.after_step(t, [out.carry])
            # 4. what is written and shown; the checkpoint last, so that it vouches for the rest
            if log:
                row = {"step": done, **measurements(t, out, gradient, rates)}
                now = time.monotonic()
                seconds, waited_now = now - clock, loader.waited - waited
                clock, waited = now, loader.waited
                steps = (done - start) % log_every or log_every
                row["images_per_second"] = round(steps * recipe.batch_size / seconds, 1)
                row["waiting"] = round(waited_now / seconds, 3)  # share of the time, for data
                run.append("metrics", [row])
                console.progress(done, plan.total, row)
            if len(plan.images.bad) > reported:
                run.add_bad_images(plan.images.bad)
                reported = len(plan.images.bad)
            if evaluating:
                assert evaluate is not None
                evaluate(method, done)
                clock = time.monotonic()
            if save:
                checkpoint.save(run.checkpoints, done, method, optimizer)
                saved, saved_at = done, time.monotonic()
            if interrupt.asked:
                break
    if saved != done:
        checkpoint.save(run.checkpoints, done, method, optimizer)
    return done


def restore(run: RunDirectory, method: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Load the newest checkpoint into the method and the optimiser; the number of steps done."""
    newest = checkpoint.latest(run.checkpoints)
    if newest is None:
        return 0
    state = checkpoint.load(newest)
    method.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def save_is_due(done: int, total: int, every: int | None, saved_at: float) -> bool:
    """Whether to save after this step: by count, else by time, and always after the last."""
    if done == total:
        return True
    if every is not None:
        return done % every == 0
    return time.monotonic() - saved_at >= SAVE_SECONDS


def measurements(
    t: Progress, out: Output, gradient: torch.Tensor, rates: optim.Rates
) -> dict[str, float]:
    """The values of one step, fetched from the device in one go."""
    named = {"loss": out.loss.detach(), **out.metrics, "grad_norm": gradient}
    values = torch.stack([value.float() for value in named.values()]).tolist()
    return {"epoch": t.epoch, **dict(zip(named, values, strict=True)), **rates._asdict()}


def not_finite(
    run: RunDirectory, step: int, out: Output, gradient: torch.Tensor, lr: float
) -> DivergedError:
    """The error of a step whose loss or gradient is not finite."""
    last = checkpoint.latest(run.checkpoints)
    kept = f"the checkpoint of step {checkpoint.step_of(last)} is kept" if last else ""
    return DivergedError(
        f"at step {step} the loss is {out.loss.item():.4g} and the gradient's norm "
        f"{gradient.item():.4g}" + (f"; {kept}" if kept else ""),
        tip=f"lower the learning rate (now {lr:.3g}) with --set optim.lr=..., bound the gradient "
        "with --set optim.clip_norm=1.0, or use --precision fp32",
    )


class Interrupt:
    """SIGINT and SIGTERM ask the loop to stop after the step; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False
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
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
