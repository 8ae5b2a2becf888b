"""Networks of transformers from a folder: the same numbers as in transformers, no network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_photos

import selfsame
from selfsame.encoder import random_like
from selfsame.errors import UsageError
from selfsame.evals import Data, Subject, evaluators, score

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32}


def saved(folder: Path, config: Any, processor: dict[str, Any] | None = None) -> Any:
    torch.manual_seed(1)  # not the seed of the control
    network = transformers.AutoModel.from_config(config).eval()
    network.save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return network


@pytest.mark.parametrize("kind", ["ViT", "Dinov2", "Dinov2WithRegisters", "ResNet"])
def test_features_are_those_of_the_network(kind: str, tmp_path: Path) -> None:
    if kind == "ResNet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
        )
    else:
        config = getattr(transformers, f"{kind}Config")(**SMALL, patch_size=8)
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    network = saved(tmp_path / kind, config, processor)
    encoder = selfsame.load(tmp_path / kind, image_size=32)
    assert encoder.norm == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        found, wanted = encoder(x), network(x)
    last = wanted.last_hidden_state
    if kind == "ResNet":
        torch.testing.assert_close(found.pooled, wanted.pooler_output.flatten(1))
        torch.testing.assert_close(found.tokens, last.flatten(2).transpose(1, 2))
    else:
        torch.testing.assert_close(found.pooled, last[:, 0])
        torch.testing.assert_close(found.tokens, last[:, -16:])
        assert found.grid == (4, 4)
    assert encoder.dim == found.pooled.shape[1]


def test_it_is_scored_beside_its_random_initialisation(tmp_path: Path) -> None:
    network = saved(tmp_path / "vit", transformers.ViTConfig(**SMALL, patch_size=8))
    photos = write_photos(tmp_path / "photos", count=18, classes=3)
    encoder = selfsame.load(tmp_path / "vit")
    assert encoder.image_size == 32, "what its config says"
    assert encoder.norm.mean == (0.5, 0.5, 0.5)
    state = encoder.backbone.module.state_dict()  # type: ignore[union-attr, operator]
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    control = random_like(encoder)
    assert control is not None
    assert not torch.equal(control.embed(photos), encoder.embed(photos))
    scores = score(Subject(encoder), Data(photos), evaluators(["knn"]).values())
    assert 0 <= scores["knn"] <= 1


def test_what_is_not_there_or_takes_no_images(tmp_path: Path) -> None:
    (
        tmp_path / "empty"
    ).mkdir()  # which some versions notice at once, others when they read weights
    with pytest.raises(UsageError, match=r"transformers has no network at|cannot use .*empty as"):
        selfsame.load(f"transformers/{tmp_path / 'empty'}")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    saved(tmp_path / "bert", config)
    with pytest.raises(UsageError, match=r"cannot use .*bert as a backbone"):
        selfsame.load(tmp_path / "bert")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}})
    )
    (tmp_path / "own" / "own.py").write_text("raise SystemExit('code of a checkpoint was run')")
    with pytest.raises(UsageError, match="transformers has no network at"):
        selfsame.load(tmp_path / "own")
