"""A frozen network that others learn from: what it says of a student's views."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.errors import UsageError
from selfsame.memo import Memo, rounded
from selfsame.nn.classify import KNN, Classifier
from selfsame.types import Backbone, Norm

WORDS = ("pooled", "logits", "tokens", "stages")  # what a teacher can be asked for


class Teacher:
    """A network with frozen weights, which are no part of a run's memory, and its way in.

    It sees the student's views: brought back to pixels and normalised as it was trained, and
    resized where its images had another size. It is in evaluation mode always. What it says is
    rounded to float16, whether or not it is kept on the disk (`selfsame.memo`), so that keeping
    changes nothing.

    Args:
        backbone: the network.
        image_size: side of the images that it was made for, pixels.
        student_size: side of the student's largest view, which becomes the teacher's own size;
            others keep their proportion to it.
        norm: what its input is normalised with.
        head: its classifier, if it has one.
        name: how messages call it.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        image_size: int,
        student_size: int | None = None,
        norm: Norm | None = None,
        head: Classifier | None = None,
        name: str = "the teacher",
    ) -> None:
        self.backbone = backbone.eval().requires_grad_(False)
        self.head = None if head is None else head.eval().requires_grad_(False)
        self.image_size, self.student_size = image_size, student_size or image_size
        self.norm, self.name = norm or backbone.norm, name
        self.memo: Memo | None = None
        self.images = 0  # of the data set that the memo is for

    @property
    def dim(self) -> int:
        """Width of its pooled features."""
        return self.backbone.dim

    @property
    def classes(self) -> int:
        """Number of classes that it tells apart.

        Raises:
            UsageError: it has no classifier.
        """
        if self.head is None:
            raise UsageError(
                f"{self.name} has no classifier, and this loss is about its classes",
                tip="take a run of `pretrain supervised`, a network that `selfsame classify` gave "
                "one, or a loss of features: --loss distill, seed, rkd, at",
            )
        return self.head.classes if isinstance(self.head, KNN) else self.head.out_features

    def to(self, device: torch.device) -> Teacher:
        """Move it there."""
        for part in (self.backbone, self.head):
            if part is not None:
                part.to(device)
        return self

    def check(self, asks: Iterable[str], channels: int) -> None:
        """Refuse a teacher that cannot say what a loss asks for, or see these images.

        Raises:
            UsageError: with a tip.
        """
        for word in asks:
            if word == "logits":
                _ = self.classes
            if word in ("tokens", "stages") and word not in self.backbone.can:
                raise UsageError(
                    f"{self.name} gives no {_SAYS[word]}, which this loss compares",
                    tip="--loss distill --set method.tokens=0, kd and rkd take any network",
                )
        if len(self.norm.mean) != channels:
            raise UsageError(
                f"{self.name} sees images of {len(self.norm.mean)} channels, the data has "
                f"{channels}",
                tip="give images of as many channels (--set channels=3), or another teacher",
            )

    def shapes(self, asks: Iterable[str], channels: int) -> dict[str, tuple[int, ...]]:
        """Shape of what it says of one view of the student's largest size, by name."""
        side, device = self.student_size, next(self.backbone.parameters()).device
        found = self(torch.zeros(1, channels, side, side, device=device), self.norm, asks)
        return {name: tuple(value.shape[1:]) for name, value in found.items()}

    def see(self, x: Tensor, norm: Norm) -> Tensor:
        """A student's views, float [n, C, s, s] normalised with ``norm``, as this network's own."""
        if self.norm != norm:
            mean, std, to_mean, to_std = (
                torch.tensor(v, dtype=x.dtype, device=x.device)[:, None, None]
                for v in (*norm, *self.norm)
            )
            x = (x * std + (mean - to_mean)) / to_std
        side = round(x.shape[-1] * self.image_size / self.student_size)
        if side != x.shape[-1]:
            # antialiased where it shrinks, as the views were
            x = F.interpolate(
                x, (side, side), mode="bilinear", antialias=side < x.shape[-1], align_corners=False
            )
        return x.contiguous(memory_format=torch.channels_last)

    def rows(self, sets: Tensor, index: Tensor, views: int) -> Tensor | None:
        """The rows of the memo for views of images, int64 [V * B], view by view; None without one.

        Args:
            sets: int64 [B], of which set of views these are.
            index: int64 [B], the images' positions in the data.
            views: V, of each image.
        """
        if self.memo is None:
            return None
        view = torch.arange(views, device=sets.device)[:, None]
        return ((sets * views + view) * self.images + index).flatten()

    @torch.no_grad()
    def __call__(
        self, x: Tensor, norm: Norm, asks: Iterable[str], rows: Tensor | None = None
    ) -> dict[str, Tensor]:
        """What it says of views, float32 (float64 where ``x`` is).

        Args:
            x: [n, C, s, s], as `see` takes them.
            norm: Of ``x``.
            asks: Of `WORDS`.
            rows: int64 [n], as `rows` gives them; None for views that will not be seen again.

        Returns:
            ``pooled`` [n, D], ``logits`` [n, K], ``tokens`` [n, N, D], and ``stage0``, ``stage1``
            ... [n, C, h, w]: of them what is asked for.
        """

        def make() -> dict[str, Tensor]:
            return self.say(self.see(x, norm), asks)

        if self.memo is not None and rows is not None:
            found = self.memo.get(rows.cpu(), make)
            return {name: value.to(x.device, x.dtype) for name, value in found.items()}
        return {name: rounded(value) for name, value in make().items()}

    def say(self, x: Tensor, asks: Iterable[str]) -> dict[str, Tensor]:
        """The same of images that are as it wants them."""
        asks = set(asks)
        for part in (self.backbone, self.head):
            if part is not None:
                part.to(x.dtype)
        if "stages" in asks:
            stages, features = self.backbone.stages(x)
        else:
            stages, features = [], self.backbone(x)
        found = {f"stage{i}": stage for i, stage in enumerate(stages)}
        if "pooled" in asks:
            found["pooled"] = features.pooled
        if "tokens" in asks:
            assert features.tokens is not None
            found["tokens"] = features.tokens
        if "logits" in asks:
            assert self.head is not None
            with torch.autocast(x.device.type, enabled=False):
                found["logits"] = self.head(features.pooled.to(x.dtype))
        return found


_SAYS = {"tokens": "tokens", "stages": "maps of its stages"}
