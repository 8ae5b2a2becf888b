import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ranks import Ranks

from selfsame import dist, optim
from selfsame.backbones import build
from selfsame.methods import barlow_twins
from selfsame.methods.barlow_twins import (
    BarlowTwins,
    Standardize,
    barlow_twins_loss,
    cross_correlation,
)
from selfsame.types import Progress

HADAMARD = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
COLUMNS = torch.kron(HADAMARD, torch.kron(HADAMARD, HADAMARD))[:, 1:5]  # orthogonal, mean 0


def random(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def correlation(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    norm = Standardize(z1.shape[1]).to(z1.dtype)
    norm.eps = 1e-12
    return cross_correlation(norm(z1), norm(z2))


def test_equal_views_with_orthogonal_columns_cost_nothing() -> None:
    c = correlation(COLUMNS, 3 * COLUMNS + 1)
    torch.testing.assert_close(c, torch.eye(4, dtype=torch.float64))
    assert barlow_twins_loss(c, 1.0).item() == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("d", [1, 2, 7])
def test_known_matrices(d: int) -> None:
    assert barlow_twins_loss(torch.ones(d, d), 0.5).item() == pytest.approx(0.5 * d * (d - 1))
    assert barlow_twins_loss(torch.zeros(d, d), 0.5).item() == d
    assert barlow_twins_loss(-torch.eye(d), 0.5).item() == 4 * d


def test_one_off_diagonal_entry_and_lambda() -> None:
    c = torch.eye(3)
    c[0, 2] = 0.5
    assert barlow_twins_loss(c, 0.1).item() == pytest.approx(0.025)
    assert barlow_twins_loss(c, 0.0).item() == 0


def test_is_the_correlation_of_numpy() -> None:
    z1, z2 = random(2, 20, 3)
    expected = np.corrcoef(z1.numpy(), z2.numpy(), rowvar=False)[:3, 3:]
    torch.testing.assert_close(correlation(z1, z2), torch.from_numpy(expected))


def test_scales_shifts_and_order_do_not_matter() -> None:
    z1, z2 = random(2, 12, 5)
    c = correlation(z1, z2)
    order = torch.randperm(12)
    torch.testing.assert_close(correlation(z1[order], z2[order]), c)
    torch.testing.assert_close(correlation(z1 * torch.arange(1, 6) + 3, z2 - 7), c)
    torch.testing.assert_close(correlation(z2, z1), c.T)


def test_dead_columns_give_zero_and_finite_gradients() -> None:
    z1, z2 = (x.requires_grad_() for x in (torch.ones(6, 3), torch.randn(6, 3)))
    norm = Standardize(3)
    loss = barlow_twins_loss(cross_correlation(norm(z1), norm(z2)), 0.1)
    loss.backward()
    assert loss.item() == 3
    assert z1.grad.isfinite().all()
    assert z2.grad.isfinite().all()


def test_standardize_is_batchnorm() -> None:
    z, more = random(2, 9, 4)
    norm = Standardize(4).double()
    mean, var = torch.zeros(4).double(), torch.ones(4).double()
    for batch in (z, more):
        torch.testing.assert_close(norm(batch), F.batch_norm(batch, mean, var, training=True))
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)
    assert norm.num_batches_tracked.item() == 2
    torch.testing.assert_close(norm.eval()(z), F.batch_norm(z, mean, var))
    assert norm.num_batches_tracked.item() == 2


def test_autocast_and_low_precision_change_nothing_but_the_rounding_of_inputs() -> None:
    z1, z2 = (x.bfloat16() for x in random(2, 64, 16))
    norm = Standardize(16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = barlow_twins_loss(cross_correlation(norm(z1), norm(z2)), 0.1)
    assert loss.dtype == torch.float32
    exact = barlow_twins_loss(cross_correlation(norm(z1.float()), norm(z2.float())), 0.1)
    torch.testing.assert_close(loss, exact)


def loss_of(z1: torch.Tensor, z2: torch.Tensor, norm: Standardize) -> torch.Tensor:
    return barlow_twins_loss(cross_correlation(norm(z1), norm(z2)), 0.3)


def on_a_rank(z: torch.Tensor) -> tuple[torch.Tensor, ...]:
    mine = z.chunk(2, dim=1)[dist.rank()].clone().requires_grad_()
    norm = Standardize(z.shape[2]).double()
    loss = loss_of(*mine, norm)
    loss.backward()
    return loss.detach(), mine.grad, norm.running_mean, norm.running_var


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    z = torch.stack(random(2, 8, 5))
    z[:, :4] *= 3  # the ranks' own statistics are far from the common ones
    first, second = ranks(on_a_rank, z)
    z.requires_grad_()
    norm = Standardize(5).double()
    loss = loss_of(*z, norm)
    loss.backward()
    torch.testing.assert_close((first[0] + second[0]) / 2, loss.detach())
    torch.testing.assert_close(torch.cat([first[1], second[1]], dim=1) / 2, z.grad)
    for mean, var in (first[2:], second[2:]):
        torch.testing.assert_close(mean, norm.running_mean)
        torch.testing.assert_close(var, norm.running_var)


def made(**settings: float) -> BarlowTwins:
    torch.manual_seed(0)
    backbone = build("resnet8", image_size=16, options={"width": 4, "stem": "patch"})
    return BarlowTwins(barlow_twins.Settings(projector=(16, 8), **settings), backbone).train()


def test_scale_multiplies_the_loss_and_views_are_normalised_alone() -> None:
    x = torch.randn(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    t = Progress(0, 1, 0, 0.0)
    method = made()
    seen: list[torch.Tensor] = []
    method.projector.register_forward_hook(lambda *args: seen.append(args[2].detach()))
    loss = method({"global": x}, t).loss
    torch.testing.assert_close(made(scale=0.1)({"global": x}, t).loss, 0.1 * loss)
    method({"global": x * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1, 1)}, t)
    assert torch.equal(seen[0], seen[2])


def test_rates_of_weights_and_of_biases_are_the_codes() -> None:
    recipe = barlow_twins.recipe("paper", 224)
    optimizer = optim.build(made(), recipe.optim, batch_size=256)
    lr = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert lr == {"weights": pytest.approx(0.2), "excluded": pytest.approx(0.0048)}
