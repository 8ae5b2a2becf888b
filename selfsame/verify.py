"""Does a stop change what is learnt? A user's own configuration, run with and without one."""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsame import checkpoint, methods
from selfsame import plan as planning
from selfsame.console import Console
from selfsame.errors import RunError, UsageError
from selfsame.interrupt import Interrupt
from selfsame.plan import Choices
from selfsame.run import RunDirectory
from selfsame.train import train

STEPS = 6  # of the uninterrupted run; the other one stops in the middle


def verify_resume(
    recipe: str, data: Any, choices: Choices, *, device: str | None = None, steps: int = STEPS
) -> Iterator[str]:
    """Train a few steps without a stop, and with one, and compare all that was learnt.

    The first steps of the run that ``pretrain`` would make with the same options, three times in a
    process of its own: to the end; to the middle, where it is stopped as by SIGTERM; and from there
    on. Then the weights, the method's other state and the optimiser's are compared bit for bit.

    Args:
        recipe: a method, or a ``.toml`` file.
        data: what ``pretrain`` takes, of a kind that can be pickled.
        choices: the other options; ``choices.recipe`` is used where ``recipe`` is a method.
        device: where to train.
        steps: of the uninterrupted run.

    Yields:
        Lines for the user.

    Raises:
        RunError: something differs; it names the first tensor that does.
        UsageError: as ``pretrain``.
    """
    method = recipe
    if recipe.endswith(".toml"):
        method = methods.read_recipe(Path(recipe)).method.name
        choices = replace(choices, recipe=recipe)
    plan = planning.make(method, data, choices, device)
    plan.images.close()
    if plan.total < 2:
        raise UsageError("a run of one step cannot be stopped", tip="give it 2 steps or more")
    steps = min(steps, plan.total)
    half = steps // 2
    yield (
        f"verify     {method}, {plan.recipe.batch_size} images a step: {steps} steps without a "
        f"stop, and with one after {half}, each part in a process of its own"
    )
    with tempfile.TemporaryDirectory(prefix="selfsame-verify-") as folder:
        whole, parts, again = (Path(folder) / name for name in ("whole", "parts", "again"))
        task = (method, data, choices, device)
        _apart(_leg, whole, *task, steps)
        _apart(_leg, parts, *task, half)
        _apart(_leg, parts, *task, steps)
        ours, theirs = _state(whole), _state(parts)
        different = [name for name in ours if not _same(ours[name], theirs.get(name))]
        if not different:
            yield (
                f"same       {len(ours)} tensors and values of the weights, the method's other "
                "state and the optimiser agree bit for bit: a stop changes nothing here"
            )
            return
        _apart(_leg, again, *task, steps)
        repeats = all(_same(value, _state(again).get(name)) for name, value in ours.items())
    first = different[0]
    raise RunError(
        f"a stop changes what is learnt: {first} differs{_distance(ours[first], theirs.get(first))}"
        f", the first of {len(different)} of {len(ours)}",
        tip="something that the step uses is neither in the state dict nor a function of the seed "
        "and the step: a counter or a random generator of the method's own, say"
        if repeats
        else "without a stop the same run differs from itself, too: the machine computes a little "
        "differently each time (atomic additions on a GPU, a varying number of threads)",
    )


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process; what it returns or raises."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def _leg(
    folder: Path, method: str, data: Any, choices: Choices, device: str | None, until: int
) -> None:
    """Begin or continue a run and stop it after ``until`` steps."""
    if folder.exists():
        run = RunDirectory.open(folder)
        plan = planning.resume(run, method, data, choices, device)
    else:
        plan = planning.make(method, data, choices, device)
        run = RunDirectory.create(folder)
        run.write_json("run.json", {"data": {"fingerprint": plan.images.source.fingerprint()}})
        run.write("recipe.toml", plan.recipe.to_toml())
    interrupt = Interrupt()
    with plan.images:
        train(
            plan,
            plan.build(),
            run,
            Console(run, quiet=True),
            eval_every=until,
            evaluate=lambda _, step: interrupt.ask(signal.SIGTERM) if step == until else None,
            interrupt=interrupt,
        )


def _state(folder: Path) -> dict[str, Any]:
    """The leaves of a run's newest checkpoint, by name; parameters by theirs."""
    newest = checkpoint.latest(folder / "checkpoints")
    assert newest is not None
    state = checkpoint.load(newest)
    return dict(_leaves({"step": state["step"], **state["method"]})) | dict(
        _leaves(state["optimizer"], "optimizer.")
    )


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in items:
        if isinstance(each, dict | list):
            yield from _leaves(each, f"{name}{key}.")
        else:
            yield f"{name}{key}", each


def _same(a: Any, b: Any) -> bool:
    """Whether two values are the same bits."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(*(x.contiguous().view(-1).view(torch.uint8) for x in (a, b)))


def _distance(a: Any, b: Any) -> str:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return ""
    most = (a.double() - b.double()).abs().max().item()
    return f" by up to {most:.2g} (its values reach {a.double().abs().max().item():.2g})"
