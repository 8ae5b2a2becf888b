import pytest
import torch
from torch import Tensor, nn

from selfsame.nn.crops import pooled
from selfsame.types import Features
from selfsame.views.presets import local_size


class Mean(nn.Module):
    """A backbone whose features are the mean colour; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Features:
        self.calls.append(len(x))
        return Features(x.mean((2, 3)), None, (0, 0))


def test_one_forward_pass_for_each_size_and_global_crops_first() -> None:
    views = {"local": torch.randn(3, 5, 2, 4, 4), "global": torch.randn(2, 5, 2, 8, 8)}
    backbone = Mean()
    features = pooled(backbone, views)  # type: ignore[arg-type]
    assert backbone.calls == [10, 15]
    expected = [views[name].mean((3, 4)) for name in ("global", "local")]
    torch.testing.assert_close(features, torch.cat(expected))
    assert pooled(backbone, {"global": views["global"]}).shape == (2, 5, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "local"), [(224, 96), (112, 48), (96, 40), (32, 16), (8, 8)])
def test_local_crops_of_the_paper_in_whole_patches(size: int, local: int) -> None:
    assert local_size(size, 96 / 224) == local
