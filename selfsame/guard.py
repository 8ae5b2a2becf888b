"""What happens where the loss or the gradient of a step is not finite.

The step is left out: weights, optimiser, teachers, queues and running statistics stay as they were,
and the run goes on with the next batch. That is a function of the state and the step like all else,
so a resumed run leaves out the same steps. ``nonfinite.jsonl`` lists them with their images; from
it a resumed run knows how many there were. Where there are too many, the run ends.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from selfsame import checkpoint, dist
from selfsame.errors import DivergedError
from selfsame.run import RunDirectory
from selfsame.types import Source

IN_A_ROW = 10  # steps left out, after which a run ends: it will not recover by itself
SHARE = 0.01  # of all steps of a run, likewise; in short runs, twice IN_A_ROW


class Limits(NamedTuple):
    """How many steps of a run may be left out before it ends."""

    row: int
    total: int

    @classmethod
    def of(cls, steps: int) -> Limits:
        """Those of a run of so many steps: one in which nothing is learnt does not end well."""
        return cls(min(IN_A_ROW, steps), max(2 * IN_A_ROW, int(SHARE * steps)))


class Guard:
    """Undoes and records steps that are not finite.

    Args:
        method: what is trained.
        run: where to record.
        source: names the images.
        start: steps done.
        steps: of the whole run.
    """

    def __init__(
        self, method: nn.Module, run: RunDirectory, source: Source, start: int, steps: int
    ) -> None:
        self.run = run
        self.source = source
        self.limits = Limits.of(steps)
        done = [int(row["step"]) for row in run.rows("nonfinite") if row["step"] <= start]
        self.total = len(done)
        self.row = 0
        while start - self.row in done:
            self.row += 1
        # all that a forward pass changes
        self.statistics: list[Tensor] = [
            buffer
            for module in method.modules()
            if isinstance(module, _NormBase)
            for buffer in module.buffers(recurse=False)
        ]
        self.before: list[Tensor] = []

    def remember(self) -> None:
        """Keep the running statistics as they are before the step."""
        self.before = [buffer.clone() for buffer in self.statistics]

    def passed(self) -> None:
        """Note a step that was finite."""
        self.row = 0

    def skip(self, step: int, index: Tensor, loss: Tensor, gradient: Tensor, lr: float) -> str:
        """Undo and record a step; what to tell.

        Args:
            step: steps done, this one included.
            index: int64 [B], positions of this rank's images in the data.
            loss: of the step.
            gradient: its norm.
            lr: the learning rate, for the tip.

        Raises:
            DivergedError: too many steps were left out.
        """
        with torch.no_grad():
            for buffer, value in zip(self.statistics, self.before, strict=True):
                buffer.copy_(value)
        self.row += 1
        self.total += 1
        images = dist.gather(index).tolist()
        values = {"loss": f"{loss.item():.4g}", "grad_norm": f"{gradient.item():.4g}"}
        names = [self.source.name(i) for i in images]
        self.run.append("nonfinite", [{"step": step, **values, "index": images, "name": names}])
        found = f"the loss is {values['loss']} and the gradient's norm {values['grad_norm']}"
        if self.row < self.limits.row and self.total < self.limits.total:
            return (
                f"step {step:,} is left out: {found} ({self.row} in a row, {self.total} in all; "
                f"the run ends at {self.limits.row} or {self.limits.total})"
            )
        last = checkpoint.latest(self.run.checkpoints)
        kept = f"; the checkpoint of step {checkpoint.step_of(last)} is kept" if last else ""
        count = (
            f"{self.row} steps in a row" if self.row >= self.limits.row else f"{self.total} steps"
        )
        raise dist.once(
            DivergedError(
                f"at step {step} {found}, and {count} were not finite; their images are listed in "
                f"{self.run.path / 'nonfinite.jsonl'}{kept}",
                tip=f"lower the learning rate (now {lr:.3g}) with --set optim.lr=..., bound the "
                "gradient with --set optim.clip_norm=1.0, or use --precision fp32",
            )
        )
