"""Watches a run: measures label-free health at intervals, keeps the rows, and gives the verdict."""

from __future__ import annotations

import math
from typing import Any

from selfsame.data import Images
from selfsame.encoder import Encoder
from selfsame.evals.probe import Probe
from selfsame.evals.verdict import Verdict, judge
from selfsame.recipe import Recipe
from selfsame.run import RunDirectory


class Watch:
    """The health of one run.

    Args:
        run: whose ``eval.jsonl`` gets the rows.
        images: the training set.
        recipe: what the run learns with.
        total: its optimiser steps.
        every: steps between the moments at which it may be measured.
    """

    def __init__(
        self, run: RunDirectory, images: Images, recipe: Recipe, total: int, every: int
    ) -> None:
        self.run = run
        self.images = images
        self.recipe = recipe
        self.total = total
        self.every = every

    def due(self, step: int) -> bool:
        """Whether to measure after ``step`` steps, besides before the first and after the last."""
        rows = self.rows()
        if not rows:
            return False
        every = Probe.again(self.images, self.recipe, rows[0]).every
        return 0 < step < self.total and step % (self.every * math.ceil(every / self.every)) == 0

    def measure(self, encoder: Encoder, step: int) -> dict[str, float]:
        """The numbers after ``step`` steps; measured and written, unless that was done before.

        The first row decides how many images a run is measured on; so a resumed run goes on alike.

        Raises:
            DivergedError: the features are not finite.
        """
        rows = self.rows()
        for row in rows:
            if row["step"] == step:
                return {key: row[key] for key in row if key not in ("step", "protocol")}
        if rows:
            probe = Probe.again(self.images, self.recipe, rows[0])
        else:
            probe = Probe.affordable(self.images, self.recipe, encoder, self.total)
        found = probe.measure(encoder)
        self.run.append("eval", [{"step": step, "protocol": "health", **found}])
        return found

    def rows(self) -> list[dict[str, Any]]:
        """All that was measured so far."""
        return [row for row in self.run.rows("eval") if row.get("protocol") == "health"]

    def verdict(self, step: int, diverged: str | None = None) -> Verdict:
        """What all rows until ``step`` amount to; written, too.

        Args:
            step: optimiser steps done.
            diverged: why the run could not go on, if it could not.
        """
        found = judge(self.rows(), self.run.rows("metrics"), self.recipe, diverged=diverged)
        row = {"step": step, "protocol": "verdict", **found._asdict()}
        if self.run.rows("eval")[-1:] != [row]:  # a finished run may be resumed, and says it again
            self.run.append("eval", [row])
        return found
