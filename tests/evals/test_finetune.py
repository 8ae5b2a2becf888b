from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY_VIT, textures

from selfsame import backbones
from selfsame.backbones import layer_numbers
from selfsame.backbones.vit import layer_of
from selfsame.data import Labelled
from selfsame.data.arrays import ArraySource
from selfsame.encoder import Encoder
from selfsame.evals import Data, Subject, evaluators
from selfsame.methods.supervised import Settings, Supervised
from selfsame.nn.mix import cutmix, mixup
from selfsame.types import Progress


def test_mixing_is_timms() -> None:
    from timm.data.mixup import Mixup, mixup_target

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 3, 16, 16, generator=g), torch.arange(6)
    smooth = F.one_hot(y, 6) * 0.9 + 0.1 / 6
    torch.testing.assert_close(smooth, mixup_target(y, 6, 1.0, 0.1))
    for settings in ({"mixup_alpha": 0.8}, {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}):
        for seed in range(8):
            np.random.seed(seed)  # noqa: NPY002 - what timm draws from
            theirs = Mixup(**settings, prob=1.0, label_smoothing=0.1, num_classes=6)
            wanted, target = theirs(x.clone(), y)
            np.random.seed(seed)  # noqa: NPY002
            if "cutmix_alpha" in settings:
                np.random.rand()  # noqa: NPY002 - whether to mix at all
                share = np.random.beta(1.0, 1.0)  # noqa: NPY002
                centre = tuple(np.random.randint(16) / 16 for _ in range(2))  # noqa: NPY002
                found, mixed = cutmix(x, smooth, share, centre)
                if int(16 * (1 - share) ** 0.5) % 2:
                    continue  # older versions of timm make boxes of odd sides even
            else:
                np.random.rand()  # noqa: NPY002
                found, mixed = mixup(x, smooth, np.random.beta(0.8, 0.8))  # noqa: NPY002
            torch.testing.assert_close(found, wanted)
            torch.testing.assert_close(mixed, target)


@pytest.mark.parametrize("name", ["vit_tiny", "timm/vit_tiny_patch16_224"])
def test_layers_of_a_transformer_are_numbered_as_in_maes_code(name: str) -> None:
    network = backbones.build(name, image_size=32, options={"depth": 3})
    found = layer_numbers(network)
    assert found == {key: layer_of(key, 3) for key, _ in network.named_parameters()}


def test_rates_decay_towards_the_input() -> None:
    network = backbones.build("resnet8", image_size=32, options={"stem": "patch", "width": 8})
    method = Supervised(Settings(classes=3, layer_decay=0.5), network)
    rates = {name: method.rate(name).scale for name, _ in method.named_parameters()}
    assert rates["classifier.weight"] == 1.0
    assert rates["backbone.layer3.0.conv1.weight"] == 0.5
    assert rates["backbone.conv1.weight"] == 0.5 ** (len(network.blocks()) + 1)
    ordered = list(dict.fromkeys(rates.values()))
    assert all(a < b for a, b in pairwise(ordered))
    plain = Supervised(Settings(classes=3), network)
    assert all(plain.rate(name).scale == 1.0 for name in rates)


def test_mixing_is_drawn_for_the_step_and_off_in_evaluation() -> None:
    network = backbones.build("resnet8", image_size=16, options={"stem": "patch", "width": 8})
    method = Supervised(Settings(classes=3, mixup=0.8, cutmix=1.0), network)
    views = {"global": torch.randn(1, 6, 3, 16, 16), "label": torch.arange(6) % 3}

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return float(method(views, Progress(0, 1, 0, 0.0)).loss.detach())

    assert loss(0) == loss(0)
    assert len({loss(seed) for seed in range(4)}) > 1
    method.eval()
    assert loss(0) == loss(1)


def test_fine_tuning_learns_and_leaves_the_encoder_as_it_was() -> None:
    """Two classes that differ in colour; chance is .5.

    Measured over seeds 0 to 4 of the network and the run: 1.0 each time.
    """
    options = {k.rpartition(".")[2]: int(v) for k, v in TINY_VIT.items() if ".options." in k}
    torch.manual_seed(0)
    network = backbones.build("vit_tiny", image_size=32, options=options)
    encoder = Encoder(network, config=None, image_size=32)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    label = np.arange(64) % 2
    images = textures(64) // 2
    images[label == 1, ..., 0] += 100
    parts = [
        ArraySource(images[rows], label[rows], ["a", "b"]) for rows in (slice(48), slice(48, 64))
    ]
    data = Data(Labelled(*parts, "made"))
    settings = ["finetune.epochs=15", "finetune.batch_size=16", "finetune.lr=4e-3"]
    scores = evaluators(["finetune"], settings)["finetune"](Subject(encoder), data)
    assert scores["finetune_steps"] == 45
    assert scores["finetune"] >= 0.8
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
