"""A paper's key claim as a small experiment with a control: arms, numbers, inequalities, a verdict.

An arm is one way to do the experiment, a control is an arm that leaves out what the paper calls
essential. Each arm gives numbers for each seed; the claim is inequalities between them. Nothing
here depends on what is measured, or on how.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from selfsame.errors import UsageError
from selfsame.files import atomic
from selfsame.run import environment

FORMAT = 1  # of an entry of the ledger
BUDGETS = ("fast", "full")
VERDICTS = ("shown", "shown in part", "not shown at this size", "not run")
POINTS = 40  # of a curve that the ledger keeps

Verdict = Literal["shown", "shown in part", "not shown at this size", "not run"]
Numbers = Mapping[str, Mapping[str, float]]  # arm -> quantity -> value


class Setting(NamedTuple):
    """What an arm is run with."""

    seed: int
    steps: int  # optimiser steps
    folder: Path  # the arm's own, for a run directory
    device: str | None


class Found(NamedTuple):
    """What an arm found with one seed."""

    numbers: Mapping[str, float]
    curves: Mapping[str, Sequence[tuple[float, float]]] = {}  # (step, value)
    pictures: Mapping[str, str] = {}  # PNG as data URIs


class Arm(NamedTuple):
    """One way to do the experiment."""

    run: Callable[[Setting], Found]
    control: bool = False


class Quantity(NamedTuple):
    """A column of the table."""

    title: str
    digits: int = 2
    scale: float = 1.0  # 100 for shares as percent


class Check(NamedTuple):
    """One inequality. ``bar`` is about half of the gap that ``measured`` tells of.

    Where ``measured`` is empty nobody has measured yet, and the bar is a guess.
    """

    words: str
    value: Callable[[Numbers], float]
    bar: float
    measured: str
    above: bool = True

    def holds(self, value: float) -> bool:
        """Whether a value is on the right side of the bar; what is no number is not."""
        return value > self.bar if self.above else value < self.bar


class Curves(NamedTuple):
    """A panel of the figure: a quantity over steps, a line for each arm and seed."""

    key: str
    title: str
    lines: Mapping[str, float] = {}  # values to compare with, by name


class Bars(NamedTuple):
    """A panel of the figure: a quantity's mean for each arm, and a dot for each seed."""

    key: str
    title: str
    digits: int = 2
    scale: float = 1.0
    lines: Mapping[str, float] = {}


class Picture(NamedTuple):
    """A panel of the figure: what an arm left as a picture, of the first seed."""

    arm: str
    key: str
    title: str


@dataclass(frozen=True)
class Claim:
    """What a paper says, and the experiment that can contradict it."""

    name: str
    paper: str  # authors, title, place
    arxiv: str
    says: str  # the claim, in a line
    source: str  # table or figure
    experiment: str  # what is done: a paragraph
    data: str
    file: str  # that implements the method
    arms: Mapping[str, Arm]
    quantities: Mapping[str, Quantity]
    checks: tuple[Check, ...]
    steps: Mapping[str, int]  # of each budget
    panels: tuple[Curves | Bars | Picture, ...]
    seen: Callable[[Numbers], str]  # what was seen, from the means over seeds
    reason: str = ""  # the likely one, where it does not show
    deviations: tuple[str, ...] = field(default=())  # from the paper's experiment


