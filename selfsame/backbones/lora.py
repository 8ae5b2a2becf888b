"""Low-rank adaptation (Hu et al., "LoRA", arXiv 2106.09685), through peft.

The network's own weights rest; beside each linear layer of its blocks a product of two thin
matrices learns. Afterwards the products are added to the weights: an ordinary encoder again.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn

from selfsame.errors import UsageError
from selfsame.recipe import LoRA
from selfsame.types import Backbone


def add_lora(network: Backbone, config: LoRA) -> None:
    """Let low-rank updates of the blocks' linear layers learn, in place, and nothing else.

    Raises:
        UsageError: peft is not installed, or there are no linear layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UsageError(
            "LoRA needs the package peft", tip='pip install "selfsame[lora]"'
        ) from None
    inside = {id(part) for block in network.blocks() for part in block.modules()}
    targets = [
        name
        for name, part in network.named_modules()
        if isinstance(part, nn.Linear) and id(part) in inside
    ]
    if not targets:
        raise UsageError(
            "LoRA adapts linear layers, and this network's blocks have none",
            tip="take a transformer, or train all weights: leave --lora out",
        )
    chosen = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
    )
    inject_adapter_in_model(chosen, network)


def merged(network: Backbone) -> Backbone:
    """A copy with the updates added to the weights: the same function, the original's names."""
    from peft.tuners.lora import LoraLayer

    whole = deepcopy(network)
    for name, part in list(whole.named_modules()):
        if isinstance(part, LoraLayer):
            layer: Any = part
            layer.merge(safe_merge=True)
            parent, _, last = name.rpartition(".")
            setattr(whole.get_submodule(parent), last, layer.get_base_layer())
    return whole.requires_grad_(True)
