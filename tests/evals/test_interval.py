import pytest
import torch

from selfsame.evals.interval import bootstrap, bootstrap_interval, mean_interval


def test_the_mean_of_right_and_wrong_has_the_interval_of_an_accuracy() -> None:
    right = (torch.arange(400) % 4 > 0).double()
    low, high = mean_interval(right)
    exact = bootstrap_interval(0.75, 400)
    assert (low, high) == pytest.approx(exact, abs=0.01)
    assert bootstrap_interval(1.0, 5) == (1.0, 1.0)


def test_the_interval_of_a_mean_is_about_two_standard_errors() -> None:
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)).double()
    low, high = mean_interval(values)
    error = values.std().item() / 500**0.5
    assert low == pytest.approx(values.mean().item() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(values.mean().item() + 1.96 * error, abs=0.2 * error)


def test_draws_are_centred_on_a_score_that_repeats_would_move() -> None:
    values = torch.arange(40)

    def distinct(index: torch.Tensor) -> float:  # about 63 % of what is there
        return len(values[index].unique()) / 40

    low, high = bootstrap(distinct, 40)
    assert high < 0.8
    low, high = bootstrap(distinct, 40, around=1.0)
    assert low < 1.0 < high
