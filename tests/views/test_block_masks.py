import numpy as np
import torch

from selfsame.views.masks import Draws, block_masks, scattered_masks

GRID = (14, 14)


def some(index: torch.Tensor, epoch: int = 0, views: int = 1, patches: int = 60) -> torch.Tensor:
    draws = Draws(3, epoch, index, views)
    masks = block_masks(draws, np.full(draws.count, patches), GRID, smallest=4, largest=98)
    return masks.unflatten(0, (views, -1))


def test_a_mask_depends_on_its_image_alone() -> None:
    all_of_them = some(torch.arange(40), views=2)
    assert torch.equal(some(torch.tensor([31, 7]), views=2), all_of_them[:, [31, 7]])
    assert torch.equal(some(torch.arange(40), views=1), all_of_them[:1])
    assert not torch.equal(all_of_them[0], all_of_them[1])
    assert not torch.equal(some(torch.arange(40), epoch=1, views=2), all_of_them)


def test_counts_reach_their_target_and_never_pass_it() -> None:
    targets = np.array([0, 0.9, 1, 19, 98.7, 196] * 20)
    draws = Draws(0, 0, torch.arange(len(targets)))
    counts = block_masks(draws, targets, GRID, smallest=4).sum((1, 2)).numpy()
    assert (counts <= targets).all()
    assert (counts[targets < 1] == 0).all()
    assert counts[targets == 98.7].mean() > 95


def test_masks_are_made_of_blocks() -> None:
    masks = some(torch.arange(50))[0]
    neighbours = (masks[:, 1:] & masks[:, :-1]).sum() + (masks[:, :, 1:] & masks[:, :, :-1]).sum()
    single = scattered_masks(Draws(0, 0, torch.arange(50)), np.full(50, 60), GRID)
    others = (single[:, 1:] & single[:, :-1]).sum() + (single[:, :, 1:] & single[:, :, :-1]).sum()
    assert neighbours > 2 * others


def test_scattered_masks_have_exactly_their_target() -> None:
    targets = np.array([0, 1, 7.9, 16])
    masks = scattered_masks(Draws(0, 0, torch.arange(4)), targets, (4, 4))
    assert masks.sum((1, 2)).tolist() == [0, 1, 7, 16]


def test_numbers_go_on_where_the_table_ends() -> None:
    short, rows = Draws(0, 0, torch.arange(3)), np.arange(3)
    drawn = np.stack([short.uniform(rows, 0.0, 1.0) for _ in range(200)])
    assert len(np.unique(drawn)) == drawn.size
    late = Draws(0, 0, torch.arange(3))
    np.testing.assert_array_equal(
        drawn[:, 1], [late.uniform(np.array([1]), 0.0, 1.0)[0] for _ in range(200)]
    )
