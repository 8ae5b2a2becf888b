"""What every backbone must keep, whoever wrote it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfsame import backbones
from selfsame.errors import UsageError
from selfsame.types import Features

OWN = [
    ("resnet8", 32, {"stem": "cifar"}),
    ("resnet10", 32, {"stem": "patch", "width": 16}),
    ("resnet18", 64, {"stem": "imagenet", "width": 16}),
    ("resnet50", 32, {"stem": "cifar", "width": 8}),
    ("vit_tiny", 32, {"patch": 4, "depth": 2}),
    ("vit_tiny", 32, {"patch": 8, "depth": 2, "pool": "mean", "pre_norm": False}),
    ("mixer_small", 32, {"patch": 8, "depth": 2, "width": 32}),
]
# one of each shape of timm's features: tokens with a class token, NCHW maps, NHWC maps
TIMM = [
    ("timm/vit_tiny_patch16_224", 32, {"depth": 2}),
    ("timm/convnext_atto", 64, {}),
    ("timm/swin_tiny_patch4_window7_224", 56, {"depths": 0}),
    ("timm/resnet10t", 32, {}),
]
TORCHVISION = [
    ("torchvision/resnet18", 32, {"stem": "cifar"}),
    ("torchvision/mobilenet_v3_small", 64, {}),
]
CASES = [*OWN, *TIMM, *TORCHVISION]


@pytest.fixture(params=CASES, ids=lambda case: case[0])
def built(request: pytest.FixtureRequest) -> tuple[backbones.Backbone, int]:
    name, size, options = request.param
    options = {k: v for k, v in options.items() if v != 0 or v is False}
    torch.manual_seed(0)
    return backbones.build(name, image_size=size, options=options), size


def test_features_have_the_promised_shapes_and_gradients(
    built: tuple[backbones.Backbone, int],
) -> None:
    backbone, size = built
    backbone.train()
    features = backbone(torch.randn(2, 3, size, size))
    assert isinstance(features, Features)
    assert features.pooled.shape == (2, backbone.dim)
    assert ("tokens" in backbone.can) == (features.tokens is not None)
    if features.tokens is not None:
        rows, columns = features.grid
        assert features.tokens.shape[:2] == (2, rows * columns)
        assert backbone.stride == size // rows
    features.pooled.square().sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters())


def test_evaluation_is_a_function_of_the_image_alone(built: tuple[backbones.Backbone, int]) -> None:
    backbone, size = built
    backbone.eval()
    x = torch.randn(3, 3, size, size)
    with torch.no_grad():
        alone, together = backbone(x[:1]).pooled, backbone(x).pooled[:1]
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_it_says_what_it_is(built: tuple[backbones.Backbone, int]) -> None:
    backbone, _ = built
    assert len(backbone.norm.mean) == len(backbone.norm.std) == 3
    assert backbone.blocks()
    assert all(isinstance(block, nn.Module) for block in backbone.blocks())
    assert backbone.can <= {"tokens", "maps", "keep", "replace", "ffn", "layers", "stages"}


def test_maps_of_stages_end_in_the_features(built: tuple[backbones.Backbone, int]) -> None:
    backbone, size = built
    if "stages" not in backbone.can:
        pytest.skip("no maps of stages")
    backbone.eval()
    x = torch.randn(2, 3, size, size)
    maps, features = backbone.stages(x)
    assert len(maps) >= 2
    sides = [y.shape[-1] for y in maps]
    assert all(y.ndim == 4 and len(y) == 2 for y in maps)
    assert sides == sorted(sides, reverse=True)  # and channels first: not [B, h, w, C]
    torch.testing.assert_close(features.pooled, backbone(x).pooled)
    if "maps" in backbone.can:
        torch.testing.assert_close(maps[-1].mean((2, 3)), features.pooled)


@pytest.mark.parametrize("depth", ["resnet18", "resnet50"])
def test_our_resnets_are_torchvisions(depth: str) -> None:
    import torchvision

    theirs = torchvision.models.get_model(depth, weights=None)
    ours = backbones.build(depth, image_size=64)
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(state)  # strict: the same names and shapes
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x).pooled, theirs(x))


def test_parameter_counts_are_those_of_the_papers() -> None:
    """As published for torchvision's ResNets; with 10 classes and the CIFAR stem; He et al."""

    def count(name: str, stem: str, classes: int) -> float:
        net = backbones.build(name, image_size=32, options={"stem": stem})
        return (sum(p.numel() for p in net.parameters()) + classes * (net.dim + 1)) / 1e6

    assert round(count("resnet18", "imagenet", 1000), 2) == 11.69
    assert round(count("resnet18", "cifar", 10), 2) == 11.17
    assert round(count("resnet50", "imagenet", 1000), 2) == 25.56
    assert round(count("resnet20", "cifar", 10), 2) == 0.27  # table 6 of arXiv 1512.03385


def test_a_zero_initialised_block_is_its_shortcut() -> None:
    net = backbones.build("resnet18", image_size=32, options={"stem": "cifar", "width": 8})
    block = net.blocks()[1]
    x = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(block(x), torch.relu(x))


def test_any_module_will_do_if_it_gives_features() -> None:
    class Pixels(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    example = torch.zeros(2, 3, 8, 8)
    assert backbones.wrap(Pixels(), example).dim == 192
    convolution = backbones.wrap(nn.Conv2d(3, 5, 2, 2), example)
    assert (convolution.dim, convolution.stride, convolution(example).grid) == (5, 2, (4, 4))
    assert backbones.wrap(convolution, example) is convolution
    with pytest.raises(UsageError, match="Linear fails on images") as caught:
        backbones.wrap(nn.Linear(5, 5), example)
    assert "features [B, D]" in str(caught.value.tip)


def test_a_wrong_name_or_option_is_refused_with_the_nearest_one() -> None:
    for name, close in (("resnet19", "resnet1"), ("timm/vit_tinny_patch16_224", "vit_tiny")):
        with pytest.raises(UsageError, match="unknown backbone") as caught:
            backbones.build(name, image_size=32)
        assert close in str(caught.value.tip)
    with pytest.raises(UsageError, match="library of networks"):
        backbones.build("tim/resnet18", image_size=32)
    with pytest.raises(UsageError, match="option of resnet18 'widht'") as caught:
        backbones.build("resnet18", image_size=32, options={"widht": 3})
    assert "width" in str(caught.value.tip)
    with pytest.raises(UsageError, match="stem"):
        backbones.build("resnet18", image_size=32, options={"stem": "big"})


def test_the_stem_follows_the_image_size() -> None:
    assert backbones.default_options("resnet18", 32) == {"stem": "cifar"}
    assert backbones.default_options("timm/resnet18", 64) == {"stem": "cifar"}
    assert backbones.default_options("resnet18", 65) == {}
    assert backbones.default_options("vit_tiny_patch16_224", 32) == {}
