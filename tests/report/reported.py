"""Small runs that reports are made of."""

from __future__ import annotations

from pathlib import Path

from helpers import tiny_settings

import selfsame
from selfsame.run import RunDirectory

EVIL = "<script>alert(1)<"  # the name of a class, as a folder's name may be


def train(method: str, photos: Path, out: Path, network: dict[str, str], **more: object) -> Path:
    """Four steps of a method on a tiny network."""
    selfsame.pretrain(
        method,
        str(photos),
        out=out,
        size=32,
        steps=4,
        batch_size=8,
        log_every=1,
        settings=tiny_settings(network, **more),
        quiet=True,
    )
    return out


def add_verdict(run: Path, state: str = "still improving", **more: object) -> None:
    row = {"state": state, "kind": None, "reason": "The loss falls.", "cause": None, "tip": "Wait."}
    RunDirectory(run).append("eval", [{"step": 4, "protocol": "verdict", **row, **more}])
