"""The loop, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from selfsame import accumulate, checkpoint, dist, machine, optim, parallel, sharded
from selfsame.console import Console
from selfsame.data import Loader
from selfsame.errors import RunError
from selfsame.guard import Guard
from selfsame.interrupt import Interrupt
from selfsame.plan import Plan
from selfsame.rng import key
from selfsame.run import RunDirectory
from selfsame.types import Method, Progress

SAVE_SECONDS = 600.0  # between checkpoints, where the user names no number of steps


class Options(NamedTuple):
    """What of a run changes nothing that is learnt."""

    save_every: int | None = None  # steps between checkpoints; None: one every ten minutes
    log_every: int = 10  # steps between lines of ``metrics.jsonl``
    eval_every: int | None = None  # steps between calls of ``evaluate``; None: after the last only
    evaluate: Callable[[Method, int], None] | None = None  # with the method and the steps done


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
        RunError: too many losses or gradients that are not finite, a disk that refuses, or a lost
            process.
    """
    parallel.prepare(method, plan.layout, plan.recipe.precision)
    options = Options(save_every, log_every, eval_every, evaluate)
    interrupt = interrupt or Interrupt()
    if careful is None:
        careful = plan.device.type == "cpu"
    done, fine = _train(plan, method, run, console, options, interrupt, careful=careful)
    if not fine:
        console.say(f"step {done:,} or one before it is not finite: back to the last checkpoint")
        done, _ = _train(plan, method, run, console, options, interrupt, careful=True)
    parallel.release(method)
    return done


def _train(
    plan: Plan,
    method: Method,
    run: RunDirectory,
    console: Console,
    options: Options,
    interrupt: Interrupt,
    *,
    careful: bool,
) -> tuple[int, bool]:
    """The steps done, and whether all of them are finite; else the last checkpoint counts."""
    recipe, rank, world = plan.recipe, dist.rank(), dist.world_size()
    optimizer = optim.build(method, recipe.optim, recipe.batch_size)
    start = restore(run, method, optimizer, console)
    if start:
        console.say(f"continuing from step {start:,} of {plan.total:,}")
    run.rewind(start)
    guard = Guard(method, run, plan.images.source, start, plan.total)
    method.train()
    loader = Loader(
        plan.images, recipe.batch_size, recipe.seed, start, plan.total, rank=rank, world=world
    )
    autocast = partial(machine.autocast, plan.device, recipe.precision)
    log_every = options.log_every
    done = saved = start
    peak = optim.scaled_lr(recipe.optim, recipe.batch_size)
    healthy = torch.ones((), dtype=torch.bool, device=plan.device)
    clock = saved_at = time.monotonic()
    waited, logged, reported = 0.0, start, 0
    if not careful and not start:
        keep(run, start, method, optimizer)  # to go back to

    def judge(done: int) -> float:
        since = time.monotonic()
        whole = parallel.whole(method, plan.build)

        def evaluate() -> None:
            assert options.evaluate is not None
            # where it is left, it is made up for when the run goes on
            with interrupt.leaving(), parallel.as_written(plan.layout):
                options.evaluate(whole, done)

        dist.on_main(evaluate)
        method.train()
        return time.monotonic() - since

    with interrupt, loader:
        if start and eval_is_due(start, plan.total, options):
            clock += judge(start)
            if dist.anywhere(interrupt.asked)[0]:
                return start, True
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
            if careful:
                guard.remember()
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
            # 3. the update, unless something is not finite on any rank
            done = step + 1
            healthy &= torch.isfinite(loss + gradient)
            log = done % log_every == 0 or done == plan.total
            save, bad = dist.anywhere(
                save_is_due(done, plan.total, options, saved_at), len(plan.images.bad) > reported
            )
            evaluating = eval_is_due(done, plan.total, options)
            if not (careful or log or save or evaluating) or dist.all_true(healthy).item():
                optimizer.step()
                method.after_step(t, out.carry)
                guard.passed()
            elif careful:
                healthy.fill_(True)
                console.say(guard.skip(done, batch.index, loss, gradient, rates.lr))
            else:
                break
            # 4. what is written and shown; the checkpoint last, so that it vouches for the rest
            if log:
                row = {"step": done, **measurements(t, loss, out.metrics, gradient, rates)}
                now = time.monotonic()
                seconds, waited_now = now - clock, loader.waited - waited
                clock, waited = now, loader.waited
                images, logged = (done - logged) * recipe.batch_size, done
                row["images_per_second"] = round(images / seconds, 1)  # of the steps alone
                row["waiting"] = round(waited_now / seconds, 3)  # share of the time, for data
                run.append("metrics", [row])
                console.progress(done, plan.total, row)
            if bad:
                found = dist.everyone(list(plan.images.bad))
                run.add_bad_images(image for each in found for image in each)
                reported = len(plan.images.bad)
            if evaluating:
                clock += judge(done)
            if save:
                keep(run, done, method, optimizer)
                saved, saved_at = done, time.monotonic()
            if dist.anywhere(interrupt.asked)[0]:
                break
        fine = bool(dist.all_true(healthy).item())
        if fine and saved != done:  # before the loader ends: it waits for what it reads
            keep(run, done, method, optimizer)
    return done, fine


def restore(
    run: RunDirectory, method: nn.Module, optimizer: torch.optim.Optimizer, console: Console
) -> int:
    """Load the newest good checkpoint into the method and the optimiser; the steps done."""
    with dist.agreed():
        found = checkpoint.load_latest(
            run.checkpoints, console.say, lambda path: sharded.restore(path, method, optimizer)
        )
    start = found or 0
    if len(set(dist.everyone(start))) > 1:
        raise dist.once(
            RunError(
                f"the processes do not see the same checkpoints in {run.path}",
                tip="put the run on a file system that all machines share",
            )
        )
    if dist.is_main():
        checkpoint.prune(run.checkpoints, start)  # a killed process could not
    return start


def keep(run: RunDirectory, done: int, method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Save a checkpoint, behind the rows that it vouches for: rank 0 for all, or each its part."""
    run.sync()
    if parallel.is_sharded(method):
        sharded.save(run.checkpoints, done, method, optimizer)
    else:
        dist.on_main(partial(checkpoint.save, run.checkpoints, done, method, optimizer))


def save_is_due(done: int, total: int, options: Options, saved_at: float) -> bool:
    """Whether to save after this step: by count, else by time, and always after the last."""
    if done == total:
        return True
    if options.save_every is not None:
        return done % options.save_every == 0
    return time.monotonic() - saved_at >= SAVE_SECONDS


def eval_is_due(done: int, total: int, options: Options) -> bool:
    """Whether to evaluate after this step: by count, and after the last."""
    every = options.eval_every
    due = done == total or (every is not None and done % every == 0)
    return options.evaluate is not None and due


def measurements(
    t: Progress, loss: Tensor, metrics: Mapping[str, Tensor], gradient: Tensor, rates: optim.Rates
) -> dict[str, float]:
    """The values of one step, means over ranks, fetched from the device in one go."""
    means = dist.mean(torch.stack([value.float() for value in metrics.values()] or [loss[None]]))
    named = {"loss": loss, **dict(zip(metrics, means, strict=False)), "grad_norm": gradient}
    values = torch.stack([value.float() for value in named.values()]).tolist()
    return {"epoch": t.epoch, **dict(zip(named, values, strict=True)), **rates._asdict()}
