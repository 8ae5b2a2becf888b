"""LARS's claim: layers differ in the size of their gradients; a step relative to each does not."""

from __future__ import annotations

import math

import torch

from selfsame import optim
from selfsame import plan as planning
from selfsame.claims.claim import Arm, Bars, Check, Claim, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, images, small
from selfsame.optim import Optim
from selfsame.plan import Choices

RATE = 0.1
FACTOR = 1000.0  # that the loss is multiplied by


def arm(name: str, setting: Setting) -> Found:
    """The first step of supervised training, and the same with a loss a thousand times as large.

    The relative step of a layer is the norm of its change over its own.
    """
    # a residual branch whose last norm begins at zero has no gradient at the first step
    network = (
        "backbone.name=resnet18",
        "backbone.options.stem=patch",
        "backbone.options.zero_init=false",
        "batch_size=64",
    )
    recipe = small("supervised", network, "steps=1", f"seed={setting.seed}", "precision=fp32")
    first = Optim(
        name="lars" if name == "lars" else "sgd",
        lr=RATE,
        scaling="none",
        weight_decay=0.0,
        momentum=0.0,
        warmup=0,
    )
    recipe = recipe.model_copy(update={"optim": first})
    plan = planning.make("supervised", images().train, Choices(recipe=recipe), setting.device)
    with plan.images:
        batch = plan.images.batch(torch.arange(recipe.batch_size) + 64 * setting.seed)
        steps = []
        for factor in (1.0, FACTOR):
            method = plan.build().train()
            optimizer = optim.build(method, recipe.optim, recipe.batch_size)
            loss = factor * method(plan.views(method, batch, 0), plan.progress(0)).loss
            loss.backward()
            layers = [(p, p.detach().clone()) for p in method.parameters() if p.ndim >= 2]
            gradients = [float(w.norm() / p.grad.norm()) for p, w in layers if p.grad is not None]
            optimizer.step()
            steps.append([float((p.detach() - w).norm() / w.norm()) for p, w in layers])
    usual, scaled = steps
    numbers = {
        "layers": len(usual),
        "gradients": max(gradients) / min(gradients),
        "least": min(usual),
        "most": max(usual),
        "range": max(usual) / min(usual),
        "decades": math.log10(max(usual) / min(usual)),
        "scaled": max(scaled) / max(usual),
    }
    return Found(numbers)


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    sgd, lars = mean["SGD"], mean["LARS"]
    return (
        f"Among the {sgd['layers']:.0f} layers of a ResNet-18 at its start, the ratio of a "
        f"weight's norm to its gradient's differs by a factor of {sgd['gradients']:.0f}, so a step "
        f"of SGD changes one layer {sgd['range']:.0f} times as much, relative to its size, as "
        f"another: between {sgd['least']:.1g} and {sgd['most']:.1g} of it. With LARS each changes "
        f"by {lars['most']:.4g} = learning rate x trust coefficient (a factor of "
        f"{lars['range']:.4f}). A loss {FACTOR:.0f} times as large makes SGD's steps "
        f"{sgd['scaled']:.0f} times as large and leaves those of LARS as they were "
        f"({lars['scaled']:.4f})."
    )


CLAIM = Claim(
    name="lars",
    paper="You, Gitman, Ginsburg, Large batch training of convolutional networks, 2017",
    arxiv="1708.03888",
    says="the size of gradients differs by orders of magnitude between layers; LARS gives each the "
    "same relative step",
    source="section 4, table 2, algorithm 1",
    experiment="A ResNet-18 takes its first step of supervised training, with SGD and with LARS, "
    f"at a learning rate of {RATE}, without momentum and decay; then the same with the loss times "
    f"{FACTOR:.0f}. Watched is the norm of each layer's change over the norm of its weights.",
    data=DATA,
    file="selfsame/optim.py",
    arms={
        "LARS": Arm(lambda setting: arm("lars", setting)),
        "SGD": Arm(lambda setting: arm("sgd", setting), control=True),
    },
    quantities={
        "layers": Quantity("layers", 0),
        "gradients": Quantity("|w| / |g|, max / min", 1),
        "least": Quantity("least relative step", 6),
        "most": Quantity("largest", 6),
        "range": Quantity("largest / least", 3),
        "scaled": Quantity(f"step with the loss x {FACTOR:.0f}", 3),
    },
    checks=(
        Check(
            "|w| / |g| differs between layers, max / min",
            lambda n: n["SGD"]["gradients"],
            10.0,
            "98 to 118: two powers of ten, and the bar is one",
        ),
        Check(
            "relative steps of SGD, max / min",
            lambda n: n["SGD"]["range"],
            10.0,
            "98 to 118: two powers of ten, and the bar is one",
        ),
        Check(
            "relative steps of LARS, max / min less 1",
            lambda n: n["LARS"]["range"] - 1,
            1e-3,
            "exact by construction: rounding alone",
            above=False,
        ),
        Check(
            "LARS's step with the loss scaled, distance of the ratio from 1",
            lambda n: abs(n["LARS"]["scaled"] - 1),
            1e-3,
            "exact by construction: rounding alone",
            above=False,
        ),
    ),
    steps={"fast": 1, "full": 1},
    panels=(
        Bars("gradients", "|w| / |g| over layers, max / min", 0),
        Bars("decades", "relative steps, max / min, powers of ten", 2),
    ),
    seen=seen,
    reason="a network whose layers are alike",
)
