"""The few types that every part shares. Read this first.

Legend: B images on this rank, V views of one name, C channels, N tokens, D width, S side in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

if TYPE_CHECKING:
    from selfsame.nn.classify import Classifier
    from selfsame.recipe import MethodConfig


class Batch(NamedTuple):
    """What the loader gives for one step: decoded pixels and identities, nothing random."""

    images: Tensor  # uint8 [B, C, H, W], channels last: each in the top left of its canvas
    sizes: Tensor  # int32 [B, 2]: valid height and width inside the canvas, in pixels
    index: Tensor  # type: ignore[assignment]  # int64 [B]: position in the data set; keys randomness
    label: Tensor | None = None  # int64 [B]: for evaluators and supervised methods, no SSL method


class Features(NamedTuple):
    """What a backbone returns."""

    pooled: Tensor  # [B, D]
    tokens: Tensor | None  # [B, N, D], the grid row by row; None where the network has no grid
    grid: tuple[int, int]  # rows, columns of the token grid; (0, 0) where tokens is None


class Output(NamedTuple):
    """What one forward pass of a method returns."""

    loss: Tensor  # []: mean over this rank's images; gradients are averaged over ranks
    metrics: Mapping[str, Tensor]  # detached scalars, the same keys at every step
    carry: Mapping[str, Tensor]  # what ``after_step`` needs; ``forward`` mutates nothing


class Progress(NamedTuple):
    """Where a run stands. Every schedule is a pure function of it."""

    step: int  # optimiser steps done, from 0
    total: int  # optimiser steps of the whole run
    images: int  # images seen, over all ranks
    epoch: float  # passes over the data set, as a fraction

    @property
    def per_epoch(self) -> float:
        """Optimiser steps in a pass over the data; at the first step, which cannot tell, 1."""
        return self.step / self.epoch if self.step else 1.0

    @property
    def fraction(self) -> float:
        """Share of the run that is done, in [0, 1)."""
        return self.step / self.total


class Norm(NamedTuple):
    """Per-channel mean and standard deviation of pixels scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class BadImage(NamedTuple):
    """An image that could not be read, and why."""

    index: int  # type: ignore[assignment]
    name: str  # path or id, as ``Source.name`` gives it
    reason: str


@runtime_checkable
class Source(Protocol):
    """Where images come from. Cheap to build; safe to read from several threads.

    ``labels`` (int64 [N]) and ``classes`` (names, indexed by label) are None for unlabelled data.
    """

    labels: np.ndarray | None
    classes: Sequence[str] | None

    def __len__(self) -> int: ...

    def name(self, i: int) -> str:
        """Path or id of image ``i``, stable between runs."""

    def read(self, i: int) -> bytes | np.ndarray:
        """An encoded image file, or pixels [H, W] or [H, W, C] of any type of number."""

    def fingerprint(self) -> str:
        """A short hash of what the data set is (names, sizes and contents, some or all)."""


class Rate(NamedTuple):
    """The learning rate of a parameter, beside the one that the schedule gives."""

    scale: float = 1.0
    fixed: bool = False  # stays at the peak for the whole run


