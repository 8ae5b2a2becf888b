"""What methods share that learn from a frozen teacher.

The loss is ``labels * CE + alpha T^2 KL + own``: cross-entropy with the labels, Hinton's soft
targets, and what the paper of the method adds. So HobbitLong/RepDistiller combines them too.

Legend: V views, B images, D width of the student, K classes; n = V * B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame.errors import UsageError
from selfsame.nn.classify import Linear
from selfsame.nn.precision import wide
from selfsame.nn.teacher import Teacher
from selfsame.optim import Optim
from selfsame.recipe import SMALL_OPTIM, BackboneConfig, MethodConfig, Recipe, Scale
from selfsame.types import Backbone, Features, Method, Output, Progress
from selfsame.views.spec import SMALL_IMAGE, View

Weight = Annotated[float, Field(ge=0)]


class TaughtConfig(MethodConfig):
    """Hyper-parameters of every student."""

    teacher: str = ""  # a run, an exported encoder, timm/NAME ..., as `selfsame.load` takes it
    teacher_weights: str = ""  # a hash of what it computes with; filled in
    labels: Weight | None = None  # of the cross-entropy with labels; None: 1, or 0 without labels
    alpha: Weight = 0.0  # of Hinton's soft targets
    temperature: Annotated[float, Field(gt=0)] = 4.0  # T of the soft targets
    classes: Annotated[int, Field(ge=0)] = 0  # that labels tell apart; 0: as the data has

    def for_data(self, images: int, classes: Sequence[str] | None) -> TaughtConfig:
        """With the weight of the labels, and the number of their classes."""
        count = len(classes or ())
        labels = self.labels
        if labels is None:
            labels = self.labels_weight() if count > 1 else 0.0
        update = {"labels": labels, "classes": self.classes or (count if labels else 0)}
        return self.model_copy(update=update)

    def labels_weight(self) -> float:
        """What the paper gives the cross-entropy with labels."""
        return 1.0


class Taught(Method):
    """A student, and a frozen teacher that sees the same views.

    A subclass says what it ``asks`` of the teacher, what the student says to be compared with it
    (`look`), and what it adds to the loss (`own_loss`).

    Args:
        config: the hyper-parameters.
        backbone: the student, which is kept; all else but its classifier is thrown away.
        teacher: whom it learns from.

    Raises:
        UsageError: the teacher does not say what the loss compares.
    """

    Config = TaughtConfig
    taught = True
    asks: ClassVar[frozenset[str]] = frozenset()
    mixes = False  # images with one another, so that no view comes again

    def __init__(self, config: TaughtConfig, backbone: Backbone, teacher: Teacher) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.teacher = teacher  # no module: its weights are no part of the state
        self.labelled = bool(config.labels)
        self.asked = self.wanted(config) | ({"logits"} if config.alpha else set())
        teacher.check(self.asked, len(backbone.norm.mean))
        classes = config.classes if self.labelled else 0
        if "logits" in self.asked:
            check_classes(classes, teacher)
            classes = teacher.classes
        self.classifier = Linear(backbone.dim, classes) if classes else None

    @classmethod
    def wanted(cls, config: TaughtConfig) -> frozenset[str]:
        """What it asks of a teacher besides what ``alpha`` does."""
        return cls.asks

    def draw(
        self, views: Mapping[str, Tensor], index: Tensor, *, seed: int, epoch: int
    ) -> Mapping[str, Tensor]:
        """``index``, int64 [B], the images' positions in the data."""
        return {"index": index}

    def embed(self, views: Mapping[str, Tensor], t: Progress) -> Mapping[str, Tensor]:
        """What student (``s_...``) and teacher (``t_...``) say of ``views["global"]``.

        Each [V, B, ...], as are ``label`` and ``index``.
        """
        x = views["global"]
        count = len(x)
        found = self.look(x.flatten(0, 1))
        if self.classifier is not None:
            found["logits"] = self.classifier(found["pooled"])
        rows = self.teacher.rows(views["set"], views["index"], count)
        said = self.teacher(x.flatten(0, 1), self.backbone.norm, self.asked, rows)
        both = {f"s_{k}": v for k, v in found.items()} | {f"t_{k}": v for k, v in said.items()}
        both = {name: v.reshape(count, -1, *v.shape[1:]) for name, v in both.items()}
        if self.labelled:
            both["label"] = views["label"].expand(count, -1)
        return {**both, "index": views["index"].expand(count, -1)}

    def look(self, x: Tensor) -> dict[str, Tensor]:
        """What the student says of images [n, C, S, S]: ``pooled``, [n, D], and what counts."""
        features: Features = self.backbone(x)
        return {"pooled": features.pooled}

    def loss(self, embedded: Mapping[str, Tensor], t: Progress) -> Output:
        """``labels * CE + alpha T^2 KL + own``, the mean over images and views."""
        config, e = self.config, {k: v.flatten(0, 1) for k, v in embedded.items()}
        own = self.own_loss(e, t)
        ours, others = self.balance(t)
        # terms of weight 0 are left out: what rests has no gradient, and not one of zero
        loss = ours * own.loss if ours else own.loss.new_zeros(())
        metrics = dict(own.metrics)
        if self.classifier is not None:
            s = wide(e["s_logits"])
            if "t_logits" in e:
                metrics["agreement"] = (s.argmax(1) == e["t_logits"].argmax(1)).float().mean()
            if config.alpha:
                soft = soft_targets(s, e["t_logits"], config.temperature)
                metrics["soft"] = soft
                if others:
                    loss = loss + others * config.alpha * soft
            if config.labels:
                hard = F.cross_entropy(s, e["label"])
                if others:
                    loss = loss + others * config.labels * hard
                metrics |= {"hard": hard, "accuracy": (s.argmax(1) == e["label"]).float().mean()}
        return Output(loss, {name: value.detach() for name, value in metrics.items()}, own.carry)

    def own_loss(self, e: Mapping[str, Tensor], t: Progress) -> Output:
        """What the paper adds, of what `embed` gave, each [V * B, ...]. Here nothing."""
        return Output(e["s_pooled"].new_zeros((), dtype=torch.float32), {}, {})

    def balance(self, t: Progress) -> tuple[float, float]:
        """What the paper's own term, and all others, count at a step."""
        return 1.0, 1.0

    def encoder(self) -> Backbone:
        """The student."""
        return self.backbone

    def encoder_head(self) -> Linear | None:
        """The student's classifier, where it learns classes."""
        return self.classifier


