"""Evaluators: scores of frozen features, blind to what trained them. One file a protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import ValidationError

from selfsame.errors import UsageError, nearest
from selfsame.evals.evaluator import Evaluator, Scores
from selfsame.evals.health import (
    align,
    alpha_req,
    feature_std,
    lidar,
    lidar_eigenvalues,
    match,
    neighbor_distance,
    rankme,
    uniform,
)
from selfsame.evals.interval import bootstrap_interval
from selfsame.evals.knn import knn, knn_scores
from selfsame.evals.linear import LinearProbe, fit_logistic, fit_probe, linear
from selfsame.evals.subject import Data, Subject
from selfsame.lookup import find_class
from selfsame.recipe import toml_value

__all__ = [
    "EVALUATORS",
    "Data",
    "Evaluator",
    "LinearProbe",
    "Scores",
    "Subject",
    "align",
    "alpha_req",
    "bootstrap_interval",
    "evaluators",
    "feature_std",
    "find",
    "fit_logistic",
    "fit_probe",
    "knn",
    "knn_scores",
    "lidar",
    "lidar_eigenvalues",
    "linear",
    "match",
    "neighbor_distance",
    "rankme",
    "score",
    "uniform",
]

EVALUATORS: dict[str, str] = {
    "knn": "selfsame.evals.knn:KNN",
    "linear": "selfsame.evals.linear:Linear",
    "linear-sgd": "selfsame.evals.sweep:Sweep",
    "lowshot": "selfsame.evals.lowshot:LowShot",
    "finetune": "selfsame.evals.finetune:FineTune",
    "retrieval": "selfsame.evals.retrieval:Retrieval",
    "cluster": "selfsame.evals.cluster:Cluster",
    "segment": "selfsame.evals.segment:Segment",
    "copies": "selfsame.evals.copies:Copies",
}


def find(name: str) -> type[Evaluator]:
    """The class of a protocol, by name or as ``module:Class``.

    Raises:
        UsageError: no such protocol, or a module that cannot be imported.
    """
    return find_class("protocol", name, EVALUATORS, Evaluator)


def evaluators(names: Sequence[str], settings: Iterable[str] = ()) -> dict[str, Evaluator]:
    """Protocols by name, with ``NAME.KEY=VALUE`` settings, values as TOML.

    Raises:
        UsageError: a name, key or value that is not legal.
    """
    if not names:
        raise UsageError("no protocol", tip=f"legal values: {', '.join(sorted(EVALUATORS))}")
    classes = {name: find(name) for name in names}
    options: dict[str, dict[str, object]] = {name: {} for name in names}
    for setting in settings:
        key, equals, text = setting.partition("=")
        name, _, field = key.strip().rpartition(".")
        if not equals:
            raise UsageError(f"'{setting}' is not a setting", tip="write --set protocol.key=value")
        if name not in options:
            asked = ", ".join(names)
            raise UsageError(
                f"'{key.strip()}' is no option of {asked}",
                tip=f"write --set {names[0]}.KEY=VALUE, with one of the protocols asked for",
            )
        options[name][field] = toml_value(text.strip())
    return {name: _built(name, classes[name], options[name]) for name in names}


def score(subject: Subject, data: Data, protocols: Iterable[Evaluator]) -> Scores:
    """All scores of a subject."""
    found: Scores = {}
    for evaluator in protocols:
        found |= evaluator(subject, data)
    return found


def _built(name: str, kind: type[Evaluator], options: dict[str, object]) -> Evaluator:
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        legal = list(kind.model_fields)
        if first["type"] == "extra_forbidden":
            close = nearest(key, legal)
            raise UsageError(
                f"{name} has no option '{key}'",
                tip=(f"did you mean '{close}'? " if close else "")
                + (f"it has {', '.join(legal)}" if legal else "it has none"),
            ) from None
        raise UsageError(
            f"{name}.{key}: {message}, not {first['input']!r}",
            tip=f"its default is {kind.model_fields[str(first['loc'][0])].default!r}",
        ) from None
