"""Every format over every kind of network: the same features, or a refusal that names a way."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers import textures
from torch import nn

from selfsame import backbones
from selfsame.encoder import Encoder, load
from selfsame.errors import UsageError
from selfsame.formats import FORMATS, check, check_network, find, reader
from selfsame.formats.check import real_images, verify
from selfsame.formats.format import outputs_of
from selfsame.nn.classify import KNN, Linear
from selfsame.recipe import BackboneConfig
from selfsame.types import Norm

ALWAYS = ("safetensors", "onnx", "torch-export", "torchscript")
LIBRARIES = ("timm", "torchvision", "transformers")
TINY = {"width": 32, "depth": 2, "heads": 2, "patch": 8}


class Case(NamedTuple):
    """A network and the libraries that can express it."""

    name: str
    size: int
    options: dict[str, Any]
    libraries: tuple[str, ...]
    channels: int = 3


CASES = {
    "resnet10": Case("resnet10", 64, {"stem": "imagenet"}, LIBRARIES),
    "cifar": Case("resnet10", 32, {"stem": "cifar"}, ("torchvision",)),
    "gray": Case("resnet10", 64, {"stem": "imagenet"}, LIBRARIES, 1),
    "narrow": Case("resnet10", 64, {"stem": "imagenet", "width": 8}, ("transformers",)),
    "patch": Case("resnet10", 32, {"stem": "patch", "width": 8}, ()),
    "stages": Case("resnet14", 64, {"stem": "imagenet"}, ("transformers",)),
    "bottleneck": Case("resnet50", 64, {"stem": "imagenet", "width": 8}, ("transformers",)),
    "cls": Case("vit_tiny", 32, TINY, ("timm", "transformers")),
    "mean": Case("vit_tiny", 32, {**TINY, "pool": "mean"}, ("timm",)),
    "mae": Case("vit_tiny", 32, {**TINY, "positions": "mae"}, ("timm", "transformers")),
    "scale": Case("vit_tiny", 32, {**TINY, "layer_scale": 0.1}, ("timm", "transformers")),
    "swiglu": Case(
        "vit_tiny", 32, {**TINY, "swiglu": True, "layer_scale": 0.1}, ("timm", "transformers")
    ),
    "gated": Case("vit_tiny", 32, {**TINY, "swiglu": True}, ("timm", "transformers")),
    "odd": Case("vit_tiny", 32, {**TINY, "mlp_ratio": 2.7}, ("timm", "transformers")),
    "post": Case("vit_tiny", 32, {**TINY, "pre_norm": False, "pool": "mean"}, ()),
    "distilled": Case("vit_tiny", 32, {**TINY, "distilled": True}, ()),
    "timm-vit": Case("timm/vit_tiny_patch16_224", 32, {"depth": 1}, ("timm",)),
    "timm": Case("timm/test_resnet", 64, {}, ("timm",)),
    "timm-cifar": Case("timm/resnet18", 32, {"stem": "cifar"}, ()),
    "torchvision": Case("torchvision/mobilenet_v3_small", 64, {}, ("torchvision",)),
    "torchvision-cifar": Case("torchvision/resnet18", 32, {"stem": "cifar"}, ("torchvision",), 1),
    "module": Case("module", 32, {}, ()),
}
GRAPHS = ("mean", "module")  # the rest of them is slow


class Mine(nn.Module):
    """A network of a user's."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.part(x)
        return y