class Backbone(nn.Module):
    """A feature extractor that says what it is and what it can do.

    ``dim`` is D, ``stride`` the pixels between tokens, ``norm`` what its input is normalised with.
    ``can`` holds any of

    - "tokens": Features.tokens is filled; "maps": they are those of a convolutional map;
    - "keep": ``backbone(x, keep=index)`` computes only the tokens that ``index``, int64 [B, n],
      names, and returns those n; with ``index`` [B * k, n], k such sets for each image, image by
      image;
    - "replace": ``backbone(x, replace=(mask, token))`` puts ``token``, [D], in the place of the
      patch embeddings where ``mask``, bool [B, N], is true, before positions are added;
    - "ffn": ``backbone.feed_forwards(x, last)`` gives what the last blocks' perceptrons return;
    - "layers": ``backbone.layers(x, last)`` gives the features after each of the last blocks;
    - "stages": ``backbone.stages(x)`` gives the maps between its stages.
    """

    dim: int
    stride: int | None
    norm: Norm
    can: frozenset[str]

    def forward(self, x: Tensor) -> Features:
        """Features of normalised float images [B, C, S, S]."""
        raise NotImplementedError

    def layers(self, x: Tensor, last: int) -> Sequence[Features]:
        """Features after each of the ``last`` blocks, first to last, where ``can`` has "layers"."""
        raise NotImplementedError

    def stages(self, x: Tensor) -> tuple[Sequence[Tensor], Features]:
        """Maps [B, C, h, w] at the end of each stage, first to last, and what `forward` gives.

        Where ``can`` has "stages". A plain transformer, which has one resolution, gives its tokens
        after each quarter of its blocks.
        """
        found = self.layers(x, len(self.blocks()))
        ends = sorted({len(found) * quarter // 4 for quarter in (1, 2, 3, 4)} - {0})
        maps = []
        for end in ends:
            tokens = found[end - 1].tokens
            assert tokens is not None
            maps.append(tokens.transpose(1, 2).reshape(len(tokens), -1, *found[-1].grid))
        return maps, found[-1]

    def blocks(self) -> Sequence[nn.Module]:
        """Repeated units, first to last: for compilation, sharding and layer-wise decay."""
        raise NotImplementedError


class Method(nn.Module):
    """A learning system: a module whose state dict is its whole memory.

    ``Config`` holds its hyper-parameters, with the paper's values as defaults; ``needs`` is the
    subset of ``Backbone.can`` that it requires; ``batch_coupled`` says that the loss looks across
    images (then it has ``embed`` and ``loss``), ``labelled`` that ``views["label"]`` must hold the
    labels, int64 [B], ``shardable`` that all its networks are called in ``forward`` and by
    ``__call__``, as FSDP asks. It is built as ``Method(config, backbone)``; one that is ``taught``
    by a network that others trained, which its config names as ``teacher``, as ``Method(config,
    backbone, teacher)``.
    """

    Config: ClassVar[type[MethodConfig]]
    needs: ClassVar[frozenset[str]] = frozenset()
    batch_coupled: ClassVar[bool] = False
    labelled: bool = False
    taught: ClassVar[bool] = False
    shardable: ClassVar[bool] = False

    def draw(
        self, views: Mapping[str, Tensor], index: Tensor, *, seed: int, epoch: int
    ) -> Mapping[str, Tensor]:
        """What else a step needs for each image, keyed like its views: masks, for example.

        Joins ``views`` under its own names. A pure function of the seed, the epoch and ``index``,
        int64 [B], the images' positions in the data set; of ``views`` only shapes are read.
        """
        return {}

    def before_epoch(
        self, t: Progress, images: Iterator[tuple[Tensor, Tensor]]
    ) -> Iterable[nn.Parameter]:
        """Look at the whole data set before the first step of an epoch.

        ``images`` gives (index int64 [B], normalised images without augmentation [B, C, S, S]),
        each image once, and costs nothing where it is not read. Returns the parameters that were
        drawn anew, whose optimiser state is then forgotten.
        """
        return ()

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """Loss of one step. ``views[name]`` is float32 [V, B, C, S, S]. Changes no state.

        A method whose loss looks across images gives its two halves, `embed` and `loss`, in the
        place of this: a batch that does not fit is embedded in parts.
        """
        return self.loss(self.embed(views, t), t)

    def embed(self, views: Mapping[str, Tensor], t: Progress) -> Mapping[str, Tensor]:
        """What the loss looks at, each [V, B, ...]: dimension 1 joins the parts of a batch.

        What gets no gradient (a teacher's outputs, masks) is among it, detached.
        """
        raise NotImplementedError

    def loss(self, embedded: Mapping[str, Tensor], t: Progress) -> Output:
        """Loss of what `embed` gave for all images of this rank. Draws nothing at random."""
        raise NotImplementedError

    def frozen(self, t: Progress) -> Iterable[nn.Parameter]:
        """Parameters that rest at this step: their gradients are dropped, nothing decays them."""
        return ()

    def rate(self, name: str) -> Rate:
        """The learning rate of the parameter that ``named_parameters`` calls ``name``."""
        return Rate()

    def norm_groups(self) -> int:
        """Equal parts of the step's batch that BatchNorm normalises each on its own."""
        return 1

    def after_step(self, t: Progress, carry: Sequence[Mapping[str, Tensor]]) -> None:
        """Update teachers, queues, centres: once an optimiser step, one carry a micro-batch."""

    def encoder(self) -> Backbone:
        """The backbone that is evaluated and exported."""
        raise NotImplementedError

    def encoder_head(self) -> Classifier | None:
        """The classifier of the encoder's pooled features, where the method trains one."""
        return None
