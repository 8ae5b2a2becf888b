"""Answers in the terminal: plain lines that other programs can read, or JSON."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from selfsame.classifier import ENOUGH_TO_CALIBRATE, ENOUGH_TO_JUDGE, Fitted, Prediction
from selfsame.errors import UsageError
from selfsame.files import output
from selfsame.index.ask import MANY, Answer, Group, Outlier, Pick


def show_answers(answers: Sequence[Answer], as_json: bool) -> None:
    """Each query with what was found."""
    if as_json:
        _json([{"query": a.query, "found": [f._asdict() for f in a.found]} for a in answers])
        return
    for answer in answers:
        print(answer.query)
        rows = [
            (f"{f.similarity:.4f}", f.id, f.path + ("  (the same bytes)" if f.same else ""))
            for f in answer.found
        ]
        _table(("cosine", "id", "path"), rows)


def show_groups(groups: Sequence[Group], images: int, threshold: float, as_json: bool) -> None:
    """Each group, with its first image first."""
    if as_json:
        _json(
            [
                {"identical": g.identical, "members": [m._asdict() for m in g.members]}
                for g in groups
            ]
        )
        return
    for number, group in enumerate(groups, 1):
        kind = "the same bytes" if group.identical else "alike"
        print(f"group {number}: {len(group.members):,} images, {kind}")
        rows = [
            (
                f"{m.similarity:.4f}",
                m.id,
                m.path + ("" if m.same is None else f"  (the bytes of {m.same})"),
            )
            for m in group.members
        ]
        _table(("cosine", "id", "path"), rows)
    alike = sum(len(group.members) for group in groups)
    identical = sum(group.identical for group in groups)
    said = f"{len(groups):,} group{'s' * (len(groups) != 1)} ({identical:,} of the same bytes)"
    _say(
        f"{said} at a cosine of {threshold:g} or more; with one image of each group kept, "
        f"{images - alike + len(groups):,} of {images:,} are left"
    )
    if alike > MANY * images:
        _say(
            "note       that is more than duplicates explain: the features hardly tell images "
            "apart; raise --threshold"
        )


def show_outliers(found: Sequence[Outlier], as_json: bool) -> None:
    """The images with their scores."""
    if as_json:
        _json([o._asdict() for o in found])
        return
    _table(("distance", "id", "path"), [(f"{o.score:.4f}", o.id, o.path) for o in found])


def show_picks(picks: Sequence[Pick], as_json: bool) -> None:
    """The images with what they stand for."""
    if as_json:
        _json([p._asdict() for p in picks])
        return
    _table(("stands for", "id", "path"), [(f"{p.stands_for:,}", p.id, p.path) for p in picks])


def show_fitted(fitted: Fitted, out: Path, as_json: bool) -> None:
    """What was fitted, and how good it is."""
    if as_json:
        facts = {k: v for k, v in fitted._asdict().items() if k != "encoder"}
        _json(facts)
        return
    print(
        f"classifier {fitted.kind}, {len(fitted.classes)} classes, "
        f"{fitted.images:,} labelled images"
    )
    if fitted.accuracy is None or fitted.interval is None:
        print(
            f"accuracy   {fitted.held_out} held-out images are too few to say; "
            f"{ENOUGH_TO_JUDGE} or more would do"
        )
    else:
        low, high = fitted.interval
        print(
            f"accuracy   {fitted.accuracy:.1%} [{low:.1%}, {high:.1%}] on {fitted.held_out:,} "
            f"held-out images ({fitted.how}); the most frequent class alone has "
            f"{fitted.majority:.1%}"
        )
    error = fitted.calibration_error
    known = "" if error is None else f"; mean error {error:.1%} on the held-out images"
    if fitted.temperature is not None:
        print(f"probabilities  calibrated (temperature {fitted.temperature:.2f}){known}")
    elif fitted.kind == "linear":
        print(
            f"probabilities  not calibrated: that takes {ENOUGH_TO_CALIBRATE} held-out images"
            + known
        )
    else:
        print(f"probabilities  not calibrated: shares of the neighbours' vote{known}")
    for name in fitted.refused:
        _say(f"bad        {name} cannot be read and is left out")
    _say(f"saved      {out}")
    _say(f"next       selfsame predict {out} PHOTOS/")


def show_predictions(found: Iterator[Prediction], out: Path | None, as_json: bool) -> None:
    """Each image with its class, as they come; those that cannot be read are named."""
    if out is not None:
        if out.suffix.lower() != ".csv":
            raise UsageError(f"'{out}' does not end in .csv", tip=f"write '{out}.csv'")
        written = bad = 0
        with output(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(("path", "class", "probability", "error"))
            for p in found:
                share = "" if p.probability is None else f"{p.probability:.6f}"
                table.writerow((_text(p.path), p.label or "", share, p.error or ""))
                written += 1
                bad += _complain(p)
        _say(f"saved      {out}: {written - bad:,} images" + (f", {bad:,} unreadable" * (bad > 0)))
        return
    width = 0
    for p in found:
        if as_json:
            print(json.dumps(p._asdict()), flush=True)
            continue
        if not _complain(p):
            width = max(width, len(str(p.label)))
            print(f"{p.label!s:<{width}}  {p.probability:6.1%}  {_text(p.path)}", flush=True)


def _complain(p: Prediction) -> bool:
    if p.error is None:
        return False
    _say(f"bad        {_text(p.path)}: {p.error}")
    return True


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Right-aligned columns, the last one free: paths are never cut or broken."""
    texts = [tuple(heads), *(tuple(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(heads) - 1)]
    for row in texts:
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False)]
        print("  " + "  ".join([*cells, _text(row[-1])]))


def _text(name: str) -> str:
    """A name as it can be printed: names of files need not be valid Unicode."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _json(value: Any) -> None:
    print(json.dumps(value))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