def pairs(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Maps of stages in pairs, the last with the last, first to last."""
    count = min(len(student), len(teacher))
    return list(zip(student[-count:], teacher[-count:], strict=True))


def stages_of(found: Mapping[str, Tensor], prefix: str) -> list[Tensor]:
    """The maps among named tensors: ``PREFIXstage0``, ``PREFIXstage1``, ..., in order."""
    count = sum(name.startswith(f"{prefix}stage") for name in found)
    return [found[f"{prefix}stage{i}"] for i in range(count)]


def student_stages(network: Backbone, x: Tensor) -> dict[str, Tensor]:
    """``pooled``, [n, D], and the maps of the student's stages by name."""
    maps, features = network.stages(x)
    return {"pooled": features.pooled} | {f"stage{i}": each for i, each in enumerate(maps)}


def as_small(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps [n, C, h, w] at the smaller of their sizes, by adaptive average pooling."""
    size = min(a.shape[-2], b.shape[-2]), min(a.shape[-1], b.shape[-1])
    one, two = (x if x.shape[-2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b))
    return one, two


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))``, the mean over images.

    Hinton, Vinyals, Dean, arXiv 1503.02531, section 2: T^2 keeps the gradient's size where T
    changes.

    Args:
        student: [n, K] logits, float32 or wider.
        teacher: [n, K].
        temperature: T.
    """
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def check_classes(classes: int, teacher: Teacher) -> None:
    """Refuse labels that do not count the classes of the teacher; 0 for no labels.

    Raises:
        UsageError: with a tip.
    """
    if classes and classes != teacher.classes:
        raise UsageError(
            f"the data has {classes} classes, and {teacher.name} tells {teacher.classes} apart",
            tip="--set method.labels=0 learns from the teacher alone",
        )


def check_names(ours: Sequence[str] | None, teachers: Sequence[str] | None) -> None:
    """Refuse labels that mean something else than the teacher's classes of the same numbers.

    Names that are only numbers from 0 say nothing; a count that differs is `check_classes`'s.

    Raises:
        UsageError: with the first class that is called otherwise.
    """
    if ours is None or teachers is None or len(ours) != len(teachers):
        return
    numbers = [str(k) for k in range(len(ours))]
    if numbers in (list(ours), list(teachers)):
        return
    for mine, other in zip(ours, teachers, strict=True):
        if mine != other:
            raise UsageError(
                f"the data's classes are not the teacher's: '{mine}' would be its '{other}'",
                tip="--set method.labels=0 learns from the teacher alone",
            )


def student_recipe(
    method: MethodConfig,
    scale: Scale,
    size: int,
    *,
    source: str,
    deviations: tuple[str, ...] = (),
    paper: Sequence[str] = (),
    view: View | None = None,
) -> Recipe:
    """The recipe of a student: ResNet-18 from a larger teacher, as RepDistiller and mdistiller.

    Args:
        method: its hyper-parameters.
        scale: "paper" is ImageNet with a ResNet-34 as teacher, "small" tens of thousands of images.
        size: side of the views, pixels.
        source: paper, table, file.
        deviations: from it, at either scale.
        paper: deviations of the paper's recipe alone.
        view: what student and teacher see; by default a crop and a flip.
    """
    view = view or View(size=size, jitter=0.0, grayscale=0.0, blur=0.0, interpolation="bilinear")
    if scale == "paper":
        return Recipe(
            source=source,
            deviations=(*deviations, *paper),
            batch_size=256,
            epochs=100,
            canvas=None if size <= SMALL_IMAGE else 512,
            method=method,
            backbone=BackboneConfig(name="resnet18", options={"zero_init": False}),
            optim=Optim(
                name="sgd",
                lr=0.1,
                weight_decay=1e-4,
                exclude_1d=False,
                warmup=0,
                schedule="step",
                milestones=(0.3, 0.6, 0.9),
            ),
            views=(view,),
        )
    return Recipe(
        source=f"{source}, shortened",
        deviations=(
            *deviations,
            "AdamW, batch 64 and crops of 40 % and more: little data and time",
        ),
        batch_size=64,
        epochs=100,
        method=method,
        backbone=BackboneConfig(name="resnet18"),
        optim=SMALL_OPTIM,
        views=(view.model_copy(update={"scale": (0.4, 1.0)}),),
    )
