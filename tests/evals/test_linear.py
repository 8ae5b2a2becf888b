import numpy as np
import pytest
import torch
from torch import Tensor

from selfsame.evals import fit_logistic, fit_probe, linear

N, D, C = 300, 12, 4


def blobs(n: int, seed: int, noise: float = 1.5) -> tuple[Tensor, Tensor]:
    centres = torch.randn(C, D, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % C
    mix = torch.randn(D, D, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    x = centres[y] + noise * torch.randn(n, D, generator=g, dtype=torch.float64)
    return x @ mix + 5, y


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_agrees_with_scikit_learn(c: float) -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = blobs(N, 0)
    x = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    reference = LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(x.numpy(), y.numpy())
    weight, bias = fit_logistic(x, y, 1 / (c * N), C, tolerance=1e-8)
    np.testing.assert_allclose(weight, reference.coef_, atol=1e-5)
    shift = (bias - bias.mean()).numpy()  # adding a number to all biases changes nothing
    np.testing.assert_allclose(shift, reference.intercept_ - reference.intercept_.mean(), atol=1e-5)
    got = (x @ weight.T + bias).softmax(dim=1)
    np.testing.assert_allclose(got, reference.predict_proba(x.numpy()), atol=1e-5)

    single = fit_logistic(x.float(), y, 1 / (c * N), C)
    got = (x.float() @ single[0].T + single[1]).softmax(dim=1)
    np.testing.assert_allclose(got, reference.predict_proba(x.numpy()), atol=5e-3)


def test_probe_refits_on_all_training_data_with_its_own_statistics() -> None:
    x, y = blobs(N, 0)
    probe = fit_probe(x, y)
    standard = (x - x.mean(dim=0)) / x.std(dim=0, correction=0)
    weight, bias = fit_logistic(standard, y, probe.l2, C)
    torch.testing.assert_close(probe.scores(x), standard @ weight.T + bias)
    again = fit_probe(x, y)
    assert torch.equal(probe.weight, again.weight)


def test_strength_follows_the_noise_and_accuracy_is_a_fraction() -> None:
    x, y = blobs(60, 0, noise=8.0)
    test_x, test_y = blobs(400, 1, noise=0.1)
    result = linear(*blobs(N, 0, noise=0.1), test_x, test_y)
    assert result["linear"] == 1.0
    assert fit_probe(x, y).l2 > 1e-5


def test_constant_channels_and_rare_classes() -> None:
    x, y = blobs(40, 0)
    x = torch.cat([x, torch.full((40, 1), 3.0)], dim=1)
    y = y.clone()
    y[0] = 6  # one image of class 6, none of 4 and 5
    assert linear(x, y, x, y)["linear"] > 0.5

    one_each = torch.tensor([4, 1, 2, 3])  # one image a class: nothing can be held out
    probe = fit_probe(x[one_each], y[one_each])
    assert probe.l2 == 1 / 4
    assert probe.scores(x).isfinite().all()


def test_more_channels_than_images_in_single_precision() -> None:
    x = torch.randn(20, 200, generator=torch.Generator().manual_seed(0))
    y = torch.arange(20) % 2
    assert linear(x, y, x, y)["linear"] == 1.0
