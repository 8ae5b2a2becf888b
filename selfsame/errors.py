"""The error tree: every error says what is wrong, where, and what to try.

``str(error)`` is one sentence; ``error.tip`` is what to do about it. The command line prints both
and exits with ``error.exit_code``: 2 for wrong use (the user can fix the call), 1 for a run that
failed while it was going.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SelfsameError(Exception):
    """Base of every error that selfsame raises on purpose."""

    exit_code = 1
    told = False  # whether another process tells the user

    def __init__(self, message: str, *, tip: str | None = None) -> None:
        super().__init__(message)
        self.tip = tip


class UsageError(SelfsameError):
    """A name, key, value or combination that cannot work; nothing was built or written."""

    exit_code = 2


class DataError(SelfsameError):
    """Input data that is missing, empty or unreadable as a whole."""

    exit_code = 2


class Unreadable(SelfsameError):  # noqa: N818
    """One picture that cannot be decoded; the message is a short reason."""


class RunError(SelfsameError):
    """A run that failed while going: non-finite loss, a full disk, a broken checkpoint."""


class DivergedError(RunError):
    """A run whose loss, gradient or features are no longer finite."""


def nearest(name: str, legal: Iterable[str]) -> str | None:
    """Return the legal value closest to ``name``, or None where nothing is close."""
    by_lower = {value.lower(): value for value in legal}
    found = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[found[0]] if found else None


def unknown(what: str, name: str, legal: Iterable[str]) -> UsageError:
    """Build the error for an unknown name: the nearest legal value first, then all of them.

    >>> raise unknown("method", "simclear", ["simclr", "byol"])
    Traceback (most recent call last):
    selfsame.errors.UsageError: unknown method 'simclear'
    """
    values = sorted(legal)
    close = nearest(name, values)
    tip = f"did you mean '{close}'? " if close else ""
    return UsageError(f"unknown {what} '{name}'", tip=f"{tip}legal values: {', '.join(values)}")
