"""What is made of the ledger: a table in the terminal, a page of one claim, the page of all."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfsame.claims import CLAIMS, find
from selfsame.claims.claim import Claim, Quantity, cannot_use, means, read_entry, values
from selfsame.claims.figure import figure
from selfsame.files import atomic
from selfsame.report.document import document
from selfsame.report.html import Html, tag

DOCS = Path("docs/claims")
ARXIV = "https://arxiv.org/abs/"

HEADER = """\
# Every paper's key claim, on a laptop

What each paper says, the smallest experiment that can contradict it, and what came out. The
numbers are those of [claims/ledger](../../claims/ledger); `selfsame claim page` makes this page of
them.

```
selfsame claim list                 # all of them, with what came out last
selfsame claim simsiam              # one of them: a table, and a page with its figure
selfsame claim all                  # the whole ledger; what ended is not run again
```

**Shown**: every inequality held with every seed. **Shown in part**: one or more held in the mean
over seeds. **Not shown at this size**: none did, and the likely reason stands beside it. **Not
run** is what was not run. Each bar is about half of the gap that three seeds gave, which stands
beside it in the claim's file. These are small networks on small images, trained for less than a
minute: enough for the direction of a claim, not for the accuracies of the papers.
"""


def status(record: Mapping[str, Any] | None) -> str:
    """The verdict with its date and machine, in words."""
    if record is None:
        return "not run"
    return f"{record['verdict']} ({record['date']}, {record['machine'].split(',')[0]})"


def listing(out: Path) -> list[str]:
    """Every paper: its claim in a line, and what came out last."""
    rows = [(name, find(name).says, status(read_entry(out, name))) for name in CLAIMS]
    width = max(len(name) for name, _, _ in rows)
    lines = []
    for name, says, state in rows:
        lines += [f"{name:<{width}}  {says}", f"{'':<{width}}  {state}"]
    return lines


def cell(record: Mapping[str, Any], arm: str, key: str, quantity: Quantity) -> str:
    """Mean and standard deviation over seeds of a quantity of an arm; empty where it has none."""
    found = [quantity.scale * value for value in values(record, arm, key)]
    if not found:
        return ""
    if not all(math.isfinite(value) for value in found):
        return "not finite"
    text = f"{statistics.fmean(found):,.{quantity.digits}f}"
    if len(found) > 1:
        text += f" ± {statistics.stdev(found):,.{quantity.digits}f}"
    return text


def table(claim: Claim, record: Mapping[str, Any]) -> list[list[str]]:
    """Rows of cells: a header, then one row an arm."""
    rows = [["", *(quantity.title for quantity in claim.quantities.values())]]
    for name, arm in claim.arms.items():
        cells = [cell(record, name, *each) for each in claim.quantities.items()]
        rows.append([name + (" (control)" if arm.control else ""), *cells])
    return rows


def held(check: Mapping[str, Any]) -> str:
    """What came out of an inequality, in words."""
    side = "above" if check["above"] else "below"
    mean = "not a number" if check["mean"] is None else f"{check['mean']:.4g}"
    return (
        f"{mean} in the mean, {side} {check['bar']:g} "
        f"with {sum(check['held'])} of {len(check['held'])} seeds"
    )


def terminal(claim: Claim, record: Mapping[str, Any]) -> list[str]:
    """The table that the paper would print, each inequality, and the verdict."""
    rows = table(claim, record)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [f"{claim.paper} (arXiv {claim.arxiv}, {claim.source})", claim.says, ""]
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [each.rjust(width) for each, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("   ".join(cells).rstrip())
    lines.append("")
    for check in record["checks"]:
        word = "held" if all(check["held"]) else "in part" if check["held_in_the_mean"] else "no"
        lines.append(f"{word:<10} {check['words']}: {held(check)}")
    lines += ["", f"verdict    {record['verdict']}"]
    return lines


def explanation(claim: Claim, record: Mapping[str, Any]) -> str:
    """A paragraph on what was seen, with the likely reason where the claim does not show."""
    text = claim.seen(means(record))
    if record["verdict"] != "shown" and claim.reason:
        text += f" Why it does not show in full, most likely: {claim.reason}."
    return text


def how(record: Mapping[str, Any]) -> str:
    """With what the numbers were made."""
    seeds = len(record["seeds"])
    steps = f"{record['steps']:,} steps, " if record["steps"] else ""
    cpu = [each["cpu"] for runs in record["arms"].values() for each in runs]
    return (
        f"{steps}{seeds} seed{'s' if seeds != 1 else ''}, {statistics.fmean(cpu):.0f} CPU seconds "
        f"an arm and seed; {record['date']}, {record['machine']}, torch "
        f"{record['versions']['torch']}, commit {record['commit'] or 'unknown'}"
    )


def html(claim: Claim, record: Mapping[str, Any]) -> str:
    """The page of one claim: a file that loads nothing."""
    head, *body = table(claim, record)
    checks = [
        [
            check["words"],
            held(check),
            "yes" if all(check["held"]) else "in the mean" if check["held_in_the_mean"] else "no",
        ]
        for check in record["checks"]
    ]
    shown = record["verdict"] == "shown"
    content = tag(
        "main",
        tag("h1", claim.says[0].upper() + claim.says[1:]),
        tag(
            "p",
            claim.paper,
            ", ",
            tag("a", f"arXiv {claim.arxiv}", href=ARXIV + claim.arxiv),
            f"; {claim.source}",
            class_="muted",
        ),
        tag("p", record["verdict"].capitalize(), class_="state" if shown else "state trouble"),
        tag("p", explanation(claim, record)),
        tag("div", figure(claim, record), class_="scroll"),
        _table(head, body),
        tag("h3", "Inequalities"),
        _table(["", "found", "held"], checks),
        tag("h3", "Experiment"),
        tag("p", claim.experiment),
        tag("p", f"Data: {claim.data}."),
        tag("p", f"Departs from the paper: {'; '.join(claim.deviations)}.")
        if claim.deviations
        else None,
        tag("pre", f"selfsame claim {claim.name} --budget {record['budget']}"),
        tag("p", how(record), class_="muted small"),
    )
    return document(f"{claim.name}: {record['verdict']}", content)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> Html:
    return tag(
        "div",
        tag(
            "table",
            tag("thead", tag("tr", [tag("th", each) for each in head])),
            tag(
                "tbody",
                [
                    tag("tr", tag("th", row[0]), [tag("td", each) for each in row[1:]])
                    for row in body
                ],
            ),
        ),
        class_="scroll",
    )


def write_html(claim: Claim, record: Mapping[str, Any], out: Path) -> Path:
    """Write the page of one claim beside its ledger.

    Raises:
        UsageError: the folder cannot be written.
    """
    return _write(out / f"{claim.name}.html", html(claim, record))


def write_docs(out: Path, folder: Path) -> list[Path]:
    """Write the page of all claims, and its figures, from the ledger in ``out``.

    Raises:
        UsageError: a folder cannot be written.
    """
    return [_write(folder / name, text) for name, text in documents(out).items()]


def documents(out: Path) -> dict[str, str]:
    """The page and its figures, by name: a function of the ledger in ``out`` alone."""
    entries = {name: read_entry(out, name) for name in CLAIMS}
    found = {}
    lines = [HEADER, "| | claim | verdict |", "|---|---|---|"]
    sections = []
    for name, record in entries.items():
        claim = find(name)
        state = "not run" if record is None else record["verdict"]
        lines.append(f"| [{name}](#{name}) | {claim.says} | {state} |")
        sections.append(_section(claim, record))
        if record is not None:
            found[f"{name}.svg"] = str(figure(claim, record)) + "\n"
    return {"README.md": "\n".join(lines) + "\n" + "".join(sections), **found}


def _section(claim: Claim, record: Mapping[str, Any] | None) -> str:
    """One paper on the page of all."""
    source = f"[selfsame/claims/{claim.name}.py](../../selfsame/claims/{claim.name}.py)"
    what = "network" if claim.file.startswith("selfsame/backbones/") else "method"
    lines = [
        f"\n## {claim.name}\n",
        f"{claim.paper}, [arXiv {claim.arxiv}]({ARXIV}{claim.arxiv}); {claim.source}. "
        f"The {what} is [{claim.file}](../../{claim.file}), the experiment {source}.\n",
        f"**Claim.** {claim.says[0].upper()}{claim.says[1:]}.\n",
        f"**Experiment.** {claim.experiment}",
    ]
    if claim.deviations:
        lines += ["", f"Departs from the paper: {'; '.join(claim.deviations)}."]
    if record is None:
        lines.append(f"\n**Verdict: not run.** `selfsame claim {claim.name}` runs it.\n")
        return "\n".join(lines)
    lines += ["", f"![{claim.says}]({claim.name}.svg)", ""]
    head, *body = table(claim, record)
    lines += [_row(head), "|---|" + "---:|" * (len(head) - 1), *(_row(row) for row in body), ""]
    lines += [f"**Verdict: {record['verdict']}.** {explanation(claim, record)}", ""]
    lines += ["| inequality | found |", "|---|---|"]
    lines += [_row([check["words"], held(check)]) for check in record["checks"]]
    lines += ["", f"`selfsame claim {claim.name}`: {how(record)}.", ""]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(each.replace('|', chr(92) + '|') for each in cells)} |"


def _write(file: Path, text: str) -> Path:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic(file) as temporary:
            temporary.write_text(text, "utf-8")
    except OSError as error:
        raise cannot_use(file.parent, error) from None
    return file
