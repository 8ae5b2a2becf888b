"""A report of runs as one HTML file that loads nothing, and the same in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from selfsame.errors import UsageError
from selfsame.files import check_output, output
from selfsame.report.compare import compare
from selfsame.report.look import look, scale_for
from selfsame.report.page import page
from selfsame.report.record import read

__all__ = ["compare", "write_report"]

IMAGES = 1000  # that a report looks at
MOST = 10_000  # all pairs of them are compared


def write_report(
    runs: Sequence[str | Path],
    data: Any = None,
    *,
    out: str | Path | None = None,
    images: int = IMAGES,
    device: str | None = None,
    backbone: nn.Module | None = None,
) -> Path:
    """Write a report of one run, or of several side by side.

    Args:
        runs: run directories, finished or not.
        data: images to look at through the encoders: what ``pretrain`` takes; with labels, classes
            are judged, too. By default what each run was trained on, where that still exists.
            Without images the report says so and shows the rest.
        out: the file; by default ``report.html`` in the run, or here for several runs.
        images: how many images to look at, at most; 0 for none.
        device: where to compute.
        backbone: the network, where a run trained a module of the user's.

    Returns:
        The path of the file.

    Raises:
        UsageError: a path that is no run, or a file that cannot be written.
        RunError: a damaged run directory.
    """
    if not 0 <= images <= MOST:
        raise UsageError(
            f"images is {images}", tip=f"0 leaves the images out; {MOST:,} is the most"
        )
    records = read(runs)
    if out is None:
        out = records[0].path / "report.html" if len(records) == 1 else Path("report.html")
    out = Path(out)
    check_output(out)
    scale = scale_for(len(records), images)
    looks = [
        look(record, data, scale, device=device, backbone=backbone) if images else None
        for record in records
    ]
    with output(out) as temporary:
        temporary.write_text(page(records, looks), encoding="utf-8")
    return out
