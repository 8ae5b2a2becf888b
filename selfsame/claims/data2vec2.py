"""data2vec 2.0's claim: one pass of the teacher serves many masked versions of an image."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch

from selfsame.backbones.vit import ViT, keep_tokens
from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, VIT, Learnt, fresh_views, learn, milliseconds, small
from selfsame.methods.data2vec2 import Data2Vec2, make_targets

BATCH = 8  # images of a step, and so passes of the teacher
IMAGES = 512  # that the predictions are measured on, in views that training has not had
TIMED = 9  # steps, after a third as many


def arm(masks: int, setting: Setting) -> Found:
    """Train; what of the targets is predicted, and what a step costs."""
    settings = (
        f"method.masks={masks}",
        f"batch_size={BATCH}",
        "method.layers=3",
        "method.cls_loss=0.0",  # its weight would grow with the masks
    )
    learnt = learn(small("data2vec2", VIT, *settings), setting)
    step = cost(learnt)
    numbers = {"step": step, "each": step / BATCH / masks, "explained": explained(learnt)}
    return Found(numbers, {"loss": learnt.curve("loss")})


@torch.no_grad()
def explained(learnt: Learnt) -> float:
    """Share of the variance of hidden tokens' targets that the student predicts, at most 1."""
    method = learnt.method().eval()
    assert isinstance(method, Data2Vec2)
    config, teacher = method.config, cast(ViT, method.teacher)
    method.config = config.model_copy(update={"masks": 1})
    views = fresh_views(learnt.plan, method, IMAGES)
    x, keep, hidden = views["global"][0], views["keep"][0, :, 0], views["hidden"][0, :, 0]
    y = make_targets(teacher.feed_forwards(x, config.layers))
    seen = method.backbone(x, keep=keep)
    filled = torch.zeros_like(y).scatter(1, keep[..., None].expand_as(seen.tokens), seen.tokens)
    error = keep_tokens(method.decoder(filled, seen.grid) - y, hidden).square().mean()
    return float(1 - error / (y - y.mean((0, 1))).square().mean())


def cost(learnt: Learnt) -> float:
    """Milliseconds of a step."""
    method, plan = learnt.method().train(), learnt.plan
    views = fresh_views(plan, method, plan.recipe.batch_size)
    return milliseconds(method, plan, views, TIMED)


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    many, one = mean["8 masks an image"], mean["1 mask an image"]
    return (
        f"Both students have the same {BATCH} images a step and as many passes of the teacher. "
        f"With one masked version of each a step takes {one['step']:.0f} ms, with 8 of each "
        f"{many['step']:.0f} ms and not 8 times as long: a masked image costs "
        f"{many['each']:.2f} ms in the place of {one['each']:.2f}, "
        f"{one['each'] / many['each']:.1f} times less. The teacher, who sees all tokens, has an "
        "eighth of the work for each; the rest is what a small batch costs in any case. From the "
        "same targets more is learnt: on images in views that are new to it the student predicts "
        f"{100 * many['explained']:.1f} % of the variance of the targets in the place of "
        f"{100 * one['explained']:.1f} %."
    )


CLAIM = Claim(
    name="data2vec2",
    paper="Baevski, Babu, Hsu, Auli, Efficient self-supervised learning with contextualized target "
    "representations for vision, speech and language, ICML 2023",
    arxiv="2212.07525",
    says="one pass of the teacher serves many masked versions of an image: each costs less, and "
    "more is learnt from a target",
    source="section 3.2 (multi-mask training)",
    experiment=f"Two students learn from the same {BATCH} images a step, and as many passes of the "
    "teacher: one predicts the targets from 8 masked versions of each image, the other from one. "
    "A step is timed, and the share of the targets' variance that is predicted is measured on new "
    "views.",
    data=DATA,
    file="selfsame/methods/data2vec2.py",
    arms={
        "8 masks an image": Arm(partial(arm, 8)),
        "1 mask an image": Arm(partial(arm, 1), control=True),
    },
    quantities={
        "step": Quantity("step, ms", 0),
        "each": Quantity("masked image, ms", 2),
        "explained": Quantity("targets predicted, %", 1, 100),
    },
    checks=(
        Check(
            "time of a masked image, ratio",
            lambda n: n["1 mask an image"]["each"] / n["8 masks an image"]["each"],
            1.87,
            "3.25 and 1.18 ms: a ratio of 2.75 (2.79, 2.71, 2.75)",
        ),
        Check(
            "targets predicted, more than with one mask, points",
            lambda n: (
                100 * (n["8 masks an image"]["explained"] - n["1 mask an image"]["explained"])
            ),
            1.8,
            "16.5 % and 12.8 %: 3.7 points apart (3.8, 3.9, 3.4)",
        ),
    ),
    steps={"fast": 120, "full": 3000},
    panels=(
        Bars("each", "time of a masked image, ms", 2),
        Bars("explained", "targets predicted, % of variance", 1, 100),
        Curves("loss", "loss"),
    ),
    seen=seen,
    reason="a teacher of few blocks is a small part of a step beside the decoder, and few steps "
    "teach little",
    deviations=(
        "a ViT of 4 blocks 96 wide, a quarter of its 64 tokens visible, 8 masks for 16",
        "no loss of the class token",
    ),
)
