"""Runs as processes of their own, for what happens to a process from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from helpers import tiny_settings

STEPS = 40


def arguments(photos: Path, out: Path, *more: str, steps: int = STEPS) -> list[str]:
    """What follows ``python -m selfsame`` for a tiny run, which logs every step."""
    settings = [word for s in tiny_settings() for word in ("--set", s)]
    return [
        *("pretrain", "simclr", str(photos), "--out", str(out), "--steps", str(steps)),
        *("--batch-size", "8", "--recipe", "small", "--device", "cpu", "--log-every", "1"),
        *("--save-every", "4", *settings, *more),
    ]


def command(photos: Path, out: Path, *more: str, steps: int = STEPS) -> list[str]:
    """The command of a tiny run."""
    return [sys.executable, "-m", "selfsame", *arguments(photos, out, *more, steps=steps)]


def rows(run: Path, name: str = "metrics") -> list[dict[str, Any]]:
    """The whole rows of ``NAME.jsonl``, without what depends on the clock."""
    file = run / f"{name}.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [
        {k: v for k, v in row.items() if k not in ("images_per_second", "waiting")} for row in found
    ]


def start_and_wait(command: list[str], run: Path, step: int) -> subprocess.Popen[str]:
    """Start a run and return once it has logged ``step``."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        logged = rows(run)
        if logged and logged[-1]["step"] >= step:
            return process
        time.sleep(0.002)
    if process.poll() is None:
        process.kill()
    raise AssertionError(f"the run never reached step {step}: {process.communicate()[1]}")