def encoder_of(case: Case, head: str = "") -> Encoder:
    """A network whose every weight and statistic is random, so that a wrong place shows."""
    torch.manual_seed(0)
    own = case.name == "module"
    network = backbones.build(
        Mine() if own else case.name,
        image_size=case.size,
        channels=case.channels,
        options=case.options,
    )
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.dtype.is_floating_point and value.ndim == 1:
                value.add_(0.3 * torch.randn_like(value))
    heads: dict[str, Any] = {
        "": None,
        "linear": Linear(network.dim, 3),
        "knn": KNN(torch.randn(20, network.dim), torch.arange(20) % 3, 3, k=5),
    }
    config = None if own else BackboneConfig(name=case.name, options=case.options)
    norm = Norm((0.4, 0.5, 0.6)[: case.channels], (0.2, 0.3, 0.25)[: case.channels])
    encoder = Encoder(
        network,
        config=config,
        image_size=case.size,
        channels=case.channels,
        norm=norm,
        head=heads[head],
        classes=["cat", "dog", "eel"] if head else None,
    )
    return encoder.eval()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reading in this process: as exact, and much quicker than in a new one."""
    monkeypatch.setattr(check, "run_apart", lambda place, library: reader.main(place))
    with warnings.catch_warnings():  # of libraries about themselves, as they vary by version
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", message=".*deprecated", category=category)
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        yield


def written(case: Case, name: str, folder: Path, head: str = "") -> Any:
    """What `verify` finds of a case in a format."""
    kind, encoder = find(name)(), encoder_of(case, head)
    check_network(kind, encoder)
    images = real_images(encoder, list(textures(8, 48)))
    reading = kind.write(encoder, folder)
    return verify(kind, encoder, reading, folder, images), reading, encoder


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("case", CASES)
def test_a_library_computes_the_same_or_is_not_written_for(
    case: str, name: str, tmp_path: Path
) -> None:
    if name not in CASES[case].libraries:
        with pytest.raises(UsageError, match=f"^{name} has no ") as caught:
            check_network(find(name)(), encoder_of(CASES[case]))
        named = str(caught.value.tip).partition(": ")[2].split(", ")
        assert set(named) == {*ALWAYS, *CASES[case].libraries}
        return
    found, reading, encoder = written(CASES[case], name, tmp_path)
    assert {"pooled"} <= set(reading.outputs) <= set(outputs_of(encoder))
    assert len(found.differences) == 2 * len(reading.outputs)
    if encoder.channels == 3:
        assert found.own.mean < 1, "its preprocessing is another one"
        assert found.own.cosine > 0.99


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ALWAYS)
@pytest.mark.parametrize(
    "case", [c if c in GRAPHS else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_a_graph_can_always_be_written(case: str, name: str, tmp_path: Path) -> None:
    _, reading, encoder = written(CASES[case], name, tmp_path)
    if name != "safetensors":
        assert list(reading.outputs) == outputs_of(encoder)
        takes_any = not case.startswith(("cls", "mean", "mae", "scale", "post", "timm-vit"))
        if name != "torchscript" and case in GRAPHS:
            assert (reading.other is not None) == takes_any


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("resnet10", "timm"),
        ("resnet10", "torchvision"),
        ("resnet10", "transformers"),
        ("cls", "timm"),
        ("cls", "transformers"),
        ("mean", "timm"),
        ("swiglu", "transformers"),
        ("timm", "timm"),
        ("torchvision", "torchvision"),
        pytest.param("patch", "torch-export", marks=pytest.mark.slow),
        ("patch", "torchscript"),
    ],
)
def test_a_linear_classifier_goes_along(case: str, name: str, tmp_path: Path) -> None:
    found, reading, _ = written(CASES[case], name, tmp_path, "linear")
    assert "scores" in reading.outputs
    assert "x.scores" in found.outputs
    if name in ("timm", "transformers"):
        assert "eel" in (tmp_path / "config.json").read_text()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    "name",
    ["onnx", "torchscript", "timm", pytest.param("torch-export", marks=pytest.mark.slow)],
)
def test_a_nearest_neighbour_classifier_goes_along_as_a_graph(name: str, tmp_path: Path) -> None:
    _, reading, _ = written(CASES["cls"], name, tmp_path, "knn")
    assert ("scores" in reading.outputs) == (name != "timm")
    assert any("without the KNN" in note for note in reading.notes) == (name == "timm")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", ["ViT", "ResNet"])
def test_a_network_of_transformers_goes_back_there(kind: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    if kind == "ResNet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
        )
    else:
        config = transformers.ViTConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8
        )
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "theirs")
    encoder = load(tmp_path / "theirs", device="cpu", image_size=32)
    (tmp_path / "out").mkdir()
    format = find("transformers")()
    reading = format.write(encoder, tmp_path / "out")
    images = real_images(encoder, list(textures(8, 48)))
    found = verify(format, encoder, reading, tmp_path / "out", images)
    assert [d.what for d in found.differences] == ["pooled", "tokens"] * 2
    again = load(tmp_path / "out", device="cpu", image_size=32)
    assert again.norm == encoder.norm


@pytest.mark.usefixtures("here")
def test_two_classifiers_of_timm_are_left_alone(tmp_path: Path) -> None:
    case = Case("timm/deit_tiny_distilled_patch16_224", 32, {"depth": 1}, ("timm",))
    _, reading, _ = written(case, "timm", tmp_path, "linear")
    assert list(reading.outputs) == ["pooled", "tokens"]
    assert any("has two" in note for note in reading.notes)


def test_the_table_holds_formats() -> None:
    for name in FORMATS:
        kind = find(name)
        assert kind.name == name
        assert kind.__doc__
    with pytest.raises(UsageError, match="unknown format 'onx'") as caught:
        find("onx")
    assert "did you mean 'onnx'?" in str(caught.value.tip)


@pytest.mark.usefixtures("here")
def test_onnx_says_what_it_is(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    written(CASES["patch"], "onnx", tmp_path, "linear")
    model = onnx.load(tmp_path / "model.onnx")
    facts = {
        each.key: json.loads(each.value) for each in model.metadata_props if each.key[0] != "s"
    }
    assert facts["classes"] == ["cat", "dog", "eel"]
    assert facts["preprocess"]["mean"] == [0.4, 0.5, 0.6]
    assert facts["preprocess"]["size"] == 32
    assert {each.domain: each.version for each in model.opset_import}[""] == 18
    dims = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["batch", 3, "height", "width"]
    assert [o.name for o in model.graph.output] == ["pooled", "tokens", "scores"]
