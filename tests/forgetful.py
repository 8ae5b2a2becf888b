"""A method with a memory outside its state dict: a run that is stopped learns something else."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from selfsame.methods.simclr import SimCLR
from selfsame.types import Backbone, Output, Progress


class Forgetful(SimCLR):
    """SimCLR whose loss grows with every call, by a counter that no checkpoint holds."""

    def __init__(self, config: SimCLR.Config, backbone: Backbone) -> None:  # type: ignore[name-defined]
        super().__init__(config, backbone)
        self.calls = 0

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """Loss of one step."""
        self.calls += 1
        out = super().forward(views, t)
        return out._replace(loss=out.loss * self.calls)
