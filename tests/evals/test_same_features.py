"""Training and test images of a probe go the same way: whole, unaugmented, in evaluation mode."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import textures, tiny_recipe

from selfsame import methods, plan
from selfsame.data import Labelled
from selfsame.data.arrays import ArraySource
from selfsame.encoder import Encoder
from selfsame.evals.features import bank
from selfsame.plan import Choices

MASKING = [name for name in methods.METHODS if methods.find(name).needs & {"keep", "replace"}]


@pytest.mark.parametrize("name", MASKING)
def test_no_probe_sees_a_masked_image(name: str) -> None:
    source = ArraySource(textures(12), np.arange(12) % 3, ["a", "b", "c"])
    made = plan.make(name, source, Choices(recipe=tiny_recipe(name)), "cpu")
    built = made.build().train()
    calls: list[dict[str, object]] = []
    built.encoder().register_forward_pre_hook(
        lambda _, __, kwargs: calls.append(kwargs), with_kwargs=True
    )
    encoder = Encoder(built.encoder(), config=made.recipe.backbone, image_size=32)
    data = Labelled(source, source, "the same images twice")
    first, second = bank(encoder, data), bank(encoder, data)
    assert len(calls) >= 2
    assert not any(calls), "tokens were dropped or replaced"
    assert torch.equal(first.train_x, second.test_x)
    assert built.training, "the method goes on training as it was"
