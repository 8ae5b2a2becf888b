"""The one line of progress, on terminals and off them."""

from __future__ import annotations

import io
import sys

import pytest

from selfsame.console import Console, fitted

ROW = {"epoch": 12.3, "loss": 4.1234, "lr": 1.2e-3, "images_per_second": 1234.0, "waiting": 0.07}


class Terminal(io.StringIO):
    """Standard error that says that it is one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_progress_stays_on_one_line(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    console = Console()
    for step in (10_000, 20_000, 30_000):
        console.progress(step, 100_000, ROW)
    lines = screen.getvalue().split("\r\x1b[2K")[1:]
    assert len(lines) == 3
    assert max(map(len, lines)) < columns
    assert all(line.startswith("step ") for line in lines)
    assert lines[-1].endswith("left")  # what people look for goes last


def test_fields_are_left_out_whole() -> None:
    line = "step 1/9  loss 4.1  lr 1e-3  left"
    assert fitted(line, 33) == line
    assert fitted(line, 32) == "step 1/9  loss 4.1  left"
    assert fitted(line, 23) == "step 1/9  left"
    assert fitted(line, 5) == "step "
