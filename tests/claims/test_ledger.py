"""Claims of the ledger still show: two with one seed, others every day: `scripts/claims`."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import pytest

from selfsame import claims
from selfsame.claims.claim import read_entry, run

LEDGER = Path(__file__).parents[2] / "claims"
AT_A_TIME = 2


def of_today() -> list[str]:
    """Those that ``SELFSAME_CLAIMS`` names, or the two whose turn it is."""
    named = os.environ.get("SELFSAME_CLAIMS", "").split()
    recorded = [name for name in claims.CLAIMS if (LEDGER / f"ledger/{name}.json").is_file()]
    if named or not recorded:
        return named
    first = AT_A_TIME * datetime.datetime.now(datetime.timezone.utc).date().toordinal()
    return [recorded[(first + i) % len(recorded)] for i in range(min(AT_A_TIME, len(recorded)))]


@pytest.mark.slow
@pytest.mark.parametrize("name", of_today())
def test_what_held_with_every_seed_still_holds(name: str, tmp_path: Path) -> None:
    known = read_entry(LEDGER, name)
    assert known is not None, f"{name} is not in the ledger"
    found = run(claims.find(name), seeds=1, budget=known["budget"], out=tmp_path)
    for before, now in zip(known["checks"], found["checks"], strict=True):
        if all(before["held"]):
            assert all(now["held"]), f"{now['words']}: {now['values']}, the bar is {now['bar']}"
