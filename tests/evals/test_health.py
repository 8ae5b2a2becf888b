import pytest
import torch
import torch.nn.functional as F

from selfsame.evals import (
    align,
    alpha_req,
    bootstrap_interval,
    feature_std,
    lidar,
    lidar_eigenvalues,
    match,
    neighbor_distance,
    rankme,
    uniform,
)


def test_rank_counts_equal_directions() -> None:
    z = torch.zeros(64, 16)
    z[torch.arange(64), torch.arange(64) % 5] = 1
    assert rankme(z).item() == pytest.approx(5, rel=1e-3)
    assert rankme(torch.ones(64, 16).bfloat16()).item() == pytest.approx(1, rel=1e-3)


def test_feature_std_of_isotropic_and_of_collapsed_features() -> None:
    z = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    std, reference = feature_std(10 * z)
    assert reference == 0.125
    assert std.item() == pytest.approx(reference, rel=0.01)
    assert feature_std(torch.ones(10, 64))[0].item() == pytest.approx(0, abs=1e-6)


def test_align_and_uniform() -> None:
    x = F.normalize(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))
    assert align(x, x).item() == 0
    assert align(x, -x).item() == pytest.approx(4)
    assert uniform(x).item() < uniform(F.normalize(x + 1)).item() < 0
    assert uniform(x[:1].expand(4, -1)).item() == 0


def test_bootstrap_interval() -> None:
    low, high = bootstrap_interval(0.75, 1000)
    half = 1.96 * (0.75 * 0.25 / 1000) ** 0.5
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.003)
    assert bootstrap_interval(0.75, 1000) == (low, high)
    assert bootstrap_interval(0.75, 1000, seed=1) != (low, high)
    inner = bootstrap_interval(0.75, 1000, level=0.5)
    assert low < inner[0] < inner[1] < high
    assert bootstrap_interval(1.0, 5) == (1.0, 1.0)


def test_alpha_of_a_power_law() -> None:
    # orthogonal columns of mean zero, so that the covariance has exactly this spectrum
    q, _ = torch.linalg.qr(
        torch.cat([torch.ones(200, 1), torch.randn(200, 60)], 1).double(), mode="reduced"
    )
    z = q[:, 1:] * torch.arange(1, 61).double() ** (-1.3 / 2)
    assert alpha_req(z).item() == pytest.approx(1.3)
    assert alpha_req(z, weighted=False).item() == pytest.approx(1.3)
    assert alpha_req(7 * z + 5).item() == pytest.approx(1.3)  # neither scale nor mean matter
    assert alpha_req(z[:, :3]).isfinite()  # fewer dimensions than the first rank of the fit
    assert alpha_req(torch.ones(9, 8)).isfinite()


def test_lidar_counts_the_directions_that_tell_images_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(400, 1, 16, dtype=torch.float64)
    images[:, 0, :5] = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    noise = torch.randn(400, 8, 16, generator=generator, dtype=torch.float64)
    assert lidar(images + 0.01 * noise).item() == pytest.approx(5, rel=0.1)
    assert lidar(images + 10 * noise).item() > 14  # views scatter more than images: all is noise


def test_lidar_is_the_paper_s_formula_where_images_are_fewer_than_dimensions() -> None:
    z = torch.randn(6, 4, 9, generator=torch.Generator().manual_seed(1)).double()
    center = z.mean(1)
    within = (z - center[:, None]).flatten(0, 1)
    values, vectors = torch.linalg.eigh(within.T @ within / 18 + 1e-3 * torch.eye(9).double())
    root = vectors @ torch.diag(values**-0.5) @ vectors.T
    expected = torch.linalg.eigvalsh(root @ center.T.cov() @ root).flip(0).clamp(min=0)
    torch.testing.assert_close(lidar_eigenvalues(z, 1e-3), expected, rtol=1e-9, atol=1e-9)


def test_neighbours_and_matches() -> None:
    x = torch.eye(4)
    assert neighbor_distance(x).item() == pytest.approx(2**0.5)
    assert neighbor_distance(x[[0, 0, 1, 1]]).item() == pytest.approx(0, abs=1e-6)
    assert match(x, x).item() == 1
    assert match(x, x[[0, 1, 3, 2]]).item() == 0.5
    assert match(torch.ones(4, 4) / 2, torch.ones(4, 4) / 2).item() == 0  # a tie is no match
