"""Other people's dashboards, off unless asked for: Weights & Biases and MLflow.

TensorBoard needs none of this: the run directory always holds its event file (``events``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from selfsame.errors import UsageError, unknown
from selfsame.recipe import Recipe, flat
from selfsame.run import RunDirectory, scalars

IDS = "trackers.json"  # in the run directory: under which id each service knows the run


class Tracker(Protocol):
    """A service that follows a run."""

    id: str  # under which the service knows the run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the scalars of a step."""

    def close(self, finished: bool) -> None:
        """The run has ended, or was stopped."""


class WandB:
    """Weights & Biases: ``WANDB_PROJECT``, ``WANDB_MODE=offline`` and its login are its own."""

    def __init__(self, run: RunDirectory, recipe: Recipe, known: str | None) -> None:
        wandb = _import("wandb")
        self._run = wandb.init(
            id=known,
            name=run.path.resolve().name,
            dir=str(run.path),
            config=flat(recipe.to_dict()),
            resume="allow" if known else None,
        )
        self.id = str(self._run.id)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Rows of a step join; those of a step that it has are the same again and ignored."""
        self._run.log(dict(values), step=step)

    def close(self, finished: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=0 if finished else 1)


class MLflow:
    """MLflow: ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` are its own."""

    def __init__(self, run: RunDirectory, recipe: Recipe, known: str | None) -> None:
        _import("mlflow")
        import os

        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient()
        self._last: dict[str, int] = {}  # step of each metric's newest value
        self._resumed = known is not None
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "selfsame")
            experiment = self._client.get_experiment_by_name(name)
            number = (
                experiment.experiment_id if experiment else self._client.create_experiment(name)
            )
            made = self._client.create_run(number, run_name=run.path.resolve().name)
            known = str(made.info.run_id)
            settings = flat(recipe.to_dict())
            params = [Param(key, str(value)[:500]) for key, value in settings.items()]
            for start in range(0, len(params), 100):  # as many as one request may hold
                self._client.log_batch(known, params=params[start : start + 100])
        else:
            self._client.update_run(known, status="RUNNING")
        self.id = known

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Values of steps that it has are the same again, and left out."""
        import time

        now = int(time.time() * 1000)
        metrics = [
            self._metric(key.replace("@", "_at_"), value, now, step)
            for key, value in values.items()
            if step > self._newest(key.replace("@", "_at_"))
        ]
        if metrics:
            self._client.log_batch(self.id, metrics=metrics)

    def close(self, finished: bool) -> None:
        """Say how it ended."""
        self._client.set_terminated(self.id, "FINISHED" if finished else "KILLED")

    def _newest(self, key: str) -> int:
        if not self._resumed:
            return -1
        if key not in self._last:
            history = self._client.get_metric_history(self.id, key)
            self._last[key] = max((metric.step for metric in history), default=-1)
        return self._last[key]


TRACKERS: dict[str, Callable[[RunDirectory, Recipe, str | None], Tracker]] = {
    "wandb": WandB,
    "mlflow": MLflow,
}


class Trackers:
    """All that were asked for, behind a run directory's rows. Use as a context.

    Args:
        names: of ``TRACKERS``.

    Raises:
        UsageError: an unknown name, or a package that is missing.
    """

    def __init__(self, names: Sequence[str]) -> None:
        check(names)
        self.finished = False
        self._names = names
        self._all: dict[str, Tracker] = {}
        self._warn: Callable[[str], None] = print

    def follow(self, run: RunDirectory, recipe: Recipe, warn: Callable[[str], None]) -> None:
        """Begin, or go on with what a resumed run began.

        Args:
            run: whose rows they get.
            recipe: what they show of it.
            warn: told once of each that fails while the run goes; the run goes on without it.
        """
        if not self._names:
            return
        self._warn = warn
        file = run.path / IDS
        ids = dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}
        for name in self._names:
            self._all[name] = TRACKERS[name](run, recipe, ids.get(name))
        run.write_json(IDS, ids | {name: each.id for name, each in self._all.items()})
        run.followers.append(self._take)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        for name, tracker in list(self._all.items()):
            self._try(name, partial(tracker.close, self.finished))

    def _take(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        for row in rows:
            step, values = scalars(name, row)
            for who, tracker in list(self._all.items()) if values else ():
                self._try(who, partial(tracker.log, step, values))

    def _try(self, name: str, call: Callable[[], None]) -> None:
        """A service that is down must not end a run of days."""
        try:
            call()
        except Exception as error:  # whatever a service raises
            del self._all[name]
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._warn(f"{name} gets nothing any more: {first}")


def check(names: Sequence[str]) -> None:
    """Refuse names that are no trackers, and those whose package is missing.

    Raises:
        UsageError: with what would help.
    """
    for name in names:
        if name == "tensorboard":
            raise UsageError(
                "TensorBoard needs no --log: every run directory has its event file",
                tip="tensorboard --logdir runs",
            )
        if name not in TRACKERS:
            raise unknown("tracker", name, TRACKERS)
        _import(name)


def _import(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise UsageError(
            f"{name} is not installed", tip=f'pip install "selfsame[{name}]", or leave --log out'
        ) from None
