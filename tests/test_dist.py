import math

import torch
from ranks import Ranks
from torch import nn

from selfsame import dist, parallel
from selfsame.errors import SelfsameError, UsageError


def test_identities_on_one_process() -> None:
    x = torch.randn(3, 2)
    assert (dist.rank(), dist.world_size(), dist.is_main()) == (0, 1, True)
    for word in (dist.gather, dist.mean, dist.total):
        assert word(x) is x


def on_a_rank(x: torch.Tensor, w: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of this rank's half of ``x`` for three losses that look across ranks."""
    rank = dist.rank()
    mine = x.chunk(2)[rank].clone().requires_grad_()
    weight = w.clone().requires_grad_()
    everyone = dist.gather(mine * weight)
    loss = (mine @ everyone.T).square().mean()
    loss = loss + (mine * dist.mean(mine.mean(dim=0)).square()).sum(dim=1).mean()
    loss = loss + (mine.sum(dim=1) * dist.total(mine.exp().sum())).mean()
    loss.backward()
    return {
        "gathered": everyone.detach(),
        "strided": dist.gather(x.T.contiguous().T[rank : rank + 1]),
        "integers": dist.gather(torch.tensor([rank])),
        "loss": loss.detach(),
        "x": mine.grad,
        "w": weight.grad,
        "who": torch.tensor([dist.rank(), dist.world_size(), dist.is_main()]),
    }


def test_two_processes_equal_one(ranks: Ranks) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    w = torch.randn(4, generator=generator, dtype=torch.float64)
    first, second = ranks(on_a_rank, x, w)

    whole, weight = x.clone().requires_grad_(), w.clone().requires_grad_()
    everyone = whole * weight
    loss = (whole @ everyone.T).square().mean()
    loss = loss + (whole * whole.mean(dim=0).square()).sum(dim=1).mean()
    loss = loss + (whole.sum(dim=1) * whole.exp().sum()).mean()
    loss.backward()

    assert first["who"].tolist() == [0, 2, 1]
    assert second["who"].tolist() == [1, 2, 0]
    for one in (first, second):
        torch.testing.assert_close(one["gathered"], everyone.detach())
        assert torch.equal(one["strided"], x[:2])
        assert one["integers"].tolist() == [0, 1]
    torch.testing.assert_close((first["loss"] + second["loss"]) / 2, loss.detach())
    torch.testing.assert_close((first["w"] + second["w"]) / 2, weight.grad)
    torch.testing.assert_close(torch.cat([first["x"], second["x"]]) / 2, whole.grad)


def decide_on_a_rank() -> dict[str, object]:
    rank = dist.rank()
    calls: list[int] = []
    return {
        "anywhere": dist.anywhere(rank == 1, False, True),
        "all_true": dist.all_true(torch.tensor([True, rank == 0, False])).tolist(),
        "everyone": dist.everyone({"rank": rank}),
        "on_main": dist.on_main(lambda: calls.append(rank) or f"from {rank}"),
        "calls": calls,
        "part": tuple(dist.part()),
    }


def test_ranks_agree(ranks: Ranks) -> None:
    for rank, found in enumerate(ranks(decide_on_a_rank)):
        assert found == {
            "anywhere": (True, False, True),
            "all_true": [True, False, False],
            "everyone": [{"rank": 0}, {"rank": 1}],
            "on_main": "from 0",
            "calls": [0] if rank == 0 else [],
            "part": (rank, 2, None),
        }


def fail_on_main() -> str:
    def refuse() -> None:
        raise UsageError("no")

    try:
        dist.on_main(refuse)
    except SelfsameError as error:
        return f"{type(error).__name__} {error} {error.told}"
    return "nothing"


def test_an_error_of_one_is_an_error_of_all(ranks: Ranks) -> None:
    assert ranks(fail_on_main) == ["UsageError no False", "RunError process 0 stopped: no True"]


def average_on_a_rank(bad: bool) -> dict[str, object]:
    """Weights used by both ranks, by the second, and by none."""
    rank = dist.rank()
    network = nn.ParameterDict(
        {name: nn.Parameter(torch.zeros(2)) for name in ["both", "one", "none"]}
    )
    network["both"].grad = torch.full((2,), float("nan") if bad and rank else 1.0 + rank)
    if rank:
        network["one"].grad = torch.ones(2)
    loss = parallel.average(network, torch.tensor(1.0 + rank))
    return {"loss": loss.item()} | {
        name: None if p.grad is None else p.grad.tolist() for name, p in network.items()
    }


def test_gradients_are_averaged_and_what_nobody_used_has_none(ranks: Ranks) -> None:
    for found in ranks(average_on_a_rank, False):
        assert found == {"loss": 1.5, "both": [1.5, 1.5], "one": [0.5, 0.5], "none": None}
    for found in ranks(average_on_a_rank, True):
        assert all(math.isnan(x) for x in found["both"])
