"""What a run says: to the terminal, and to its log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any

from selfsame import dist
from selfsame.run import RunDirectory


class Console:
    """Prints lines and keeps them in the run's log; progress is one line, redrawn on a terminal.

    Where standard error is no terminal, a progress line is printed every tenth of the run.
    """

    def __init__(self, run: RunDirectory | None = None, *, quiet: bool = False) -> None:
        self.run = run
        self.quiet = quiet or not dist.is_main()
        self._began: tuple[float, int] | None = None  # time and step of the first progress line
        self._tenth = -1
        self._open = False  # a progress line waits for its end

    def say(self, *lines: str) -> None:
        """Print lines and append them to the log."""
        self._close()
        if not self.quiet:
            print("\n".join(lines), file=sys.stderr, flush=True)
        if self.run is not None:
            self.run.append("log", lines)

    def progress(self, done: int, total: int, row: Mapping[str, Any]) -> None:
        """Show where the run stands. ``row`` is a line of ``metrics.jsonl``."""
        now = time.monotonic()
        if self._began is None:
            self._began = (now, done)
        self._show(
            f"step {done:,}/{total:,}  epoch {row['epoch']:.1f}  loss {row['loss']:.4f}  "
            f"lr {row['lr']:.2e}  {row['images_per_second']:,.0f} images/s  "
            f"waiting for data {row['waiting']:.0%}  {self._left(now, done, total)}",
            done,
            total,
        )

    def count(self, done: int, total: int, what: str) -> None:
        """Show how many of the things that ``what`` names are done, from the second call on."""
        now = time.monotonic()
        if self._began is None:
            self._began = (now, done)
            return
        rate = (done - self._began[1]) / (now - self._began[0])
        left = self._left(now, done, total)
        self._show(f"{done:,}/{total:,} {what}  {rate:,.0f} {what}/s  {left}", done, total)

    def _show(self, line: str, done: int, total: int) -> None:
        if sys.stderr.isatty() and not self.quiet:
            line = fitted(line, shutil.get_terminal_size().columns - 1)
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)
            self._open = True
            if done == total:
                self._close()
        elif done * 10 // total > self._tenth:
            self._tenth = done * 10 // total
            self.say(line.rstrip())

    def _left(self, now: float, done: int, total: int) -> str:
        """Time left, from the speed since the first progress line."""
        assert self._began is not None
        began, first = self._began
        if done == first:
            return ""
        seconds = int((now - began) / (done - first) * (total - done))
        hours, minutes = divmod(seconds // 60, 60)
        return "done" if done == total else f"{hours}:{minutes:02d}:{seconds % 60:02d} left"

    def _close(self) -> None:
        if self._open:
            print(file=sys.stderr, flush=True)
            self._open = False


def fitted(line: str, width: int) -> str:
    """A line of fields, two spaces apart, within a width: what would break could not be redrawn.

    The first and the last field are the last to go.
    """
    fields = line.split("  ")
    while len(fields) > 2 and len("  ".join(fields)) > width:
        del fields[-2]
    return "  ".join(fields)[: max(width, 0)]
