"""Each paper's key claim as a small experiment with a control. One file a claim, and one table."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from selfsame.claims.claim import Claim, Verdict, run
from selfsame.errors import UsageError, nearest

__all__ = ["CLAIMS", "NOT_YET", "Claim", "Verdict", "command", "find", "run"]

NAMES = (
    "simsiam",
    "dino",
    "mae",
    "barlow_twins",
    "vicreg",
    "swav",
    "simclr",
    "byol",
    "moco",
    "mocov3",
    "deepcluster",
    "deepclusterv2",
    "kd",
    "dkd",
    "lars",
)
CLAIMS: dict[str, str] = {name: f"selfsame.claims.{name}:CLAIM" for name in NAMES}

# papers of the table of methods whose experiment is not written: arXiv id, and the claim in a line
NOT_YET: dict[str, tuple[str, str]] = {
    "ibot": ("2111.07832", "learning masked patches' tokens improves patch features"),
    "dinov2": ("2304.07193", "KoLeo spreads the features over the sphere"),
    "data2vec2": ("2212.07525", "one pass of the teacher serves many masks"),
    "fitnets": ("1412.6550", "hints from a middle layer let thin deep students train"),
    "attention_transfer": ("1612.03928", "a student that attends where its teacher does is better"),
    "rkd": ("1904.05068", "distances and angles between images transfer, whatever the widths"),
    "crd": ("1910.10699", "contrasting with the teacher's features beats matching classes"),
    "seed": ("2101.04731", "small networks learn a large one's similarities without labels"),
    "deit": ("2012.12877", "a token of its own for the teacher's hard labels helps a ViT"),
}


def find(name: str) -> Claim:
    """A claim by name.

    Raises:
        UsageError: no such claim, or none that is written yet.
    """
    if name in NOT_YET:
        raise UsageError(
            f"the experiment of {name} is not written yet",
            tip=f"those that are: {', '.join(CLAIMS)}",
        )
    if name not in CLAIMS:
        close = nearest(name, [*CLAIMS, *NOT_YET])
        raise UsageError(
            f"unknown claim '{name}'",
            tip=(f"did you mean '{close}'? " if close else "")
            + f"those that there are: {', '.join(CLAIMS)}; or list, all, page",
        )
    module, _, attribute = CLAIMS[name].partition(":")
    found: Claim = getattr(import_module(module), attribute)
    return found


def command(
    name: str,
    *,
    seeds: int,
    budget: str,
    out: Path,
    device: str | None = None,
    say: Callable[[str], None],
) -> None:
    """What ``selfsame claim`` does: results are printed, the rest is told to ``say``.

    Args:
        name: a claim; "list", "all", or "page".
        seeds: how many, from 0.
        budget: "fast" or "full".
        out: the folder of the ledger.
        device: where to compute.
        say: told of what is run and written.

    Raises:
        UsageError: an unknown claim or budget, or a folder that cannot be written.
    """
    from selfsame.claims import page
    from selfsame.claims.claim import check_options

    check_options(seeds, budget)
    if name == "list":
        print("\n".join(page.listing(out)))
        return
    chosen = list(CLAIMS) if name in ("all", "page") else [name]
    claims = [find(each) for each in chosen]
    for claim in claims if name != "page" else ():
        entry = run(claim, seeds=seeds, budget=budget, out=out, device=device, say=say)
        print("\n".join(page.terminal(claim, entry)) + "\n")
        file = page.write_html(claim, entry, out)
        say(f"saved      {out / 'ledger' / claim.name}.json, {file}")
    if name in ("all", "page"):
        written = page.write_docs(out, page.DOCS)
        say(f"saved      {written[0]}, {len(written) - 1} figures")
