import numpy as np
import pytest
import torch
from ranks import Ranks

from selfsame import dist
from selfsame.backbones import build
from selfsame.methods.vicreg import (
    Settings,
    VICReg,
    covariance,
    invariance,
    terms,
    variance,
    vicreg_loss,
)
from selfsame.types import Progress

PAPER = Settings()
HADAMARD = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
COLUMNS = torch.kron(HADAMARD, torch.kron(HADAMARD, HADAMARD))[:, 1:5]  # orthogonal, mean 0


def random(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def loss_of(z1: torch.Tensor, z2: torch.Tensor, config: Settings = PAPER) -> torch.Tensor:
    return vicreg_loss(terms(z1, z2, config), config)


def test_equal_views_with_unrelated_columns_of_deviation_one_cost_nothing() -> None:
    z = 2 * COLUMNS
    assert loss_of(z, z).item() == pytest.approx(0, abs=1e-12)
    assert loss_of(z, z + 1).item() == pytest.approx(25)  # a shift costs invariance only


def test_a_collapse_costs_variance_only() -> None:
    z = torch.ones(6, 4)
    parts = terms(z, z, PAPER)
    assert [term.item() for term in parts] == [0, pytest.approx(1 - 0.01), 0]  # sqrt(eps) = 0.01


def test_invariance_is_the_mean_over_all_entries() -> None:
    assert invariance(torch.zeros(3, 5), torch.full((3, 5), 2.0)).item() == 4
    one = torch.zeros(3, 5)
    one[0, 0] = 3
    assert invariance(torch.zeros(3, 5), one).item() == pytest.approx(9 / 15)


def test_variance_is_a_hinge_on_the_unbiased_deviation() -> None:
    z = torch.tensor([[-0.3, -3.0], [0.3, 3.0]], dtype=torch.float64)
    expected = (1 - (2 * 0.3**2 + 1e-4) ** 0.5) / 2  # the second column is wide enough
    assert variance(z).item() == pytest.approx(expected)
    z.requires_grad_()
    variance(z).backward()
    assert z.grad[:, 1].abs().max() == 0
    assert z.grad[:, 0].abs().min() > 0


def test_variance_still_pulls_where_columns_almost_collapsed() -> None:
    (z,) = random(1, 16, 3)
    z = (1e-3 * z).requires_grad_()
    variance(z).backward()
    # on the variance, not the deviation, this gradient would be a hundred times smaller
    assert z.grad.norm(dim=0).min() > 1e-2 * (1 / 15**0.5) / 3


@pytest.mark.parametrize(("n", "d"), [(2, 3), (9, 4), (5, 8)])
def test_covariance_is_that_of_numpy(n: int, d: int) -> None:
    (z,) = random(1, n, d)
    c = np.cov(z.numpy(), rowvar=False)
    expected = ((c**2).sum() - (np.diag(c) ** 2).sum()) / d
    assert covariance(z).item() == pytest.approx(expected)
    assert covariance(z + 100).item() == pytest.approx(expected)


def test_weights_and_the_two_readings_of_the_variance() -> None:
    z1, z2 = random(2, 7, 4)
    z1 = 0.1 * z1
    s, v, c = terms(z1, z2, PAPER)
    assert v.item() == pytest.approx(((variance(z1) + variance(z2)) / 2).item())
    assert c.item() == pytest.approx((covariance(z1) + covariance(z2)).item())
    assert loss_of(z1, z2).item() == pytest.approx((25 * s + 25 * v + c).item())
    paper = Settings(sum_variance=True)
    assert terms(z1, z2, paper).variance.item() == pytest.approx(2 * v.item())
    other = Settings(lambd=2, mu=3, nu=5)
    assert loss_of(z1, z2, other).item() == pytest.approx((2 * s + 3 * v + 5 * c).item())


def test_order_of_images_and_of_views_does_not_matter() -> None:
    z1, z2 = random(2, 9, 5)
    loss, order = loss_of(z1, z2), torch.randperm(9)
    torch.testing.assert_close(loss_of(z1[order], z2[order]), loss)
    torch.testing.assert_close(loss_of(z2, z1), loss)
    assert not torch.allclose(loss_of(2 * z1, 2 * z2), loss)  # nothing is normalised


def test_both_views_learn_alike() -> None:
    z = random(2, 9, 5)
    z1, z2 = (x.requires_grad_() for x in z)
    one = torch.autograd.grad(loss_of(z1, z2), (z1, z2))
    other = torch.autograd.grad(loss_of(z2, z1), (z2, z1))
    torch.testing.assert_close(one[0], other[1])  # whichever place a view has
    torch.testing.assert_close(one[1], other[0])


def test_autocast_and_low_precision_change_nothing_but_the_rounding_of_inputs() -> None:
    z1, z2 = ((300 * x).half() for x in random(2, 32, 16))  # covariances leave float16's range
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(z1, z2)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    torch.testing.assert_close(loss, loss_of(z1.float(), z2.float()))


def on_a_rank(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mine = z.chunk(2, dim=1)[dist.rank()].clone().requires_grad_()
    loss = loss_of(*mine)
    loss.backward()
    return loss.detach(), mine.grad


@pytest.mark.parametrize("images", [8, 2])  # 2: one image a rank, whose own variance is undefined
def test_two_ranks_equal_one(ranks: Ranks, images: int) -> None:
    z = 0.3 * torch.stack(random(2, images, 5))
    (loss0, grad0), (loss1, grad1) = ranks(on_a_rank, z)
    z.requires_grad_()
    loss = loss_of(*z)
    loss.backward()
    torch.testing.assert_close((loss0 + loss1) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([grad0, grad1], dim=1) / 2, z.grad)


def test_views_are_normalised_alone_and_the_terms_are_the_metrics() -> None:
    backbone = build("resnet8", image_size=16, options={"width": 4, "stem": "patch"})
    method = VICReg(Settings(expander=(16, 8)), backbone).train()
    seen: list[torch.Tensor] = []
    method.expander.register_forward_hook(lambda *args: seen.append(args[2].detach()))
    x = torch.randn(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    t = Progress(0, 1, 0, 0.0)
    out = method({"global": x}, t)
    method({"global": x * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1, 1)}, t)
    assert torch.equal(seen[0], seen[2])
    s, v, c = (out.metrics[name] for name in ("invariance", "variance", "covariance"))
    torch.testing.assert_close(out.loss.detach(), 25 * s + 25 * v + c)
