"""What the tests of all kinds of input share."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from conftest import encoded

from selfsame.data import decode, open_source
from selfsame.errors import DataError, SelfsameError, UsageError
from selfsame.types import Source


def numbers(source: Source) -> list[int]:
    """Which pictures a source holds: the red of each, as the fixture numbers them."""
    return [int(decode(source.read(i), canvas=32)[0, 0, 0]) for i in range(len(source))]


def names(source: Source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def labels(source: Source) -> list[str]:
    assert source.labels is not None
    assert source.classes is not None
    return [source.classes[k] for k in source.labels]


def png(i: int) -> bytes:
    """Picture ``i`` as a file."""
    out = BytesIO()
    encoded(i).save(out, "png")
    return out.getvalue()


def noted(spec: Any) -> tuple[Source, list[str]]:
    notes: list[str] = []
    return open_source(spec, notes), notes


def refused(spec: Any, opener: Callable[[Any], Any] = open_source) -> SelfsameError:
    with pytest.raises((DataError, UsageError)) as caught:
        opener(spec)
    assert caught.value.tip
    return caught.value
