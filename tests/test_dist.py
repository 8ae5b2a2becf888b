import torch
from ranks import Ranks

from selfsame import dist


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


def _agree(flags: list[bool]) -> list[bool]:
    mine = torch.tensor(flags if dist.rank() else [True] * len(flags))
    return dist.all_true(mine).tolist()


def test_all_ranks_agree_on_what_is_finite(ranks: Ranks) -> None:
    assert ranks(_agree, [True, False]) == [[True, False]] * 2
    assert dist.all_true(torch.tensor(False)).item() is False
