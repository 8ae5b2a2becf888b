"""What is drawn for a batch is drawn for the whole of it, however it is divided."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from selfsame import dist
from selfsame.backbones.vit import SampleDrop
from selfsame.nn import drop
from selfsame.nn.rows import normal, rows

VIEWS, IMAGES, COPIES = 2, 12, 3


class DropPath(nn.Module):
    """timm's, as it is written there."""

    def __init__(self, drop_prob: float, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob, self.scale_by_keep = drop_prob, scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        keep_prob = 1 - self.drop_prob
        random = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep_prob)
        return x * (random.div_(keep_prob) if self.scale_by_keep else random)


def in_parts(function: object, x: Tensor, parts: int) -> Tensor:
    """``function`` on micro-batches of [V, B, ...], put together again."""
    assert callable(function)
    found = []
    for k, part in enumerate(x.chunk(parts, dim=1)):
        torch.manual_seed(3)
        with dist.micro_batch(k, parts, part.shape[1]):
            found.append(function(part.flatten(0, 1)).unflatten(0, part.shape[:2]))
    return torch.cat(found, dim=1)


@pytest.mark.parametrize(
    "module", [nn.Dropout(0.4), DropPath(0.4), DropPath(0.4, scale_by_keep=False)], ids=repr
)
@pytest.mark.parametrize("parts", [2, 3])
def test_parts_drop_what_the_module_drops_of_the_whole(module: nn.Module, parts: int) -> None:
    x = torch.randn(VIEWS, IMAGES, 4, 5)
    ours = drop.of_the_batch(module)
    assert ours is not None
    torch.manual_seed(3)
    whole = module(x.flatten(0, 1)).unflatten(0, (VIEWS, IMAGES))
    assert (whole == 0).any()
    assert torch.equal(in_parts(ours, x, parts), whole)
    assert torch.equal(ours.eval()(x), x)


def test_what_drops_nothing_stays() -> None:
    for module in (nn.Dropout(0.0), DropPath(0.0), nn.Linear(2, 2)):
        assert drop.of_the_batch(module) is None


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_depth_skips_the_same_images(parts: int) -> None:
    """Also where a part has no image left, and where an image has several rows."""
    x = torch.randn(VIEWS, IMAGES, COPIES, 4, 5, dtype=torch.float64)
    for chance in (0.4, 0.95):

        def skip(part: Tensor, chance: float = chance) -> Tensor:
            added = SampleDrop(chance)(part.flatten(0, 1), lambda y: 2 * y + 1, COPIES)
            return added.unflatten(0, part.shape[:2])

        whole, divided = in_parts(skip, x, 1), in_parts(skip, x, parts)
        torch.testing.assert_close(divided, whole)
        kept = max(1, int(VIEWS * IMAGES * COPIES * (1 - chance)))
        assert (divided.abs().sum((-1, -2)) > 0).sum() == kept


def test_noise_of_an_image_is_its_own() -> None:
    x = torch.zeros(VIEWS, IMAGES, 1)
    whole = in_parts(lambda part: normal(len(part), (500,), like=part), x, 1)
    assert torch.equal(in_parts(lambda part: normal(len(part), (500,), like=part), x, 3), whole)
    flat = whole.flatten(0, 1)
    assert len({row.sum().item() for row in flat}) == VIEWS * IMAGES
    assert flat.std().item() == pytest.approx(1.0, abs=0.03)  # 12,000 numbers: 0.0065
    assert torch.corrcoef(flat).fill_diagonal_(0).abs().max() < 0.25  # 500: 0.045, of 276 pairs


def test_rows_outside_a_step_are_the_whole() -> None:
    assert rows(7).total == 7
    assert torch.equal(rows(7).among(torch.tensor([5, 2])), torch.tensor([5, 2]))
