"""Signals that ask a run to stop: it saves first, and the same command continues it later."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Ctrl-C; kill, batch systems and the cloud; `sbatch --signal=USR1@60`, a minute before the end
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
]

TWICE = 1.0  # seconds within which the same signal is the first again


class _Left(KeyboardInterrupt):
    """Raised where a signal comes inside ``Interrupt.leaving``."""


class Interrupt:
    """Inside the block, the first signal of `SIGNALS` asks the loop to stop after its step.

    The same signal once more, a second later or more (a terminal and torchrun both send theirs),
    ends the process at once, as it would outside the block; what is on the disk is complete at any
    moment. Another one changes nothing: batch systems send SIGUSR1,
    then SIGTERM. ``signal`` is the one that came, None while there was none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0
        self._leaving = False
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self.ask)
        return self

    def __exit__(self, *_: object) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler or signal.SIG_DFL)  # None: not set from Python

    @contextmanager
    def leaving(self) -> Iterator[None]:
        """A block that is left at once when a signal comes: what can be done again later."""
        try:
            self._leaving = True
            try:
                yield
            finally:
                self._leaving = False
        except _Left:
            pass

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Ask to stop, as the signal ``number`` does."""
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
            if self._leaving:
                raise _Left
        elif number == self.signal and time.monotonic() - self._since > TWICE:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
