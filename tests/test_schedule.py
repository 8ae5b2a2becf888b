import math

import pytest

from selfsame import schedule


@pytest.mark.parametrize("total", [1, 2, 7, 1000])
def test_end_points(total: int) -> None:
    assert schedule.linear(0, total, 3.0, -1.0) == 3.0
    assert schedule.linear(total - 1, total, 3.0, -1.0) == pytest.approx(-1.0 + 4.0 / total)
    assert schedule.linear(total, total, 3.0, -1.0) == -1.0

    assert schedule.cosine(0, total, 3.0, -1.0) == 3.0
    last = -1.0 + 4.0 * math.sin(math.pi / (2 * total)) ** 2
    assert schedule.cosine(total - 1, total, 3.0, -1.0) == pytest.approx(last)
    assert schedule.cosine(total, total, 3.0, -1.0) == -1.0


def test_outside_of_the_run_is_the_nearer_end() -> None:
    for f in (schedule.linear, schedule.cosine):
        assert f(-5, 10, 3.0, -1.0) == 3.0
        assert f(15, 10, 3.0, -1.0) == -1.0
        assert f(0, 0, 3.0, -1.0) == -1.0


def test_warmup_cosine_end_points() -> None:
    values = [schedule.warmup_cosine(step, 110, 10, 2.0, 0.5) for step in range(110)]
    assert values[0] == 0.0
    assert values[5] == 1.0
    assert values[10] == 2.0 == max(values)
    assert values[60] == pytest.approx(1.25)  # half way down
    assert values[-1] == schedule.cosine(99, 100, 2.0, 0.5)
    assert values[:11] == sorted(values[:11])
    assert values[10:] == sorted(values[10:], reverse=True)
    assert schedule.warmup_cosine(0, 110, 0, 2.0, 0.5) == 2.0


def test_a_closed_warmup_reaches_the_peak_on_its_last_step() -> None:
    values = [
        schedule.warmup_cosine(step, 110, 10, 2.0, 0.5, start=0.2, closed=True)
        for step in range(110)
    ]
    assert values[0] == 0.2
    assert values[9] == values[10] == 2.0  # as numpy.linspace(0.2, 2.0, 10) ends, then the cosine
    assert values[1] == pytest.approx(0.4)
    assert values[8] < 2.0 > values[11]
    assert schedule.warmup_cosine(0, 5, 1, 2.0, 0.5, closed=True) == 2.0
