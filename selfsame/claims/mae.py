"""MAE's claim: an encoder that does not see the hidden patches costs a third."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from selfsame.claims.claim import Arm, Bars, Check, Claim, Found, Numbers, Quantity, Setting
from selfsame.claims.training import DATA, learn, milliseconds, small
from selfsame.methods.mae import MAE, TARGET_EPS, Settings, masked_mse, normalize_patches, patchify
from selfsame.types import Backbone, Output, Progress

# patches of 2 px: 256 of them, as many as the paper's 196 and a few
VIT = (
    "backbone.name=vit_tiny",
    "backbone.options.width=128",
    "backbone.options.depth=6",
    "backbone.options.heads=4",
    "backbone.options.patch=2",
    "method.width=64",
    "method.heads=2",
    "batch_size=16",
)
TIMED = 9  # steps, after a third as many
FLOPS = 1e9


class MaskTokens(MAE):
    """MAE whose encoder sees mask tokens in the place of the hidden patches: table 1c."""

    def __init__(self, config: Settings, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.token = nn.Parameter(torch.zeros(backbone.dim))
        nn.init.normal_(self.token, std=0.02)

    def forward(self, views: Mapping[str, Tensor], t: Progress) -> Output:
        """As the method, but for what the class says."""
        x, keep, restore = (views[key].flatten(0, 1) for key in ("global", "keep", "restore"))
        mask = restore >= keep.shape[1]
        latent = self.backbone(x, replace=(mask, self.token))
        every = torch.arange(mask.shape[1], device=x.device).expand(len(x), -1)
        prediction = self.decoder(latent.pooled, latent.tokens, every, latent.grid)
        target = normalize_patches(patchify(x, self.patch))
        loss = masked_mse(prediction, target, mask)
        nothing = masked_mse(torch.zeros_like(target), target, mask).detach()
        return Output(loss, {"explained": 1 - loss.detach() / nothing.clamp(min=TARGET_EPS)}, {})


def arm(method: str, setting: Setting) -> Found:
    """Train; what of the hidden patches is explained, and what a step costs."""
    learnt = learn(small(method, VIT, like="mae"), setting)
    numbers = {
        "explained": learnt.late("explained"),
        **cost(learnt.method().train(), learnt.plan),
    }
    return Found(numbers, {"explained": learnt.curve("explained")})


def cost(method: Any, plan: Any) -> dict[str, float]:
    """Tokens of an image that the encoder's blocks see, FLOPs of its forward, time of a step."""
    with plan.images:
        views = plan.views(method, plan.images.batch(torch.arange(plan.recipe.batch_size)), 0)
    seen: list[int] = []
    block = method.backbone.blocks()[0]
    hook = block.register_forward_hook(lambda module, given, result: seen.append(given[0].shape[1]))
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        method(views, plan.progress(0))
    hook.remove()
    flops = sum(counter.get_flop_counts()[f"{type(method).__name__}.backbone"].values())
    return {
        "tokens": seen[0],
        "gflops": flops / FLOPS / plan.recipe.batch_size,
        "milliseconds": milliseconds(method, plan, views, TIMED),
    }


def ratio(n: Numbers, key: str) -> float:
    """How many times as much the control has."""
    return n["mask tokens"][key] / n["75 % left out"][key]


def seen(mean: Numbers) -> str:
    """What was seen, in a paragraph."""
    left, kept = mean["75 % left out"], mean["mask tokens"]
    return (
        f"An encoder that leaves the hidden patches out sees {left['tokens']:.0f} tokens of an "
        f"image in the place of {kept['tokens']:.0f} and needs {ratio(mean, 'gflops'):.1f} times "
        f"less arithmetic; the whole step, decoder and gradient included, takes "
        f"{left['milliseconds']:.0f} ms in the place of {kept['milliseconds']:.0f}, "
        f"{ratio(mean, 'milliseconds'):.1f} times less. (How well the hidden patches are "
        "painted is no question for so few steps.)"
    )


CLAIM = Claim(
    name="mae",
    paper="He et al., Masked autoencoders are scalable vision learners, CVPR 2022",
    arxiv="2111.06377",
    says="leaving 75 % of the patches out of the encoder makes a step about 3 times faster",
    source="tables 1c and 2",
    experiment="A ViT with patches of 2 px (256 of an image of 32 px) learns to paint three "
    "quarters of the patches: once they are left out of the encoder and join as mask tokens in the "
    "decoder, once the encoder itself sees mask tokens in their place. Counted are the tokens in "
    "its first block and the floating-point operations of its forward pass, and a step is timed.",
    data=DATA,
    file="selfsame/methods/mae.py",
    arms={
        "75 % left out": Arm(lambda setting: arm("mae", setting)),
        "mask tokens": Arm(lambda setting: arm(f"{__name__}:MaskTokens", setting), control=True),
    },
    quantities={
        "tokens": Quantity("tokens in the encoder", 0),
        "gflops": Quantity("encoder, GFLOP an image", 3),
        "milliseconds": Quantity("step, ms", 0),
    },
    checks=(
        Check(
            "arithmetic of the encoder, ratio",
            lambda n: ratio(n, "gflops"),
            3.0,
            "4.9 of every seed",
        ),
        Check("time of a step, ratio", lambda n: ratio(n, "milliseconds"), 2.4, "3.84, 3.66, 3.92"),
    ),
    steps={"fast": 12, "full": 1200},
    panels=(
        Bars("tokens", "tokens in the encoder", 0),
        Bars("gflops", "encoder, GFLOP an image", 3),
        Bars("milliseconds", "time of a step, ms", 0),
    ),
    seen=seen,
    reason="a decoder and small matrices take a larger share of a small network's time",
    deviations=(
        "a ViT of 6 blocks 128 wide with a decoder of one block 64 wide",
        "images of 32 px",
    ),
)
