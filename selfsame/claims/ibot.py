"""iBOT's claim: two losses on one teacher, of hidden patches and of whole images, teach both."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from selfsame.claims.claim import Arm, Bars, Check, Claim, Curves, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, VIT, Learnt, fresh_views, learn, small
from selfsame.methods.ibot import IBOT
from selfsame.nn.selfdistill import (
    entropy,
    log_softmax,
    masked_places,
    teacher_probabilities,
)

SMALLER = (
    "backbone.options.depth=2",
    "backbone.options.pool=cls",
    "method.hidden=128",
    "batch_size=32",
)
IMAGES = 512  # that are measured, in views that training has not had
SHARE = 0.3  # of the patches that are hidden from the student then


def arm(settings: tuple[str, ...], setting: Setting) -> Found:
    """Train; what the student can tell of hidden patches, and of the other view of an image."""
    recipe = small("ibot", (*VIT, *SMALLER), *settings)
    recipe = recipe.model_copy(update={"views": recipe.views[:2]})
    learnt = learn(recipe, setting)
    return Found(known(learnt), {"divergence": learnt.curve("divergence")})


@torch.no_grad()
def known(learnt: Learnt) -> dict[str, float]:
    """What the student knows of the teacher's targets: of hidden patches, and of other views."""
    method = learnt.method().eval()
    assert isinstance(method, IBOT)
    config = method.config
    hiding = {"mask_probability": 1.0, "mask_ratio": (SHARE, SHARE)}
    method.config = config.model_copy(update=hiding)
    views = fresh_views(learnt.plan, method, IMAGES)
    (x, other), mask = views["global"], views["mask"][0]
    places = masked_places(mask)
    student, teacher = method.backbone(x, replace=(mask, method.mask_token[0])), method.teacher(x)
    head, teacher_head = method.head, method.teacher_head

    s = head.patches(head.embed(student.tokens.flatten(0, 1)[places]))
    logits = teacher_head.patches(teacher_head.embed(teacher.tokens.flatten(0, 1)[places]))
    p = teacher_probabilities(logits, method.patch_center, config.teacher_patch_temperature)
    patches = told(p, s, config.student_temperature)

    s, logits = head(method.backbone(other).pooled), teacher_head(teacher.pooled)
    p = teacher_probabilities(logits, method.center, config.teacher_temperature)
    whole = told(p, s, config.student_temperature)
    return {"patches": patches, "views": whole}


def told(p: Tensor, student: Tensor, temperature: float) -> float:
    """What of the targets a student knows, in nats: H of their mean less the cross-entropy.

    One that knows how frequent each prototype is and nothing else has 0, one that does not know
    even that has less.

    Args:
        p: [n, K] probabilities of the teacher.
        student: [n, K] logits.
        temperature: the student's.
    """
    loss = -(p * log_softmax(student, temperature)).sum(-1).mean()
    return float(entropy(p.mean(0)) - loss)


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    both, images, patches = mean["both losses"], mean["images only"], mean["patches only"]
    return (
        "With both losses the student says of patches that are hidden from it what the teacher "
        f"sees there: {both['patches']:.2f} nats more than one that knows how frequent each "
        f"prototype is and nothing else. With the loss of images alone it is "
        f"{images['patches']:.2f} nats, from the same masked views. Of the teacher's class token "
        f"in another view of the image it knows {both['views']:.2f} nats with both losses and "
        f"{images['views']:.2f} with that of images alone; with the loss of patches alone "
        f"{patches['views']:.2f}, worse than the frequencies of the prototypes, though it is best "
        f"at hidden patches ({patches['patches']:.2f} nats): they do not teach the class token "
        "what two views of an image share."
    )


CLAIM = Claim(
    name="ibot",
    paper="Zhou et al., iBOT: image BERT pre-training with online tokenizer, ICLR 2022",
    arxiv="2111.07832",
    says="the teacher that names images names hidden patches too: either loss alone teaches half",
    source="section 3.2 and table 9",
    experiment="iBOT learns three times from the same masked views: with both losses, with that of "
    "class tokens alone (DINO's), and with that of hidden patches alone. Then "
    f"{100 * SHARE:.0f} % of the patches of new views are hidden from the student, and its "
    "predictions are compared with the teacher's tokens there, and with the teacher's class token "
    "of the other view: in nats more than the frequencies of the prototypes tell.",
    data=DATA,
    file="selfsame/methods/ibot.py",
    arms={
        "both losses": Arm(partial(arm, ())),
        "images only": Arm(partial(arm, ("method.patch_weight=0.0",)), control=True),
        "patches only": Arm(partial(arm, ("method.class_weight=0.0",)), control=True),
    },
    quantities={
        "patches": Quantity("hidden patches, nats", 2),
        "views": Quantity("other view, nats", 2),
    },
    checks=(
        Check(
            "hidden patches, nats more than with the loss of images alone",
            lambda n: n["both losses"]["patches"] - n["images only"]["patches"],
            0.17,
            "0.36 and 0.02: 0.34 apart (0.29, 0.35, 0.37)",
        ),
        Check(
            "the other view, nats more than with the loss of patches alone",
            lambda n: n["both losses"]["views"] - n["patches only"]["views"],
            0.27,
            "0.07 and -0.48: 0.55 apart (0.43, 0.59, 0.61)",
        ),
    ),
    steps={"fast": 60, "full": 2000},
    panels=(
        Bars("patches", "hidden patches: what is known, nats", 2),
        Bars("views", "other view: what is known, nats", 2),
        Curves("divergence", "KL from the teacher's class token, nats"),
    ),
    seen=seen,
    reason="a teacher that has learnt little yet has little to say of patches",
    deviations=(
        "a ViT of 2 blocks 96 wide, batch 32, two global crops and no local ones",
        "what the student knows in the place of kNN, linear and part-wise probes",
    ),
)
