from __future__ import annotations

import numpy as np
import pytest
import torch

from selfsame.data import batch_indices, permutation, steps_per_epoch
from selfsame.data.order import _mix
from selfsame.errors import UsageError


def test_mix_is_splitmix64() -> None:
    # The first outputs of the published generator for seed 1234567.
    states = [(1234567 + k * 0x9E3779B97F4A7C15) % 2**64 for k in (1, 2, 3)]
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert _mix(np.array(states, np.uint64)).tolist() == expected


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_is_a_permutation(n: int) -> None:
    order = permutation(3, 1, n)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(n))


def test_is_pinned_for_all_time() -> None:
    assert permutation(0, 0, 8).tolist() == [4, 2, 7, 5, 0, 6, 3, 1]
    assert permutation(-1, 5, 8).tolist() == [4, 5, 2, 0, 1, 7, 6, 3]


def test_differs_over_epochs_and_seeds() -> None:
    orders = {tuple(permutation(s, e, 50).tolist()) for s in range(6) for e in range(6)}
    assert len(orders) == 36


def test_positions_are_uniform() -> None:
    first = np.array([permutation(0, epoch, 10).tolist() for epoch in range(2000)])
    counts = np.stack([np.bincount(column, minlength=10) for column in first.T])
    chi_squared = ((counts - 200) ** 2 / 200).sum(1)  # 9 degrees of freedom each
    assert chi_squared.max() < 33  # p = 0.0001 for one of them


def test_an_epoch_covers_the_data_but_for_what_is_dropped() -> None:
    n, size = 23, 5
    assert steps_per_epoch(n, size) == 4
    dropped = set()
    for epoch in range(30):
        got = [batch_indices(7, epoch * 4 + k, n, size) for k in range(4)]
        assert {e for e, _ in got} == {epoch}
        seen = torch.cat([index for _, index in got]).tolist()
        assert len(set(seen)) == 20
        assert seen == permutation(7, epoch, n)[:20].tolist()
        dropped |= set(range(n)) - set(seen)
    assert len(dropped) > 15  # not always the same ones


def test_changing_a_batch_changes_no_other() -> None:
    _, index = batch_indices(0, 0, 10, 5)
    before = index.clone()
    index.zero_()
    assert batch_indices(0, 0, 10, 5)[1].equal(before)


def test_a_batch_larger_than_the_data() -> None:
    with pytest.raises(
        UsageError, match="a batch of 11 is larger than the data set of 10"
    ) as error:
        batch_indices(0, 0, 10, 11)
    assert error.value.tip == "use a batch size of 10 or less"
    with pytest.raises(UsageError, match="not positive"):
        steps_per_epoch(10, 0)
