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
from runners import GIVEN, RUNNERS, SAMPLERS
from safetensors.torch import load_file
from torch import Tensor

from selfsame.methods import METHODS as TABLE

GOLDEN = Path(os.environ.get("SELFSAME_GOLDEN") or Path(__file__).parent / "data")
CASES = json.loads((GOLDEN / "manifest.json").read_text(encoding="utf-8"))["cases"]
WRITTEN = {name.replace("_", "") for name in TABLE}
METHODS = {method for method, _ in RUNNERS.keys() | SAMPLERS.keys()} | {
    case["method"] for case in CASES if case["method"].replace("_", "") in WRITTEN
}
NUMBERS = [
    pytest.param(case, precision, id=f"{case['name']}-{precision}")
    for case in CASES
    if case["method"] in METHODS and "statistical" not in case["tolerance"]
    for precision in [p for p in ("f64", "f32") if p in case["tolerance"]] or ["f64"]
]
DRAWS = [
    pytest.param(case, id=case["name"])
    for case in CASES
    if case["method"] in METHODS and "statistical" in case["tolerance"]
]


def compute(case: dict[str, Any], precision: str) -> dict[str, Tensor]:
    """Run a case in this process, which may be one of two ranks."""
    runner = RUNNERS[case["method"], case["kind"]]
    dtype = {"f64": torch.float64, "f32": torch.float32}[precision]
    prefixes = ("in/", "state/", *GIVEN.get((case["method"], case["kind"]), ()))
    given = {
        key: value.to(dtype) if value.is_floating_point() else value
        for key, value in load_file(GOLDEN / case["file"]).items()
        if key.startswith(prefixes)
    }
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # for modules, and for kinds that are given no tensor
    try:
        return {name: value.detach() for name, value in runner(given, case["hyper"]).items()}
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(("case", "precision"), NUMBERS)
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


@pytest.mark.parametrize("case", DRAWS)
def test_random_masks_have_the_statistics_of_the_authors(case: dict[str, Any]) -> None:
    """The tests that the manifest recommends; the masks of a seeded stream are not compared."""
    assert (case["method"], case["kind"]) in SAMPLERS, "a kind of a method that exists is missing"
    stat = {
        key.removeprefix("stat/"): value
        for key, value in load_file(GOLDEN / case["file"]).items()
        if key.startswith("stat/")
    }
    n = int(stat["n_samples"])
    masks = SAMPLERS[case["method"], case["kind"]](case["hyper"], n)
    assert masks.shape[0] == n
    assert masks.dtype == torch.bool
    counts = masks.flatten(1).sum(1)
    spread = stat.get("std_count", torch.zeros(())).item()
    error = abs(counts.double().mean().item() - stat["mean_count"].item())
    assert error <= 4 * spread * (2 / n) ** 0.5
    p = stat["position_frequency"].double()
    allowed = 5 * (p * (1 - p) * 2 / n).sqrt()
    assert (masks.double().mean(0) - p).abs().le(allowed).all()
    if "count_histogram" in stat:
        histogram = torch.bincount(counts, minlength=len(stat["count_histogram"])) - 0.0
        distance = (histogram - stat["count_histogram"]).cumsum(0).abs().max() / n
        assert distance <= 1.95 * (2 / n) ** 0.5  # Kolmogorov-Smirnov, two samples, p = 1e-3
    if "keep_neighbour_pairs" in stat:
        kept = ~masks
        pairs = (kept[:, 1:] & kept[:, :-1]).sum() + (kept[:, :, 1:] & kept[:, :, :-1]).sum()
        assert pairs.item() / n == pytest.approx(stat["keep_neighbour_pairs"].item(), rel=0.02)


def test_the_methods_to_come() -> None:
    missing = sorted({case["method"] for case in CASES} - METHODS)
    if missing:
        pytest.skip(f"{len(missing)} methods are not written yet: {', '.join(missing)}")


@pytest.mark.skipif("SELFSAME_GOLDEN" in os.environ, reason="other cases may be fewer")
def test_every_runner_has_a_case() -> None:
    assert {(case["method"], case["kind"]) for case in CASES} >= RUNNERS.keys() | SAMPLERS.keys()
