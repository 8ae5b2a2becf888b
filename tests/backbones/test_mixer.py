"""Our Mixer beside timm's."""

from __future__ import annotations

import re

import pytest
import torch
from timm.models.mlp_mixer import MlpMixer

from selfsame import backbones
from selfsame.backbones.mixer import MIXERS, Mixer
from selfsame.errors import UsageError


def test_it_is_timms_network() -> None:
    torch.manual_seed(0)
    theirs = MlpMixer(num_classes=0, img_size=32, patch_size=8, embed_dim=24, num_blocks=2).eval()
    for p in theirs.parameters():  # no zeros and ones that would hide a swap
        p.data += 0.05 * torch.randn_like(p)
    names = {r"^stem": "patch_embed", r"^blocks": "block", r"^norm": "last_norm"}
    state = theirs.state_dict()
    for old, new in names.items():
        state = {re.sub(old, new, key): value for key, value in state.items()}
    ours = Mixer(image_size=32, patch=8, width=24, depth=2).eval()
    ours.load_state_dict(state)  # strict
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features, tokens = ours(x), theirs.forward_features(x)
        pooled = theirs(x)
    torch.testing.assert_close(features.tokens, tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features.pooled, pooled, rtol=1e-5, atol=1e-5)
    assert features.grid == (4, 4)


@pytest.mark.parametrize(("name", "millions"), [("mixer_small", 18.0), ("mixer_base", 59.1)])
def test_sizes_are_those_of_table_1(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = Mixer(name)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_it_has_one_size() -> None:
    network = backbones.build("mixer_small", image_size=32, options={"patch": 8, "width": 16})
    with pytest.raises(UsageError, match="a Mixer for 32 px cannot take 16x16 px"):
        network(torch.zeros(1, 3, 16, 16))
    with pytest.raises(UsageError, match="do not divide into patches of 5 px"):
        backbones.build("mixer_small", image_size=32, options={"patch": 5})
    with pytest.raises(UsageError, match="unknown option of mixer_small 'heads'"):
        backbones.build("mixer_small", image_size=32, options={"heads": 3})


def test_its_name_says_what_it_can_and_options_follow_the_images() -> None:
    assert set(MIXERS) == {"mixer_small", "mixer_base", "mixer_large"}
    assert backbones.abilities("mixer_base") == Mixer.can
    assert backbones.default_options("mixer_base", 32) == {"patch": 4}
    assert backbones.shared_options("mixer_small", "mixer_base", {"patch": 4}) == {}


def test_patches_in_another_order_ask_for_no_more_than_other_weights() -> None:
    """Section 3.4: what a Mixer can learn does not depend on the order of the patches."""
    torch.manual_seed(0)
    network = Mixer(image_size=8, patch=2, width=12, depth=2).eval()
    x, order = torch.randn(3, 3, 8, 8), torch.randperm(16)
    patches = x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3)[:, :, order]  # [B, C, N, 2, 2]
    shuffled = patches.unflatten(2, (4, 4)).transpose(3, 4).flatten(4).flatten(2, 3)
    before = network(x).pooled
    for block in network.blocks():
        mlp = block.mlp_tokens
        for p, dim in ((mlp.fc1.weight, 1), (mlp.fc2.weight, 0), (mlp.fc2.bias, 0)):
            p.data = p.data.index_select(dim, order)
    torch.testing.assert_close(network(shuffled).pooled, before, rtol=1e-5, atol=1e-5)
    assert (network(x).pooled - before).abs().max() > 1e-3
