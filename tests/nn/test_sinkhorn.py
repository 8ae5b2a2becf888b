import pytest
import torch
from ranks import Ranks
from torch import Tensor

from selfsame import dist
from selfsame.nn.sinkhorn import sinkhorn


def cosines(samples: int, prototypes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, 16, dtype=torch.float64, generator=generator)
    c = torch.randn(prototypes, 16, dtype=torch.float64, generator=generator)
    return torch.nn.functional.normalize(z, dim=1) @ torch.nn.functional.normalize(c, dim=1).T


@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_equals_the_algorithm_of_the_paper(iterations: int) -> None:
    scores = cosines(12, 7)
    q = (scores / 0.05).exp().T  # [K, B]
    q /= q.sum()
    for _ in range(iterations):
        q /= 7 * q.sum(1, keepdim=True)
        q /= 12 * q.sum(0, keepdim=True)
    torch.testing.assert_close(sinkhorn(scores, 0.05, iterations), 12 * q.T)


def test_samples_sum_to_one_and_prototypes_are_nearly_balanced() -> None:
    scores = cosines(256, 20)

    def imbalance(iterations: int) -> float:
        return float((sinkhorn(scores, 0.05, iterations).sum(0) / (256 / 20) - 1).abs().max())

    torch.testing.assert_close(sinkhorn(scores, 0.05).sum(1), torch.ones(256).double())
    assert imbalance(10) < 0.01 < imbalance(3) < imbalance(1) / 2


def test_a_prototype_that_is_near_everything_gets_no_more_than_its_share() -> None:
    scores = cosines(30, 5)
    shifted = scores + torch.tensor([3.0, 0, 0, 0, 0])
    torch.testing.assert_close(sinkhorn(shifted, 0.05), sinkhorn(scores, 0.05))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_extreme_scores_neither_overflow_nor_vanish(dtype: torch.dtype) -> None:
    scores = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    scores[0] += 5000.0  # a sample near everything makes all others vanish beside it
    scores[1] -= 5000.0
    scores[:, 2] -= 30000.0  # a prototype that nothing comes near
    with torch.autocast("cpu", torch.bfloat16):
        q = sinkhorn(scores.to(dtype), 0.05)
    assert q.dtype == torch.float32
    assert q.isfinite().all()
    torch.testing.assert_close(q.sum(1), torch.ones(8))
    assert q[:, 2].sum() > 0.5


def test_no_gradient() -> None:
    assert not sinkhorn(cosines(3, 4).requires_grad_(), 0.1).requires_grad


def on_a_rank(scores: Tensor, first: int) -> tuple[Tensor, Tensor]:
    mine = scores.split([first, len(scores) - first])[dist.rank()]
    return sinkhorn(mine, 0.05), mine


@pytest.mark.parametrize("first", [8, 3, 0])  # rows on the first of two ranks
def test_sums_run_over_ranks(ranks: Ranks, first: int) -> None:
    scores = cosines(16, 10)
    parts = ranks(on_a_rank, scores, first)
    torch.testing.assert_close(torch.cat([q for q, _ in parts]), sinkhorn(scores, 0.05))
    if first:
        q, mine = parts[0]
        assert not torch.allclose(q, sinkhorn(mine, 0.05), atol=1e-3)  # its own rows alone
