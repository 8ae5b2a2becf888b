import pytest
import torch
from torch import Tensor

from selfsame.evals import retrieval

N, M, D, C = 60, 25, 5, 4


def made(n: int, seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, D, generator=g, dtype=torch.float64),
        torch.randint(C, (n,), generator=g),
    )


@pytest.mark.parametrize("at_once", [1, 7 * N, 2**24])
def test_precision_agrees_with_scikit_learn(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.metrics import average_precision_score

    monkeypatch.setattr(retrieval, "RANKED_AT_ONCE", at_once)
    (x, y), (q, label) = made(N, 0), made(M, 1)
    precision, hits = retrieval.rank(x, y, q, label, (1, 5))
    cosine = torch.nn.functional.normalize(q) @ torch.nn.functional.normalize(x).T
    for i in range(M):
        same = (y == label[i]).numpy()
        assert precision[i].item() == pytest.approx(average_precision_score(same, cosine[i]))
        order = cosine[i].argsort(descending=True)
        assert hits[i].tolist() == [bool((y[order[:k]] == label[i]).any()) for k in (1, 5)]


def test_leave_one_out_never_finds_itself() -> None:
    from sklearn.metrics import average_precision_score

    x, y = made(N, 2)
    y[0] = C  # the only one of its class
    precision, hits = retrieval.rank(x, y, x, y, (1,), leave_one_out=True)
    cosine = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    assert precision[0].isnan()
    assert not hits[0]
    for i in range(1, N):
        others = torch.arange(N) != i
        wanted = average_precision_score((y == y[i])[others].numpy(), cosine[i][others])
        assert precision[i].item() == pytest.approx(wanted)
