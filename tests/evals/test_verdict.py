"""Planted faults are named, healthy runs are not accused: on recorded runs, and on real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
from helpers import textures, tiny_recipe
from planted import CASES

from selfsame import methods
from selfsame import plan as planning
from selfsame.api import pretrain
from selfsame.errors import DivergedError
from selfsame.evals.verdict import Verdict, judge, student, trend
from selfsame.recipe import Recipe, with_settings
from selfsame.run import RunDirectory

SEEDS = 3
RECORDED = [
    pytest.param(name, seed, id=f"{name}-{seed}")
    for name in CASES
    for seed in range(len(planted.recorded(name)))
]
COLLAPSES = {"stop-gradient", "centring"}
NEW_SEED = 17  # none of those that the thresholds were measured on


def check(name: str, verdict: Verdict) -> None:
    case = CASES[name]
    assert verdict.cause == case.cause, verdict
    assert verdict.reason
    assert verdict.tip
    if case.cause is None:
        assert verdict.state in ("still improving", "plateaued", "too early to tell"), verdict
    if case.cause in COLLAPSES or name == "dino-hot":
        assert verdict.state == "collapsed", verdict
        assert verdict.kind in ("complete", "dimensional")
    else:
        assert verdict.kind is None
    if case.cause == "learning rate":
        assert verdict.state == "unstable", verdict
    if case.state:
        assert verdict.state == case.state, verdict


@pytest.mark.parametrize(("name", "seed"), RECORDED)
def test_recorded_runs(name: str, seed: int) -> None:
    check(name, judge(*planted.recorded(name)[seed]))


def test_what_is_recorded() -> None:
    """Healthy runs, runs at rest and every planted fault, each on several seeds."""
    assert {name: len(planted.recorded(name)) for name in CASES} == dict.fromkeys(CASES, SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_real_runs(name: str, tmp_path: Path) -> None:
    run = planted.run(CASES[name], NEW_SEED, tmp_path / "run")
    row = [row for row in run.rows("eval") if row["protocol"] == "verdict"][-1]
    check(name, Verdict(**{key: row[key] for key in Verdict._fields}))


def tiny(name: str, settings: tuple[str, ...], out: Path, steps: int) -> Verdict:
    """The verdict on a run of seconds: a tiny network on 256 images of CIFAR-10."""
    case = planted.Case(name)
    recipe = planted.recipe_of(case, 0) if ":" in name else tiny_recipe(name)
    network = ["backbone.name=resnet10", "backbone.options.width=8", "precision=fp32"]
    recipe = with_settings(recipe, [*network, f"steps={steps}", "batch_size=32", *settings])
    images = planted.photos()[:256]
    with planted.unhurried():
        return pretrain(
            name, images, out=out, recipe=recipe, log_every=4, quiet=True, device="cpu"
        ).verdict


def test_a_real_run_without_its_stop_gradient(tmp_path: Path) -> None:
    found = tiny("planted:OpenBYOL", (), tmp_path / "run", steps=60)
    assert (found.state, found.kind, found.cause) == ("collapsed", "complete", "stop-gradient")


def test_a_real_run_with_views_that_are_hardly_changed(tmp_path: Path) -> None:
    found = tiny("simclr", planted.STILL, tmp_path / "run", steps=24)
    assert found.cause == "weak views"
    rows = RunDirectory(tmp_path / "run").rows("eval")
    assert rows[-1]["cause"] == "weak views"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "likely cause: weak views" in log
    assert "--set views.scale=[0.2,1.0]" in log


def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    recipe = tiny_recipe("vicreg", steps=40, optim__name="sgd", optim__lr=1e6)
    with pytest.raises(DivergedError):
        pretrain("vicreg", textures(64), out=tmp_path / "run", recipe=recipe, quiet=True)
    row = RunDirectory(tmp_path / "run").rows("eval")[-1]
    assert (row["protocol"], row["state"], row["cause"]) == ("verdict", "unstable", "learning rate")
    assert (
        "verdict    unstable, likely cause: learning rate"
        in (tmp_path / "run" / "log.txt").read_text()
    )


HEALTH = {
    "images": 1024.0,
    "dim": 128.0,
    "rankme": 40.0,
    "feature_std": 0.05,
    "feature_std_reference": 128**-0.5,
    "alignment": 0.3,
    "view_match": 0.2,
    "pixel_match": 0.15,
    "neutral_match": 0.4,
    "weight_rms": 0.05,
}


def rows_of(losses: Any, **more: float) -> list[dict[str, float]]:
    return [
        {"step": 10 * (i + 1), "loss": float(x), "lr": 1e-3, **more} for i, x in enumerate(losses)
    ]


def recipe_of() -> Recipe:
    choices = planning.Choices(recipe=tiny_recipe("vicreg"))
    return planning.make("vicreg", textures(16), choices).recipe


def judged(losses: Any, last: dict[str, float] | None = None, **more: float) -> Verdict:
    start = {**HEALTH, "step": 0, "rankme": 20.0}
    end = {**HEALTH, "step": 10 * len(losses), **(last or {})}
    return judge([start, end], rows_of(losses, **more), recipe_of())


NOISE = 0.05 * np.random.default_rng(0).standard_normal(40)


def test_falling_flat_and_few_losses() -> None:
    falling, flat = np.linspace(4, 2, 40), np.r_[np.linspace(4, 2, 10), np.full(30, 2.0)]
    assert judged(falling + NOISE).state == "still improving"
    assert judged(flat + NOISE).state == "plateaued"
    assert judged(flat + 20 * NOISE).state == "too early to tell"
    assert judged(falling[:6]).state == "too early to tell"
    state, reason, _ = trend(rows_of(falling + NOISE))
    assert state == "still improving"
    assert "the loss fell by 0.9" in reason  # of 2 over the whole


def test_the_interval_is_student_s() -> None:
    from scipy import stats

    for freedom in (3, 4, 8, 50, 1000):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


def test_few_runs_at_rest_are_said_to_improve_however_few_losses_there_are() -> None:
    """With noise of a tenth of the fall: 2.5 % by definition, until there are enough to tell."""
    rng = np.random.default_rng(0)
    for count, improving, plateaued in ((10, 0.05, 0.0), (60, 0.05, 0.0), (600, 0.01, 0.95)):
        states = []
        for _ in range(200):
            at_rest = np.r_[3.0, np.linspace(3, 2, count // 2)[1:], np.full(count // 2, 2.0)]
            noise = 0.1 * rng.standard_normal(len(at_rest))
            states.append(trend(rows_of(at_rest + noise))[0])
        assert states.count("still improving") <= improving * len(states)
        assert states.count("plateaued") >= plateaued * len(states)


def test_a_rising_loss_leaves_it_to_the_features() -> None:
    rising = rows_of(np.linspace(2, 3, 40) + NOISE)
    assert trend(rising)[0] == "too early to tell"
    learning, resting = (
        [{"step": 40 * i, "view_match": match} for i, match in enumerate(matches)]
        for matches in (np.linspace(0.1, 0.5, 11), np.r_[np.linspace(0.1, 0.4, 5), [0.4] * 6])
    )
    assert trend(rising, learning)[0] == "still improving"
    assert trend(rising, resting)[0] == "plateaued"


def test_collapse_of_features_is_seen_without_any_word_of_the_method() -> None:
    flat = np.full(40, 1.0)
    same = judged(flat, {"feature_std": 0.001})
    assert (same.state, same.kind, same.cause) == ("collapsed", "complete", None)
    thin = judged(flat, {"rankme": 3.0})
    assert (thin.state, thin.kind, thin.cause) == ("collapsed", "dimensional", None)
    assert "3.0 of 128" in thin.reason
    assert judged(flat, {"rankme": 18.0}).state != "collapsed"  # about as many as at the start


def test_features_that_share_a_large_part_and_tell_images_apart_are_no_collapse() -> None:
    """Of a method that paints what it does not see; numbers of a MAE on photos of 224 px."""
    painter, losses = methods.recipe("mae", "small", 32), rows_of(np.full(40, 1.0))
    start = {**HEALTH, "step": 0, "view_match": 0.625}
    end = {**HEALTH, "step": 400, "view_match": 0.734, "feature_std": 0.0045}
    apart = judge([start, end], losses, painter)
    assert apart.state == "plateaued"
    assert "centre and scale each dimension" in apart.reason
    assert judge([start, {**end, "view_match": 0.1}], losses, painter).kind == "complete"
    alike = judge([start, {**end, "view_match": 0.4}], losses, recipe_of())
    assert alike.kind == "complete", "of a method that compares views it is one"


def test_few_images_of_a_probe_name_a_complete_collapse_alone() -> None:
    few = {"images": 128.0, "viewed": 32.0}
    assert judged(np.full(40, 1.0), {"rankme": 3.0, **few}).state == "plateaued"
    assert judged(np.full(40, 1.0), {"pixel_match": 1.0, **few}).cause is None
    assert judged(np.full(40, 1.0), {"pixel_match": 1.0}).cause == "weak views"
    assert judged(np.full(40, 1.0), {"feature_std": 0.001, **few}).state == "collapsed"


def test_weights_that_grow_under_sgd_whose_steps_are_not_known() -> None:
    recipe = with_settings(recipe_of(), ["optim.name=sgd", "optim.lr=5.0"])
    start = {**HEALTH, "step": 0}
    for grown, state in ((1.4, "plateaued"), (30.0, "unstable")):
        end = {**HEALTH, "step": 400, "weight_rms": 0.05 * grown}
        assert judge([start, end], rows_of(np.full(40, 1.0)), recipe).state == state


def test_the_lines_of_a_verdict_fit_a_terminal() -> None:
    lines = judged(np.full(40, 1.0), {"rankme": 3.0}).lines()
    assert lines[0] == "verdict    collapsed (dimensional)"
    assert all(len(line) <= 100 for line in lines)
    assert "tip: " in "\n".join(lines)
