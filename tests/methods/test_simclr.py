import math

import pytest
import torch
import torch.nn.functional as F
from ranks import Ranks

from selfsame import dist
from selfsame.errors import UsageError
from selfsame.methods.simclr import nt_xent


@pytest.mark.parametrize("tau", [0.07, 0.5, 2.0])
def test_identical_views_orthogonal_to_all_others(tau: float) -> None:
    n = 5
    z = 3 * torch.eye(n, dtype=torch.float64).expand(2, n, n)
    positive = math.exp(1 / tau)
    expected = -math.log(positive / (positive + 2 * n - 2))
    assert nt_xent(z, tau).item() == pytest.approx(expected)


def test_uniform_similarities_give_the_log_of_the_candidates() -> None:
    assert nt_xent(torch.ones(2, 8, 3), 0.1).item() == pytest.approx(math.log(15))


def test_order_of_images_and_of_views_does_not_matter() -> None:
    z = torch.randn(2, 9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = nt_xent(z, 0.2)
    torch.testing.assert_close(nt_xent(z[:, torch.randperm(9)], 0.2), loss)
    torch.testing.assert_close(nt_xent(z.flip(0), 0.2), loss)
    torch.testing.assert_close(nt_xent(7 * z, 0.2), loss)
    assert not torch.allclose(nt_xent(7 * z, 0.2, normalize=False), loss)


def test_equals_the_definition() -> None:
    z = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u = F.normalize(z.flatten(0, 1), dim=1)
    losses = []
    for i in range(8):
        exps = [math.exp(float(u[i] @ u[k]) / 0.3) for k in range(8)]
        losses.append(-math.log(exps[(i + 4) % 8] / (sum(exps) - exps[i])))
    assert nt_xent(z, 0.3).item() == pytest.approx(sum(losses) / 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_and_a_low_temperature_stay_finite(dtype: torch.dtype) -> None:
    z = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    if dtype != torch.float16:  # whose range ends below the gradient of a dead projection
        z[:, 0] = 0
    z.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent(z, 0.01)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    torch.testing.assert_close(loss, nt_xent(z.float(), 0.01))


def test_wrong_shapes() -> None:
    for shape in ((4, 8), (3, 4, 8)):
        with pytest.raises(UsageError, match="needs projections"):
            nt_xent(torch.zeros(shape), 0.1)


def on_a_rank(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mine = z.chunk(2, dim=1)[dist.rank()].clone().requires_grad_()
    loss = nt_xent(mine, 0.2)
    loss.backward()
    return loss.detach(), mine.grad


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    z = torch.randn(2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (loss0, grad0), (loss1, grad1) = ranks(on_a_rank, z)
    z.requires_grad_()
    loss = nt_xent(z, 0.2)
    loss.backward()
    torch.testing.assert_close((loss0 + loss1) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([grad0, grad1], dim=1) / 2, z.grad)
