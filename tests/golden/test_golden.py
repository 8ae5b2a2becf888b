"""Agreement with the authors' code, number by number.

``SELFSAME_GOLDEN`` names a directory with a manifest; the default is the copy next to this file,
which holds the methods that exist. A method that is neither in the library's table nor has a runner
does not exist yet and is skipped; a kind without a runner, of a method that exists, is a failure.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks
from runners import RUNNERS
from safetensors.torch import load_file
from torch import Tensor

from selfsame.methods import METHODS as TABLE

GOLDEN = Path(os.environ.get("SELFSAME_GOLDEN") or Path(__file__).parent / "data")
CASES = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))["cases"]
WRITTEN = {name.replace("_", "") for name in TABLE}
METHODS = {method for method, _ in RUNNERS} | {
    case["method"] for case in CASES if case["method"].replace("_", "") in WRITTEN
}
RUNS = [
    pytest.param(case, precision, id=f"{case['name']}-{precision}")
    for case in CASES
    if case["method"] in METHODS
    for precision in ("f64", "f32")
    if precision in case["tolerance"]
]


def compute(case: dict[str, Any], precision: str) -> dict[str, Tensor]:
    """Run a case in this process, which may be one of two ranks."""
    runner = RUNNERS[case["method"], case["kind"]]
    dtype = {"f64": torch.float64, "f32": torch.float32}[precision]
    given = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in load_file(GOLDEN / case["file"]).items()
        if key.startswith(("in/", "state/"))
    }
    return {name: value.detach() for name, value in runner(given, case["hyper"]).items()}


@pytest.mark.parametrize(("case", "precision"), RUNS)
def test_case(case: dict[str, Any], precision: str, request: pytest.FixtureRequest) -> None:
    assert (case["method"], case["kind"]) in RUNNERS, "a kind of a method that exists has no runner"
    if case["world_size"] > 1:
        pair: Ranks = request.getfixturevalue("ranks")
        parts = pair(compute, case, precision)
        result = {name: value for part in parts for name, value in part.items()}
    else:
        result = compute(case, precision)

    expected = {
        key: value
        for key, value in load_file(GOLDEN / case["file"]).items()
        if key.startswith((f"{precision}/", "exact/"))
    }
    assert expected
    assert set(expected) == {k for k in case["expected"] if k.startswith((precision, "exact"))}
    for key, value in expected.items():
        prefix, name = key.split("/", 1)
        tolerance = case["tolerance"][prefix]
        got = result[name]
        assert got.dtype == value.dtype or prefix == "exact"
        torch.testing.assert_close(
            got.to(value.dtype), value, rtol=tolerance["rtol"], atol=tolerance["atol"], msg=None
        )


def test_the_methods_to_come() -> None:
    missing = sorted({case["method"] for case in CASES} - METHODS)
    if missing:
        pytest.skip(f"{len(missing)} methods are not written yet: {', '.join(missing)}")


@pytest.mark.skipif("SELFSAME_GOLDEN" in os.environ, reason="other cases may be fewer")
def test_every_runner_has_a_case() -> None:
    assert {(case["method"], case["kind"]) for case in CASES} >= set(RUNNERS)