def run(
    claim: Claim,
    *,
    seeds: int = 3,
    budget: str = "fast",
    out: Path,
    device: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run what is missing of a claim and put it into the ledger: its entry.

    What each arm found with each seed is kept in ``out/arms``: an arm that ended is not run again,
    one that was stopped continues from its last checkpoint. Delete the folder to measure anew.

    Args:
        claim: what to run.
        seeds: how many, from 0.
        budget: "fast" or "full".
        out: the folder of the ledger and of what the arms leave.
        device: where to compute.
        say: told of each arm that is run.

    Raises:
        UsageError: an unknown budget, no seeds, or a folder that cannot be used.
    """
    check_options(seeds, budget)
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in claim.arms}
    for seed in range(seeds):
        for arm in claim.arms:
            found[arm].append(_arm(claim, arm, seed, budget, out, device, say))
    return write_entry(out, entry(claim, found, budget))


def check_options(seeds: int, budget: str) -> None:
    """Refuse what no claim can be run with.

    Raises:
        UsageError: an unknown budget, or no seeds.
    """
    from selfsame.errors import unknown

    if budget not in BUDGETS:
        raise unknown("budget", budget, BUDGETS)
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}", tip="it is a number of seeds, 1 or more")


def _arm(
    claim: Claim,
    name: str,
    seed: int,
    budget: str,
    out: Path,
    device: str | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """What an arm found with a seed: read, or run and kept."""
    steps = claim.steps[budget]
    folder = out / "arms" / claim.name / f"{name.replace(' ', '-')}-{steps}-{seed}"
    file = folder.with_name(f"{folder.name}.json")  # an arm may have a dot in its name
    if file.is_file():
        kept: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return kept
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_use(out, error) from None
    say(f"{claim.name}: {name}, seed {seed}" + (f", {steps} steps" if steps else ""))
    from selfsame import machine

    begin, cpu = time.monotonic(), time.process_time()
    with torch.random.fork_rng(devices=[]):  # an arm may seed it
        done = claim.arms[name].run(Setting(seed, steps, folder, device))
    result = {
        "seed": seed,
        "seconds": round(time.monotonic() - begin, 1),
        "cpu": round(time.process_time() - cpu, 1),
        "machine": machine.describe(machine.device(device)),
        "numbers": {key: _short(value) for key, value in done.numbers.items()},
        "curves": {
            key: [[step, _short(value)] for step, value in thin(points)]
            for key, points in done.curves.items()
        },
        "pictures": dict(done.pictures),
        **_facts(),
    }
    with atomic(file) as temporary:
        temporary.write_text(json.dumps(result) + "\n", "utf-8")
    return result


def _facts() -> dict[str, Any]:
    """When, and with what code."""
    facts = environment("")
    return {key: facts[key] for key in ("versions", "commit")} | {"date": facts["started"][:10]}


def entry(
    claim: Claim, found: Mapping[str, Sequence[Mapping[str, Any]]], budget: str
) -> dict[str, Any]:
    """The ledger's entry of what the arms found: plain values, ready for JSON.

    Facts of the machine are those of the last arm that ran.
    """
    runs = [each for arm in claim.arms for each in found[arm]]
    last = max(runs, key=lambda each: each["date"])
    seeds = [each["seed"] for each in found[next(iter(claim.arms))]]
    by_seed = [
        {
            arm: {key: _number(x) for key, x in found[arm][position]["numbers"].items()}
            for arm in claim.arms
        }
        for position in range(len(seeds))
    ]
    checks = [_checked(check, by_seed) for check in claim.checks]
    return {
        "format": FORMAT,
        "claim": claim.name,
        "arxiv": claim.arxiv,
        "date": last["date"],
        "machine": last["machine"],
        "commit": last["commit"],
        "versions": last["versions"],
        "budget": budget,
        "steps": claim.steps[budget],
        "seeds": seeds,
        "verdict": verdict(checks),
        "checks": checks,
        "arms": {
            arm: [
                {key: each[key] for key in ("seed", "seconds", "cpu", "numbers")}
                for each in found[arm]
            ]
            for arm in claim.arms
        },
        "curves": {arm: [each["curves"] for each in found[arm]] for arm in claim.arms},
        "pictures": {arm: found[arm][0]["pictures"] for arm in claim.arms},
    }


def _checked(check: Check, by_seed: Sequence[Numbers]) -> dict[str, Any]:
    values = [check.value(numbers) for numbers in by_seed]
    mean = statistics.fmean(values)
    return {
        "words": check.words,
        "bar": check.bar,
        "above": check.above,
        "values": [_short(value) for value in values],
        "held": [check.holds(value) for value in values],
        "mean": _short(mean),
        "held_in_the_mean": check.holds(mean),
    }


def verdict(checks: Sequence[Mapping[str, Any]]) -> Verdict:
    """*shown*: every inequality held for every seed; *in part*: one or more held in the mean."""
    if all(all(check["held"]) for check in checks):
        return "shown"
    if any(check["held_in_the_mean"] for check in checks):
        return "shown in part"
    return "not shown at this size"


def means(record: Mapping[str, Any]) -> Numbers:
    """The mean over seeds of each arm's numbers, of an entry of the ledger.

    What is missing or not finite in one seed is so in the mean: not a number.
    """
    return {
        arm: {
            key: statistics.fmean(_number(each["numbers"].get(key)) for each in runs)
            for key in runs[0]["numbers"]
        }
        for arm, runs in record["arms"].items()
    }


def values(record: Mapping[str, Any], arm: str, key: str) -> list[float]:
    """A quantity of an arm, for each seed; an arm need not have all quantities."""
    runs = record["arms"][arm]
    return [_number(each["numbers"][key]) for each in runs if key in each["numbers"]]


def write_entry(out: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write an entry of the ledger: one value a line where it is for people, else in one line.

    Raises:
        UsageError: the folder cannot be written.
    """
    file = out / "ledger" / f"{record['claim']}.json"
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(record[key])}" for key in record)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary:
            temporary.write_text(f"{{\n{lines}\n}}\n", "utf-8")
    except OSError as error:
        raise cannot_use(out, error) from None
    return record


def read_entry(out: Path, name: str) -> dict[str, Any] | None:
    """The ledger's entry of a claim, None where it was not run.

    Raises:
        UsageError: a file that is no entry of this format.
    """
    file = out / "ledger" / f"{name}.json"
    if not file.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(file.read_text("utf-8"))
        known = record["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{file} is no entry of a ledger", tip=f"delete it and run: selfsame claim {name}"
        ) from None
    if known != FORMAT:
        raise UsageError(
            f"{file} has format {known}, not {FORMAT}",
            tip=f"run it again: selfsame claim {name}",
        )
    return record


def cannot_use(path: Path, error: OSError) -> UsageError:
    """The error for a folder that cannot be written."""
    return UsageError(
        f"cannot write to {path}: {error.strerror or error}",
        tip="name a folder with --out that you may write to",
    )


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``POINTS`` points of a curve, evenly spaced, with the first and the last."""
    if len(points) <= POINTS:
        return list(points)
    last = len(points) - 1
    return [points[round(i * last / (POINTS - 1))] for i in range(POINTS)]


def _short(value: float) -> float | None:
    """Four digits; JSON has no number for what is not finite."""
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else value
