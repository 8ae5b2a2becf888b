"""The loop, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from selfsame import checkpoint, dist, machine, optim
from selfsame.console import Console
from selfsame.data import Loader
from selfsame.guard import Guard
from selfsame.interrupt import Interrupt
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
    interrupt: Interrupt | None = None,
    careful: bool | None = None,
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
        evaluate: called with the method and the number of steps done; what was done before a
            stop it should not do again.
        interrupt: asks the loop to stop and save; by default the signals of the process do.
        careful: ask at every step whether it is finite, before anything builds on it. A GPU would
            be waited for, so by default it is asked now and then; where the answer is no, the run
            goes back to its last checkpoint and on from there with care.

    Returns:
        The number of steps done: fewer than ``plan.total`` where the run was interrupted, which
        then ends with a checkpoint.

    Raises:
        RunError: too many losses or gradients that are not finite, or a disk that refuses.
    """
    interrupt = interrupt or Interrupt()
    if careful is None:
        careful = plan.device.type == "cpu"
    recipe = plan.recipe
    optimizer = optim.build(method, recipe.optim, recipe.batch_size)
    start = restore(run, method, optimizer, console)
    if start:
        console.say(f"continuing from step {start:,} of {plan.total:,}")
    run.rewind(start)
    guard = Guard(method, run, plan.images.source, start, plan.total)
    method.train()
    loader = Loader(plan.images, recipe.batch_size, recipe.seed, start, plan.total)
    done = saved = start
    peak = optim.scaled_lr(recipe.optim, recipe.batch_size)
    healthy = torch.ones((), dtype=torch.bool, device=plan.device)
    clock = saved_at = time.monotonic()
    waited, reported = 0.0, 0
    if not careful and not start:
        keep(run, start, method, optimizer)  # to go back to

    def judge(done: int) -> None:
        assert evaluate is not None
        with interrupt.leaving():  # where it is left, it is made up for when the run goes on
            evaluate(method, done)
        method.train()

    with interrupt, loader:
        if evaluate is not None and start and eval_is_due(start, plan.total, eval_every):
            judge(start)
            if interrupt.asked:
                return start
        for step, (epoch, batch) in enumerate(loader, start):
            # 1. the views of this step, made on the device
            t = plan.progress(step)
            if step % plan.steps_per_epoch == 0:
                torch.manual_seed(key(recipe.seed, 2, step))
                for parameter in method.before_epoch(t, plan.sweep(method)):
                    optimizer.state.pop(parameter, None)
            views = plan.views(method, batch, epoch)
            # 2. the loss and its gradient
            if careful:
                guard.remember()
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
            # 3. the update, unless something is not finite on any rank
            done = step + 1
            healthy &= torch.isfinite(out.loss.detach() + gradient)
            log = done % log_every == 0 or done == plan.total
            save = save_is_due(done, plan.total, save_every, saved_at) or interrupt.asked
            evaluating = evaluate is not None and eval_is_due(done, plan.total, eval_every)
            if not (careful or log or save or evaluating) or dist.all_true(healthy).item():
                optimizer.step()
                method.after_step(t, [out.carry])
                guard.passed()
            elif careful:
                healthy.fill_(True)
                detail = (out.loss.detach(), gradient, rates.lr)
                console.say(guard.skip(done, batch.index, *detail))
            else:
                break
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
                judge(done)
                clock = time.monotonic()
            if save:
                keep(run, done, method, optimizer)
                saved, saved_at = done, time.monotonic()
            if interrupt.asked:
                break
        fine = bool(dist.all_true(healthy).item())
        if fine and saved != done:  # before the loader ends: it waits for what it reads
            keep(run, done, method, optimizer)
    if fine:
        return done
    console.say(f"step {done:,} or one before it is not finite: back to the last checkpoint")
    del optimizer, out, views  # room for the new ones
    return train(
        plan,
        method,
        run,
        console,
        save_every=save_every,
        log_every=log_every,
        eval_every=eval_every,
        evaluate=evaluate,
        interrupt=interrupt,
        careful=True,
    )


def restore(
    run: RunDirectory, method: nn.Module, optimizer: torch.optim.Optimizer, console: Console
) -> int:
    """Load the newest good checkpoint into the method and the optimiser; the steps done."""
    state = checkpoint.load_latest(run.checkpoints, console.say)
    checkpoint.prune(run.checkpoints, state["step"] if state else 0)  # a killed process could not
    if state is None:
        return 0
    method.load_state_dict(state["method"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def keep(run: RunDirectory, done: int, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Save a checkpoint, behind the rows that it vouches for."""
    run.sync()
    checkpoint.save(run.checkpoints, done, method, optimizer)


def save_is_due(done: int, total: int, every: int | None, saved_at: float) -> bool:
    """Whether to save after this step: by count, else by time, and always after the last."""
    if done == total:
        return True
    if every is not None:
        return done % every == 0
    return time.monotonic() - saved_at >= SAVE_SECONDS


def eval_is_due(done: int, total: int, every: int | None) -> bool:
    """Whether to evaluate after this step: by count, and after the last."""
    return done == total or (every is not None and done % every == 0)


def measurements(
    t: Progress, out: Output, gradient: torch.Tensor, rates: optim.Rates
) -> dict[str, float]:
    """The values of one step, fetched from the device in one go."""
    named = {"loss": out.loss.detach(), **out.metrics, "grad_norm": gradient}
    values = torch.stack([value.float() for value in named.values()]).tolist()
    return {"epoch": t.epoch, **dict(zip(named, values, strict=True)), **rates._asdict()}
