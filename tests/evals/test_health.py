import pytest
import torch
import torch.nn.functional as F

from selfsame.evals import align, bootstrap_interval, feature_std, rankme, uniform


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
