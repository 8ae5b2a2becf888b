"""Every method on every shape of network: it takes a step, or is refused with a pair that works."""

from __future__ import annotations

import pytest
import torch
from helpers import textures, tiny_recipe

from selfsame import methods, plan
from selfsame.errors import UsageError
from selfsame.plan import Choices
from selfsame.recipe import with_settings

# what a network returns: a map, tokens with and without a class token, maps with channels last
NETWORKS = {
    "resnet10": {"stem": "patch", "width": 8},
    "vit_tiny": {"width": 32, "depth": 2, "heads": 2, "patch": 8},
    "timm/vit_tiny_patch16_224": {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "timm/convnext_atto": {"output_stride": 16},
    "timm/swin_tiny_patch4_window7_224": {"patch_size": 2, "window_size": 4, "embed_dim": 24},
    "timm/mixer_s32_224": {},
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", methods.METHODS)
def test_a_step_or_a_reason(name: str, network: str) -> None:
    recipe = tiny_recipe(name)
    fixed_size = "mixer" in network
    crops = len({view.size for view in recipe.views}) > 1
    able = methods.find(name).needs <= (plan.backbones.abilities(network) or set())
    options = dict(NETWORKS[network])
    if name == "deit":  # a token more, which is an option of our ViTs
        able = network == "vit_tiny"
        options |= {"distilled": True} if able else {}
    backbone = recipe.backbone.model_copy(update={"name": network, "options": options})
    recipe = recipe.model_copy(update={"backbone": backbone})

    if name == "supervised":  # whose data is to be labelled, which it is not before the batch
        recipe = with_settings(recipe, ["method.classes=4"])

    def step() -> tuple[torch.Tensor, plan.Method]:
        made = plan.make(name, textures(16), Choices(recipe=recipe), "cpu")
        with made.images:
            built = made.build().train()
            batch = made.images.batch(torch.arange(8))
            batch = batch._replace(label=torch.arange(8) % 4)
            t = made.progress(0)
            out = built(made.views(built, batch, 0), t)
            out.loss.backward()
            built.after_step(t, [out.carry])
        return out.loss, built

    one_place = name == "attention_transfer" and fixed_size  # maps of 1x1: no attention
    if not able or (fixed_size and crops) or one_place:
        with pytest.raises(UsageError) as caught:
            step()
        assert "vit_tiny" in str(caught.value.tip) or "vit_small" in str(caught.value.tip)
        return
    loss, built = step()
    assert torch.isfinite(loss)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in built.parameters())
