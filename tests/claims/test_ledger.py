"""Claims of the ledger still show, with one seed: the cheap ones always, others by turns.

`scripts/claims` runs them, and so does what every change has to pass.
"""

from __future__ import annotations

import datetime
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from selfsame import claims
from selfsame.claims.claim import read_entry, run

LEDGER = Path(__file__).parents[2] / "claims"
CHEAP = 15.0  # seconds of one seed of all arms: such a claim is run always
ALONE = 120.0  # a claim that takes longer shares its turn with no other
LIMIT = 150.0  # seconds of a turn and all cheap ones, on two cores


def cost(record: Mapping[str, Any]) -> float:
    """CPU seconds of one seed of all arms; a first run that was slow does not count."""
    return sum(statistics.median(each["cpu"] for each in runs) for runs in record["arms"].values())


def always(costs: Mapping[str, float]) -> list[str]:
    """The claims that are run every time."""
    return [name for name, seconds in costs.items() if seconds < CHEAP]


def turns(costs: Mapping[str, float]) -> list[list[str]]:
    """All other claims, one or two a turn: the longest with the shortest, where there is time."""
    cheap = sum(costs[name] for name in always(costs))
    rest = sorted(set(costs) - set(always(costs)), key=lambda name: (-costs[name], name))
    found = []
    while rest:
        turn = [rest.pop(0)]
        if rest and costs[turn[0]] <= ALONE:
            both = costs[turn[0]] + costs[rest[-1]]
            if (cheap + both) / 2 <= LIMIT:
                turn.append(rest.pop())
        found.append(turn)
    return found


def chosen(costs: Mapping[str, float], day: int) -> list[str]:
    """What is run on a day, the longest first: two processes then end at about the same time."""
    each = turns(costs)
    turn = each[day % len(each)] if each else []
    return [*turn, *always(costs)]


def costs_of_the_ledger() -> dict[str, float]:
    """What each claim of the ledger takes."""
    found = {name: read_entry(LEDGER, name) for name in claims.CLAIMS}
    return {name: cost(record) for name, record in found.items() if record is not None}


def of_today() -> list[str]:
    """Those that ``SELFSAME_CLAIMS`` names, or those whose turn it is."""
    named = os.environ.get("SELFSAME_CLAIMS", "").split()
    today = datetime.datetime.now(datetime.timezone.utc).date()
    return named or chosen(costs_of_the_ledger(), today.toordinal())


@pytest.mark.slow
@pytest.mark.parametrize("name", of_today())
def test_what_held_with_every_seed_still_holds(name: str, tmp_path: Path) -> None:
    known = read_entry(LEDGER, name)
    assert known is not None, f"{name} is not in the ledger"
    found = run(claims.find(name), seeds=1, budget=known["budget"], out=tmp_path)
    for before, now in zip(known["checks"], found["checks"], strict=True):
        if all(before["held"]):
            assert all(now["held"]), f"{now['words']}: {now['values']}, the bar is {now['bar']}"


def test_what_a_claim_takes() -> None:
    slow_at_first = [{"cpu": x} for x in (40.0, 2.0, 3.0)]
    assert cost({"arms": {"a": slow_at_first, "b": [{"cpu": 5.0}]}}) == 8.0


def test_turns_are_short_and_miss_no_claim() -> None:
    costs = {"a": 119.0, "b": 1.0, "c": 60.0, "d": 300.0, "e": 9.0, "f": 16.0, "g": 121.0}
    assert always(costs) == ["b", "e"]
    assert turns(costs) == [["d"], ["g"], ["a", "f"], ["c"]]
    seen = [name for day in range(4) for name in chosen(costs, day)]
    assert {name: seen.count(name) for name in costs} == {
        name: 4 if name in "be" else 1 for name in costs
    }
    assert chosen(costs, 2) == ["a", "f", "b", "e"] == chosen(costs, 6)
    assert chosen({"b": 1.0}, 5) == ["b"], "there need be no turns"
    assert chosen({}, 5) == []
    many = {f"cheap{i}": 9.0 for i in range(25)} | {"a": 60.0, "c": 50.0}
    assert turns(many) == [["a"], ["c"]], "both would take (225 + 110) / 2 seconds"


def test_every_claim_of_the_ledger_has_its_turn() -> None:
    costs = costs_of_the_ledger()
    each = turns(costs)
    assert sorted([*always(costs), *(name for turn in each for name in turn)]) == sorted(costs)
    for turn in each:
        total = sum(costs[name] for name in (*turn, *always(costs)))
        assert len(turn) == 1 or total / 2 <= LIMIT
