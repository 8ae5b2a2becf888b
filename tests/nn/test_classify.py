"""Classifiers on an encoder: their scores, and the way to a file and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import selfsame
from selfsame.encoder import Encoder
from selfsame.errors import UsageError
from selfsame.evals.knn import knn_scores
from selfsame.nn.classify import KNN, Classifier, Linear, restore
from selfsame.recipe import BackboneConfig


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(50, 8), torch.randint(0, 4, (50,)), torch.randn(7, 8)


@pytest.mark.parametrize("k", [1, 5, 200])
def test_shares_of_the_nearest_are_those_of_the_protocol(k: int, features: tuple) -> None:
    bank, label, x = features
    share = KNN(bank, label, classes=5, k=k)(x).softmax(1)
    unit = F.normalize(bank, dim=1), label, F.normalize(x, dim=1)
    votes = knn_scores(*unit, min(k, 50), 0.07, 5)
    torch.testing.assert_close(share, votes / votes.sum(1, keepdim=True), atol=1e-5, rtol=1e-5)
    assert (share[:, 4] < 1e-6).all()  # nobody votes for a class that the bank does not have


def heads(features: tuple) -> list[Classifier]:
    return [Linear(8, 4), KNN(*features[:2], classes=4, k=3, temperature=0.1)]


def test_a_classifier_comes_back_from_its_card_and_weights(features: tuple) -> None:
    for head in heads(features):
        back = restore(head.facts(), head.state_dict())
        torch.testing.assert_close(back(features[2]), head(features[2]), atol=0, rtol=0)


def test_weights_of_another_shape_are_refused(features: tuple) -> None:
    linear, knn = heads(features)
    with pytest.raises(UsageError, match="do not fit"):
        restore({"kind": "linear", "rows": 9}, linear.state_dict())
    with pytest.raises(UsageError, match="do not fit"):
        restore(knn.facts(), linear.state_dict())
    with pytest.raises(UsageError, match="classifier 'tree'"):
        restore({"kind": "tree"}, {})


def test_an_encoder_is_saved_with_its_classifier(tmp_path: Path) -> None:
    config = BackboneConfig(name="resnet8", options={"stem": "cifar"})
    network = selfsame.backbones.build("resnet8", image_size=32, options=config.options)
    torch.manual_seed(0)
    head = Linear(network.dim, 3)
    encoder = Encoder(network, config=config, image_size=32, head=head, classes=["a", "b", "c"])
    encoder.eval().save(tmp_path)
    back = selfsame.load(tmp_path, device="cpu")
    images = torch.randint(0, 255, (2, 3, 40, 32), dtype=torch.uint8)
    sizes = torch.tensor([[40, 32], [20, 30]], dtype=torch.int32)
    assert back.classes == ("a", "b", "c")
    torch.testing.assert_close(back.scores(images, sizes), encoder.scores(images, sizes))
    bare = Encoder(network, config=config, image_size=32)
    with pytest.raises(UsageError, match="no classifier"):
        bare.scores(images, sizes)
