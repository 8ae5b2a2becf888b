"""The framework of the claims on claims that cost nothing, and one real claim end to end."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfsame import claims
from selfsame.claims import CLAIMS, page
from selfsame.claims.claim import (
    BUDGETS,
    VERDICTS,
    Arm,
    Bars,
    Check,
    Claim,
    Curves,
    Found,
    Quantity,
    Setting,
    read_entry,
    run,
    thin,
    verdict,
)
from selfsame.claims.figure import figure
from selfsame.cli import main
from selfsame.errors import UsageError
from selfsame.methods import METHODS

ROOT = Path(__file__).parents[2]
OWN = {"supervised", "distill"}  # methods that are no paper's
NO_METHODS = {"lars", "resnet", "vit", "mixer"}  # papers of an optimiser and of networks


def made(ran: list[tuple[str, int]], *, control: float = 0.0, broken: float = 1.0) -> Claim:
    """A claim whose arms note that they ran; the method has ``broken`` with the last seed."""

    def arm(name: str, value: float) -> Arm:
        def go(setting: Setting) -> Found:
            ran.append((name, setting.seed))
            found = broken if name == "method" and setting.seed == 2 else value
            return Found({"x": found}, {"x": [(step, found) for step in range(100)]})

        return Arm(go, control=name == "without")

    return Claim(
        name="made",
        paper="Nobody, Nowhere",
        arxiv="0000.00000",
        says="a < b & c",
        source="table 1",
        experiment="Nothing is done.",
        data="none",
        file="selfsame/train.py",
        arms={"method": arm("method", 1.0), "without": arm("without", control)},
        quantities={"x": Quantity("x, %", 1, 100)},
        checks=(
            Check("x", lambda n: n["method"]["x"] - n["without"]["x"], 0.5, "1.0"),
            Check("without", lambda n: n["without"]["x"], 0.5, "0.0", above=False),
        ),
        steps={"fast": 10, "full": 20},
        panels=(Curves("x", "x", {"one": 1.0}), Bars("x", "x")),
        seen=lambda mean: f"x is {mean['method']['x']:.1f}",
        reason="it is made up",
    )


def test_an_arm_that_ended_is_not_run_again(tmp_path: Path) -> None:
    ran: list[tuple[str, int]] = []
    first = run(made(ran), seeds=2, out=tmp_path)
    assert ran == [("method", 0), ("without", 0), ("method", 1), ("without", 1)]
    again = run(made(ran), seeds=3, out=tmp_path)
    assert ran[4:] == [("method", 2), ("without", 2)]
    assert again["seeds"] == [0, 1, 2]
    assert again["arms"]["method"][:2] == first["arms"]["method"]
    run(made(ran), seeds=1, budget="full", out=tmp_path)
    assert ran[6:] == [("method", 0), ("without", 0)], "another budget is another experiment"


def test_arms_whose_names_have_dots_are_kept_apart(tmp_path: Path) -> None:
    def arm(momentum: float) -> Arm:
        return Arm(lambda setting: Found({"x": momentum + setting.seed}), control=momentum < 0.95)

    claim = replace(made([]), arms={f"momentum {m}": arm(m) for m in (0.9, 0.99)}, checks=())
    record = run(claim, seeds=2, out=tmp_path)
    found = {arm: [each["numbers"]["x"] for each in runs] for arm, runs in record["arms"].items()}
    assert found == {"momentum 0.9": [0.9, 1.9], "momentum 0.99": [0.99, 1.99]}


def test_what_an_arm_found_outlives_one_that_fails(tmp_path: Path) -> None:
    ran: list[tuple[str, int]] = []

    def fails(setting: Setting) -> Found:
        raise RuntimeError("stopped")

    claim = made(ran)
    stopped = replace(claim, arms={**claim.arms, "without": Arm(fails, control=True)})
    with pytest.raises(RuntimeError, match="stopped"):
        run(stopped, seeds=1, out=tmp_path)
    assert read_entry(tmp_path, "made") is None
    run(claim, seeds=1, out=tmp_path)
    assert ran == [("method", 0), ("without", 0)]


@pytest.mark.parametrize(
    ("control", "broken", "word"),
    [
        (0.0, 1.0, "shown"),
        (0.0, 0.4, "shown in part"),  # with one seed of three it does not hold
        (0.4, 0.0, "shown in part"),
        (1.0, 1.0, "not shown at this size"),
        (0.0, float("nan"), "shown in part"),  # the second inequality held
    ],
)
def test_verdicts(tmp_path: Path, control: float, broken: float, word: str) -> None:
    record = run(made([], control=control, broken=broken), seeds=3, out=tmp_path)
    assert record["verdict"] == word
    assert word in VERDICTS
    assert record["checks"][0]["held"][2] is (broken == 1.0 and control == 0.0)


def test_a_verdict_needs_the_mean_to_hold() -> None:
    weak = {"held": [True, False, False], "held_in_the_mean": False}
    assert verdict([weak]) == "not shown at this size"
    assert verdict([weak | {"held_in_the_mean": True}]) == "shown in part"


def test_pages_say_what_the_ledger_says(tmp_path: Path) -> None:
    claim = made([], broken=float("nan"))
    record = run(claim, seeds=3, out=tmp_path)
    assert json.loads((tmp_path / "ledger/made.json").read_text("utf-8")) == record
    terminal = "\n".join(page.terminal(claim, record))
    assert "verdict    shown in part" in terminal
    assert re.search(r"without \(control\) +0\.0 ± 0\.0", terminal)
    assert "not finite" in terminal
    text = page.write_html(claim, record, tmp_path).read_text("utf-8")
    assert "a &lt; b &amp; c" in text.replace("A &lt; b", "a &lt; b")
    assert "most likely: it is made up" in text
    assert "default-src &#x27;none&#x27;" in text  # no script runs but that of reports
    links = {"https://arxiv.org", "http://www.w3.org/2000/svg"}
    assert set(re.findall(r"https?://[^\"/]+(?:/2000/svg)?", text)) == links
    assert figure(claim, record).count("<path") == 6
    assert "without" in figure(claim, record)


def test_curves_are_kept_short() -> None:
    points = [(float(step), float(step)) for step in range(1000)]
    kept = thin(points)
    assert len(kept) == 40
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert thin(points[:40]) == points[:40]


def test_every_paper_of_the_table_is_claimed() -> None:
    papers = set(METHODS) - OWN
    assert set(CLAIMS) == papers | NO_METHODS


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_whole(name: str) -> None:
    claim = claims.find(name)
    assert claim.name == name
    assert (ROOT / claim.file).is_file()
    assert any(arm.control for arm in claim.arms.values())
    assert not all(arm.control for arm in claim.arms.values())
    assert set(claim.steps) == set(BUDGETS)
    if read_entry(ROOT / "claims", name) is not None:
        assert all(check.measured for check in claim.checks), "a bar comes from a measurement"
    assert not claim.says.endswith(".")


def test_ledger_entries_are_of_their_claims() -> None:
    entries = {file.stem: file for file in (ROOT / "claims/ledger").glob("*.json")}
    assert set(entries) <= set(CLAIMS)
    for name in entries:
        claim, record = claims.find(name), read_entry(ROOT / "claims", name)
        assert record is not None
        assert record["claim"] == name
        assert len(record["seeds"]) >= 3
        assert record["verdict"] in VERDICTS[:3]
        assert record["verdict"] == verdict(record["checks"])
        assert record["steps"] == claim.steps[record["budget"]]
        assert record["commit"]
        assert record["machine"]
        assert record["date"] >= "2026-01-01"
        assert set(record["arms"]) == set(claim.arms)
        for runs in record["arms"].values():
            assert [each["seed"] for each in runs] == record["seeds"]
        by_seed = [
            {arm: record["arms"][arm][i]["numbers"] for arm in claim.arms}
            for i in range(len(record["seeds"]))
        ]
        for check, said in zip(claim.checks, record["checks"], strict=True):
            assert (check.words, check.bar) == (said["words"], said["bar"])
            values = [check.value(numbers) for numbers in by_seed]
            assert values == pytest.approx(said["values"], rel=5e-3, abs=1e-3)


def test_the_page_is_what_the_ledger_makes() -> None:
    folder = ROOT / "docs/claims"
    found = page.documents(ROOT / "claims")
    assert {file.name for file in folder.iterdir()} == set(found)
    for name, text in found.items():
        assert (folder / name).read_text("utf-8") == text, f"selfsame claim page: {name} is old"


def test_a_damaged_ledger_is_an_error_with_a_tip(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger/lars.json").write_text("{", "utf-8")
    with pytest.raises(UsageError, match="no entry of a ledger"):
        page.listing(tmp_path)
    (tmp_path / "ledger/lars.json").write_text('{"format": 99}', "utf-8")
    with pytest.raises(UsageError, match="format 99"):
        page.listing(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simsaim"], "error: unknown claim 'simsaim'\ntip: did you mean 'simsiam'?"),
        (["zzz"], "error: unknown claim 'zzz'\ntip: those that there are: simclr"),
        (["lars", "--budget", "fats"], "error: unknown budget 'fats'\ntip: did you mean 'fast'?"),
        (["lars", "--seeds", "0"], "error: seeds is 0\ntip: it is a number of seeds"),
    ],
)
def test_wrong_use(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["claim", *arguments, "--out", str(tmp_path / "none")]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    assert main(["claim", "lars", "--out", str(tmp_path / "file")]) == 2
    assert "error: cannot write to" in capsys.readouterr().err


def test_one_claim_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["claim", "list", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("not run") == len(CLAIMS)
    assert main(["claim", "lars", "--seeds", "1", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "verdict    shown\n" in printed.out
    assert "lars.html" in printed.err
    record = read_entry(tmp_path, "lars")
    assert record is not None
    assert record["verdict"] == "shown"
    assert "svg" in (tmp_path / "lars.html").read_text("utf-8")
    assert main(["claim", "list", "--out", str(tmp_path)]) == 0
    assert f"shown ({record['date']}, " in capsys.readouterr().out


def test_shuffling_moves_whole_patches_alike_in_all_images() -> None:
    from selfsame.claims.mixer import shuffle

    x = torch.arange(64.0).expand(3, 64)  # each pixel is its own place
    found = shuffle(x)
    assert torch.equal(found[0], found[2])
    assert sorted(found[0].tolist()) == list(range(64))
    assert not torch.equal(found[0], x[0])
    patches = found[0].view(4, 2, 4, 2).transpose(1, 2).reshape(16, 4)
    whole = x[0].view(4, 2, 4, 2).transpose(1, 2).reshape(16, 4)
    assert {frozenset(p.tolist()) for p in patches} == {frozenset(p.tolist()) for p in whole}
