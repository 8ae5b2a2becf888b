from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from ranks import Ranks
from torch import Tensor, nn

from selfsame import dist
from selfsame.nn.batchnorm import SyncBatchNorm, resting_statistics

KINDS = {
    "1d": (nn.BatchNorm1d(4), (9, 4)),
    "2d": (nn.BatchNorm2d(4), (9, 4, 3, 2)),
    "plain": (nn.BatchNorm1d(4, affine=False), (9, 4)),
    "mean of all": (nn.BatchNorm2d(4, momentum=None), (9, 4, 2, 2)),
}


def example(kind: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A norm in float64, what goes in and the gradient of what comes out."""
    norm, shape = KINDS[kind]
    torch.manual_seed(0)
    norm = deepcopy(norm).double()
    for p in norm.parameters():
        nn.init.normal_(p)
    return norm, 100 + torch.randn(shape, dtype=torch.float64), torch.randn(shape).double()


def pass_through(norm: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    """Twice forward, once back: output, gradients, buffers."""
    norm(x / 2)
    x = x.clone().requires_grad_()
    y = norm(x)
    y.backward(dy)
    assert x.grad is not None
    grads = [p.grad for p in norm.parameters() if p.grad is not None]
    return [y.detach(), x.grad, *grads, *norm.buffers()]


def of_a_rank(kind: str) -> list[Tensor]:
    """Rank 0 has five of nine rows, rank 1 four."""
    norm, x, dy = example(kind)
    rows = slice(0, 5) if dist.rank() == 0 else slice(5, 9)
    return pass_through(SyncBatchNorm(norm), x[rows], dy[rows])


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_of_unequal_batches_equal_torch_on_one(kind: str, ranks: Ranks) -> None:
    whole = pass_through(*example(kind))
    first, second = ranks(of_a_rank, kind)
    tight = {"rtol": 1e-10, "atol": 1e-12}
    for i in range(2):  # output and its gradient: rows
        torch.testing.assert_close(torch.cat([first[i], second[i]]), whole[i], **tight)
    gradients = len(list(KINDS[kind][0].parameters()))
    for i in range(2, 2 + gradients):
        torch.testing.assert_close(first[i] + second[i], whole[i], **tight)
    for ours, other, theirs in zip(
        first[2 + gradients :], second[2 + gradients :], whole[2 + gradients :], strict=True
    ):
        assert torch.equal(ours, other)
        torch.testing.assert_close(ours, theirs, **tight)


def test_on_one_process_it_is_torchs_also_in_bfloat16_and_evaluation() -> None:
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    ours = SyncBatchNorm(deepcopy(norm))
    x = torch.randn(6, 4, 5, 5).bfloat16()
    torch.testing.assert_close(ours(x), norm(x))
    assert ours(x).dtype == torch.bfloat16
    norm(x)
    torch.testing.assert_close(ours.running_var, norm.running_var, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.eval()(x), norm.eval()(x))
    assert ours.state_dict().keys() == norm.state_dict().keys()


def test_timms_activation_comes_after_it() -> None:
    norm = nn.BatchNorm2d(2)
    norm.drop, norm.act = nn.Identity(), nn.ReLU()  # type: ignore[assignment]
    assert SyncBatchNorm(norm)(torch.randn(4, 2, 3, 3)).min() == 0


@pytest.mark.parametrize("make", [lambda norm: norm, SyncBatchNorm])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_resting_statistics_do_not_move(make: object, momentum: float | None) -> None:
    assert callable(make)
    norm = make(nn.BatchNorm1d(3, momentum=momentum))
    x = torch.randn(8, 3)
    y = norm(x)
    before = [b.clone() for b in norm.buffers()]
    with resting_statistics(norm):
        assert torch.equal(norm(x), y)
    assert all(map(torch.equal, norm.buffers(), before))
    norm(x)
    assert norm.num_batches_tracked == 2
