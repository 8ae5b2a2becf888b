"""DeiT's claim: a token for the teacher's decisions becomes another one than the class token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, RESNET, VIT, Learnt, classified, images, learn, small
from selfsame.methods.supervised import Settings, Supervised
from selfsame.nn.classify import Linear
from selfsame.nn.precision import wide
from selfsame.types import Backbone, Output, Progress

STUDENT = (*VIT, "backbone.options.distilled=true", "batch_size=64")


class TwoClassTokens(Supervised):
    """The same network, both of whose tokens learn from the labels, each with its classifier."""

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.classifier = Linear(backbone.dim // 2, config.classes)
        self.second = Linear(backbone.dim // 2, config.classes)

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """As the method, but for what the class says."""
        first, second = self.backbone(views["global"].flatten(0, 1)).pooled.chunk(2, dim=1)
        logits = torch.stack([wide(self.classifier(first)), wide(self.second(second))])
        loss = F.cross_entropy(logits.flatten(0, 1), views["label"].repeat(2))
        cosine = F.cosine_similarity(wide(first), wide(second)).mean()
        return Output(loss, {"cosine": cosine.detach()}, {})

    def encoder_head(self) -> Linear:
        """The mean of both classifiers, as DeiT's."""
        parts = self.classifier, self.second
        joint = Linear(2 * self.second.in_features, self.second.out_features)
        joint = joint.to(self.second.weight)
        with torch.no_grad():
            joint.weight.copy_(torch.cat([part.weight for part in parts], dim=1) / 2)
            joint.bias.copy_(torch.stack([part.bias for part in parts]).mean(0))
        return joint


def distilled(setting: Setting) -> Found:
    """The class token learns from labels, the other from the decisions of a ResNet."""
    folder = setting.folder.with_name(f"{setting.folder.name}-teacher")
    recipe = small("supervised", (*RESNET, "method.classes=10", "batch_size=64"))
    teacher = learn(recipe, setting._replace(folder=folder)).result
    student = learn(small("deit", STUDENT, f"method.teacher={teacher.run}"), setting)
    numbers = {
        "teacher": classified(teacher.encoder, images().test),
        "token": student.late("agreement"),
        "class": student.late("class_agreement"),
    }
    return judged(student, numbers)


def duplicated(setting: Setting) -> Found:
    """Both tokens learn from labels, from the same views."""
    recipe = small(f"{__name__}:TwoClassTokens", (*STUDENT, "method.classes=10"), like="supervised")
    recipe = recipe.model_copy(update={"views": small("deit", STUDENT).views})
    return judged(learn(recipe, setting), {})


@torch.inference_mode()
def judged(learnt: Learnt, numbers: Mapping[str, float]) -> Found:
    """The cosine of both tokens after the first and the last block, on test images; accuracy."""
    encoder = learnt.result.encoder
    with encoder.open(images().test) as data:
        batch = data.batch(torch.arange(512))
    depth = len(encoder.backbone.blocks())
    found = encoder.backbone.layers(encoder.view(batch.images, batch.sizes), depth)
    tokens = [each.pooled.chunk(2, dim=1) for each in found]
    cosines = [float(F.cosine_similarity(*pair).mean()) for pair in tokens]
    numbers = {
        "first": cosines[0],
        "last": cosines[-1],
        "accuracy": classified(encoder, images().test),
        **numbers,
    }
    return Found(numbers, {"cosine": learnt.curve("cosine")})


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    taught, twice = mean["distillation token"], mean["second class token"]
    return (
        "Both pairs of tokens come nearer to each other from block to block. Two that learn from "
        f"the same labels end as one and the same (cosine {twice['last']:.3f} after the last "
        f"block, {twice['first']:.2f} after the first). A token that learns from the teacher, who "
        f"is right for {100 * taught['teacher']:.0f} % of the test images, stays another one: "
        f"{taught['last']:.3f} and {taught['first']:.2f}. It says what the teacher says for "
        f"{100 * taught['token']:.1f} % of the training images, the class token beside it for "
        f"{100 * taught['class']:.1f} %. Both classifiers together are right for "
        f"{100 * taught['accuracy']:.1f} % of the test images, those of the two class tokens for "
        f"{100 * twice['accuracy']:.1f} %."
    )


CLAIM = Claim(
    name="deit",
    paper="Touvron et al., Training data-efficient image transformers & distillation through "
    "attention, ICML 2021",
    arxiv="2012.12877",
    says="a token for the teacher's hard labels learns something else than the class token; a "
    "second class token does not",
    source="section 4 (cosine of the tokens) and table 4 (agreement with the teacher)",
    experiment="A small ViT with two tokens learns the ten classes. One learns from the labels; "
    "the other from the decisions of a ResNet that learnt from the same labels for as many steps, "
    "or, as a control, from the labels too. Measured is the cosine of the two tokens after the "
    "first and the last block.",
    data=DATA,
    file="selfsame/methods/deit.py",
    arms={
        "distillation token": Arm(distilled),
        "second class token": Arm(duplicated, control=True),
    },
    quantities={
        "first": Quantity("cosine, first block", 3),
        "last": Quantity("last block", 3),
        "accuracy": Quantity("both classifiers, %", 1, 100),
        "token": Quantity("as the teacher: this token, %", 1, 100),
        "class": Quantity("class token, %", 1, 100),
    },
    checks=(
        Check(
            "the cosine after the last block is smaller than that of two class tokens, by",
            lambda n: n["second class token"]["last"] - n["distillation token"]["last"],
            0.05,
            "",
        ),
        Check(
            "the distillation token agrees with the teacher more than the class token, points",
            lambda n: 100 * (n["distillation token"]["token"] - n["distillation token"]["class"]),
            0.5,
            "",
        ),
    ),
    steps={"fast": 150, "full": 3000},
    panels=(
        Curves("cosine", "cosine of the two tokens, last block", {"the same": 1.0}),
        Bars("last", "cosine after the last block", 3, 1.0, {"the same": 1.0}),
        Bars("accuracy", "test images right, %", 1, 100, {"chance": 10.0}),
    ),
    seen=seen,
    reason="a teacher of few steps decides as the labels do where it decides well, and both tokens "
    "have not learnt for long",
    deviations=(
        "a ViT of 4 blocks 96 wide and a ResNet of 10 layers as teacher, as many steps each",
        "no mixing of images, no strong augmentation",
    ),
)
