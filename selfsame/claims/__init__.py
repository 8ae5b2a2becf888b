"""Each paper's key claim as a small experiment with a control. One file a claim, and one table."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from selfsame.claims.claim import Claim, Verdict, run
from selfsame.errors import UsageError, nearest

__all__ = ["CLAIMS", "Claim", "Verdict", "command", "find", "run"]

NAMES = (
    "simclr",
    "moco",
    "mocov3",
    "swav",
    "deepcluster",
    "deepclusterv2",
    "byol",
    "simsiam",
    "barlow_twins",
    "vicreg",
    "mae",
    "dino",
    "ibot",
    "dinov2",
    "data2vec2",
    "kd",
    "dkd",
    "fitnets",
    "attention_transfer",
    "rkd",
    "crd",
    "seed",
    "deit",
    "lars",
    "resnet",
    "vit",
    "mixer",
)
CLAIMS: dict[str, str] = {name: f"selfsame.claims.{name}:CLAIM" for name in NAMES}


def find(name: str) -> Claim:
    """A claim by name.

    Raises:
        UsageError: no such claim.
    """
    if name not in CLAIMS:
        close = nearest(name, CLAIMS)
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
