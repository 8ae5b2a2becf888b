import math

import pytest
import torch
import torch.nn.functional as F

from selfsame.errors import RunError, UsageError
from selfsame.evals import knn, knn_scores
from selfsame.nn import neighbours

N, M, D, C = 40, 17, 6, 7


@pytest.fixture
def data() -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(N, D, generator=g, dtype=torch.float64),
        torch.randint(C, (N,), generator=g),
        torch.randn(M, D, generator=g, dtype=torch.float64),
        torch.randint(C, (M,), generator=g),
    )


def brute_force(train_x, train_y, test_x, k, temperature):  # type: ignore[no-untyped-def]
    rows = []
    for x in test_x.tolist():
        similar = [
            (sum(a * b for a, b in zip(x, row, strict=True)), label)
            for row, label in zip(train_x.tolist(), train_y.tolist(), strict=True)
        ]
        scores = [0.0] * C
        for similarity, label in sorted(similar, reverse=True)[:k]:
            scores[label] += math.exp(similarity / temperature)
        rows.append(scores)
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 5, N, 200])
@pytest.mark.parametrize("at_once", [1, 3 * N, 2**25])
def test_scores_equal_a_loop(
    data: tuple[torch.Tensor, ...], k: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "AT_ONCE", at_once)
    train_x, train_y, test_x, _ = data
    train_x, test_x = F.normalize(train_x), F.normalize(test_x)
    expected = brute_force(train_x, train_y, test_x, k, 0.3)
    torch.testing.assert_close(knn_scores(train_x, train_y, test_x, k, 0.3, C), expected)


def test_accuracies_equal_a_loop(data: tuple[torch.Tensor, ...]) -> None:
    train_x, train_y, test_x, test_y = data
    result = knn(train_x, train_y, test_x, test_y)
    assert list(result) == ["knn", "knn_top5", "knn@1", "knn@5", "knn@10", "knn@20"]
    unit = F.normalize(train_x), F.normalize(test_x)
    for k in (1, 5, 10, 20):
        scores = brute_force(unit[0], train_y, unit[1], k, 0.07)
        right = (scores.argmax(dim=1) == test_y).double().mean().item()
        assert result[f"knn@{k}"] == right
    top5 = (scores.topk(5).indices == test_y[:, None]).any(dim=1).double().mean().item()
    assert result["knn"] == result["knn@20"]
    assert result["knn_top5"] == pytest.approx(top5)


def test_small_bank_small_temperature_and_half_precision(data: tuple[torch.Tensor, ...]) -> None:
    train_x, train_y, _, _ = data
    bank, labels = train_x[:6].half(), train_y[:6]
    result = knn(bank, labels, bank, labels, temperature=1e-3)
    assert result == {"knn@1": 1.0, "knn@5": 1.0, "knn": 1.0, "knn_top5": 1.0}


def test_a_class_without_votes_is_not_in_the_top_five() -> None:
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.1]])
    result = knn(bank, torch.tensor([1, 1]), bank[:1], torch.tensor([0]))
    assert result["knn_top5"] == 0.0


def test_features_that_cannot_be_scored(data: tuple[torch.Tensor, ...]) -> None:
    train_x, train_y, test_x, test_y = data
    with pytest.raises(UsageError, match=r"test features \[17, 6\] do not match labels \[16\]"):
        knn(train_x, train_y, test_x, test_y[1:])
    with pytest.raises(UsageError, match="test features 5"):
        knn(train_x, train_y, test_x[:, 1:], test_y)
    train_x[3, 2] = float("nan")
    with pytest.raises(RunError, match="1 of 40 train features are not finite"):
        knn(train_x, train_y, test_x, test_y)
