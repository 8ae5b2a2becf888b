import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from selfsame import optim
from selfsame.errors import UsageError
from selfsame.optim import (
    LARS,
    Optim,
    build,
    parameter_groups,
    rates,
    scaled_lr,
    set_rates,
    warmup_steps,
)
from selfsame.types import Method, Progress, Rate


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.norm = nn.LayerNorm([4, 2])  # a norm whose parameters have two dimensions
        self.token = nn.Parameter(torch.randn(1, 1, 5))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.head.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def at(step: int, total: int = 100) -> Progress:
    return Progress(step, total, 0, 0.0)


def give_grads(module: nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in module.parameters():
        p.grad = scale * torch.randn(p.shape, generator=generator).to(p.dtype)


def test_groups() -> None:
    net = Net()
    names = {id(p): name for name, p in net.named_parameters()}
    weights, excluded = parameter_groups(net, Optim(weight_decay=0.1, lr_1d=0.5))
    assert [names[id(p)] for p in weights["params"]] == ["token", "conv.weight", "head.weight"]
    assert [names[id(p)] for p in excluded["params"]] == [
        *("scale", "conv.bias", "bn.weight", "bn.bias", "norm.weight", "norm.bias", "head.bias")
    ]
    assert (weights["name"], weights["weight_decay"], weights["lr_scale"]) == ("weights", 0.1, 1.0)
    assert (excluded["name"], excluded["weight_decay"]) == ("excluded", 0.0)
    assert excluded["lr_scale"] == 0.5

    (everything,) = parameter_groups(net, Optim(exclude_1d=False))
    assert len(everything["params"]) == 10
    with pytest.raises(UsageError, match="no trainable parameter"):
        parameter_groups(net.frozen, Optim())


@pytest.mark.parametrize(("scaling", "expected"), [("linear", 4.8), ("sqrt", 1.2), ("none", 0.3)])
def test_scaled_lr(scaling: Any, expected: float) -> None:
    assert scaled_lr(Optim(lr=0.3, scaling=scaling), 4096) == pytest.approx(expected)


def test_rates() -> None:
    optim = Optim(lr=1.0, scaling="none", warmup=2, final_lr=0.1, weight_decay=0.04)
    assert rates(optim, 256, at(0), 5.0) == (0.0, 0.04)
    assert rates(optim, 256, at(10), 5.0) == (1.0, 0.04)
    assert rates(optim, 256, at(55), 5.0).lr == pytest.approx(0.55)
    assert warmup_steps(optim, 30, 5.0) == 6  # a fifth of a short run

    decay = [
        rates(optim.model_copy(update={"final_weight_decay": 0.4}), 256, at(step), 5.0).weight_decay
        for step in (0, 50)
    ]
    assert decay == pytest.approx([0.04, 0.22])

    step = Optim(lr=1.0, scaling="none", warmup=0, schedule="step", milestones=(0.6, 0.8))
    got = [rates(step, 256, at(i), 5.0).lr for i in (0, 59, 60, 80)]
    assert got == pytest.approx([1.0, 1.0, 0.1, 0.01])
    constant = Optim(lr=1.0, scaling="none", warmup=1, schedule="constant")
    assert [rates(constant, 256, at(i), 4.0).lr for i in (0, 2, 4, 99)] == [0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adamw", "nesterov": True}, "nesterov is read by sgd and lars, not by adamw"),
        ({"name": "sgd", "clip_ratio": True}, "clip_ratio is read by lars"),
        ({"name": "sgd", "momentum": 0.0, "nesterov": True}, "needs momentum above 0"),
        ({"name": "adamw", "betas": (0.9, 1.0)}, "betas must lie"),
        ({"name": "lars", "ratio": "split", "momentum_form": "momentum_first"}, "'split' needs"),
        ({"schedule": "step"}, "go together"),
        ({"milestones": (0.5,)}, "go together"),
        ({"schedule": "step", "milestones": (0.8, 0.6)}, "ascending"),
        ({"lr": 0.0}, "greater than 0"),
        ({"learning_rate": 1.0}, "Extra inputs"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Optim(**options)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_set_rates_reaches_every_group_by_its_rule(name: Any) -> None:
    optimizer = build(Net(), Optim(name=name, lr=0.5, lr_1d=0.1, weight_decay=0.1), 512)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.0, 0.1])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    set_rates(optimizer, 2.0, 0.3)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2.0, 0.2])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


@pytest.mark.parametrize("form", ["popular", "classic", "momentum_first"])
def test_lars_first_step_is_lr_times_trust_and_ignores_the_scale_of_gradients(form: Any) -> None:
    steps = []
    for scale in (1.0, 1000.0):
        net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
        torch.manual_seed(0)
        for p in net.parameters():
            nn.init.normal_(p)
        before = copy.deepcopy(net).requires_grad_(False)
        optimizer = build(net, Optim(name="lars", lr=2.0, momentum_form=form), 256)
        give_grads(net, 1, scale)
        optimizer.step()
        for p, old in zip(net.parameters(), before.parameters(), strict=True):
            moved = p.detach() - old
            if p.ndim == 2:
                relative = (moved.norm() / old.norm()).item()
                assert relative == pytest.approx(2.0 * 0.001, rel=1e-4)
            else:
                torch.testing.assert_close(moved, -2.0 * p.grad, rtol=1e-3, atol=1e-5)
        steps.append(net[0].weight.detach() - before[0].weight)
    torch.testing.assert_close(*steps, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ratio", ["joint", "split"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lars_lives_with_zeros_and_large_half_precision_gradients(
    ratio: Any, dtype: torch.dtype
) -> None:
    zero_weight = nn.Parameter(torch.zeros(3, 2, dtype=dtype))
    zero_grad = nn.Parameter(torch.ones(3, 2, dtype=dtype))
    large = nn.Parameter(torch.ones(64, 64, dtype=dtype))
    params = [zero_weight, zero_grad, large]
    optimizer = LARS(params, 1.0, ratio=ratio, trust_coefficient=0.25)
    zero_weight.grad = torch.ones_like(zero_weight)
    zero_grad.grad = torch.zeros_like(zero_grad)
    large.grad = torch.full_like(large, 3e4)  # its norm overflows float16
    optimizer.step()
    assert (zero_weight == -1).all()
    assert (zero_grad == 1).all()
    torch.testing.assert_close(large.float(), torch.full((64, 64), 0.75), rtol=0, atol=5e-3)


def test_larc_clips_and_survives_a_learning_rate_of_zero() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    p.grad = torch.ones(2, 2)
    LARS([p], 0.0, ratio="split", clip_ratio=True).step()
    assert (p == 1).all()
    LARS([p], 1e-4, ratio="split", clip_ratio=True).step()  # 0.001 / 1e-4 is clipped to 1
    torch.testing.assert_close(p.detach(), torch.full((2, 2), 1 - 1e-4))


def test_classic_and_popular_agree_while_lr_is_constant_only() -> None:
    def run(form: Any, lrs: list[float]) -> Tensor:
        p = nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
        optimizer = LARS([p], 1.0, momentum_form=form, trust_coefficient=0.1)
        for step, lr in enumerate(lrs):
            p.grad = torch.randn(3, 2, generator=torch.Generator().manual_seed(step)).double()
            set_rates(optimizer, lr, 0.0)
            optimizer.step()
        return p.detach()

    torch.testing.assert_close(run("classic", [0.5] * 4), run("popular", [0.5] * 4))
    assert not torch.allclose(run("classic", [0.5, 0.1]), run("popular", [0.5, 0.1]))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_steps_are_those_of_torchs_own_optimiser(name: Any) -> None:
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer = build(ours, Optim(name=name, lr=0.1, scaling="none", weight_decay=0.01), 256)
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[name]
    assert isinstance(optimizer, kind)
    options = {"fused": True}
    options |= {"momentum": 0.9} if name == "sgd" else {"betas": (0.9, 0.999), "eps": 1e-8}
    groups = [
        {"params": [theirs.weight], "weight_decay": 0.01},
        {"params": [theirs.bias], "weight_decay": 0.0},
    ]
    own = kind(groups, lr=0.1, **options)
    for i in range(4):
        for net, each in ((ours, optimizer), (theirs, own)):
            each.zero_grad()
            assert net.weight.grad is None
            give_grads(net, i)
            each.step()
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)
    state, expected = optimizer.state_dict()["state"], own.state_dict()["state"]
    assert state.keys() == expected.keys()
    for i, values in expected.items():
        for key, value in values.items():
            assert torch.equal(state[i][key], value)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_resume_is_bit_equal(name: Any, tmp_path: Any) -> None:
    optim = Optim(name=name, lr=0.1, weight_decay=0.01)

    def steps(net: nn.Module, optimizer: torch.optim.Optimizer, span: range) -> None:
        for i in span:
            set_rates(optimizer, 0.1 / (1 + i), 0.01)
            give_grads(net, i)
            optimizer.step()

    torch.manual_seed(0)
    straight = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    resumed = copy.deepcopy(straight)
    steps(straight, build(straight, optim, 256), range(6))

    first = build(resumed, optim, 256)
    steps(resumed, first, range(3))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = build(resumed, optim, 256)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    steps(resumed, second, range(3, 6))
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "nesterov"),
    [("sgd", False), ("sgd", True), ("adamw", False), ("lars", False), ("lars", True)],
)
def test_a_parameter_may_get_its_first_gradient_later(name: Any, nesterov: bool) -> None:
    """Prototypes that rest at first, and those that are drawn anew: their state begins later."""
    late, early = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3, 2))
    alone = nn.Parameter(torch.ones(2, 2))
    options = Optim(name=name, lr=0.1, scaling="none", weight_decay=0.01, nesterov=nesterov)
    together = build(nn.ParameterList([late, early]), options, 256)
    other = build(nn.ParameterList([alone]), options, 256)
    for step in range(5):
        early.grad = torch.full((3, 2), 1.0 + step)
        if step == 3:
            together.state.pop(late)
            other.state.pop(alone)
        if step >= 1:
            late.grad = alone.grad = torch.tensor([[1.0, -2.0], [0.5, step]])
            other.step()
        together.step()
    torch.testing.assert_close(late, alone, rtol=0, atol=0)


def test_lars_skips_parameters_without_gradient_and_runs_a_closure() -> None:
    p, q = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([p, q], 0.1)

    def closure() -> Tensor:
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4
    assert (p < 1).all()
    assert (q == 1).all()
    assert q not in optimizer.state


class Parts(Method):
    """A method of two parts and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2, bias=False)
        self.token = nn.Parameter(torch.zeros(3))

    def rate(self, name: str) -> Rate:
        return Rate(fixed=True) if name.startswith("head") else Rate(0.5 if "back" in name else 1.0)


def norms(module: nn.Module) -> dict[str, float]:
    return {name: p.grad.norm().item() for name, p in module.named_parameters()}


@pytest.mark.parametrize("clip", ["global", "module", "tensor"])
def test_clipping_bounds_the_norm_of_what_it_is_told_to(clip: Any) -> None:
    method = Parts()
    give_grads(method, 0, 10.0)
    method.token.grad.mul_(1e-3)
    before = norms(method)
    total = optim.clip(method, Optim(clip_norm=1.0, clip=clip))
    assert total.item() == pytest.approx(sum(n**2 for n in before.values()) ** 0.5)
    after = norms(method)
    backbone = (after["backbone.weight"] ** 2 + after["backbone.bias"] ** 2) ** 0.5
    if clip == "global":
        assert sum(n**2 for n in after.values()) ** 0.5 == pytest.approx(1.0, rel=1e-4)
        assert after["token"] < before["token"]
    else:
        assert after["token"] == before["token"]  # small already: the others do not shrink it
        assert after["head.weight"] == pytest.approx(1.0, rel=1e-4)
    if clip == "module":
        assert backbone == pytest.approx(1.0, rel=1e-4)
    if clip == "tensor":
        assert after["backbone.weight"] == pytest.approx(1.0, rel=1e-4)
        assert after["backbone.bias"] == pytest.approx(1.0, rel=1e-4)


def test_without_a_bound_the_norm_is_only_measured() -> None:
    method = Parts()
    give_grads(method, 0, 10.0)
    before = norms(method)
    assert optim.clip(method, Optim()).item() > 10
    assert norms(method) == before


def test_a_method_gives_parameters_rates_of_their_own() -> None:
    options = Optim(lr=0.1, scaling="none", weight_decay=0.01, lr_1d=0.1)
    optimizer = optim.build(Parts(), options, 256)
    optim.set_rates(optimizer, 0.02, 0.01, peak=0.1)
    found = {
        tuple(p.shape): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert found[2, 3] == pytest.approx((0.1, 0.01))  # fixed at the peak
    assert found[3, 3] == pytest.approx((0.01, 0.01))  # half of the schedule's rate
    rates = sorted(g["lr"] for g in optimizer.param_groups if g["exclude"])
    assert rates == pytest.approx([0.5 * 0.1 * 0.02, 0.1 * 0.02])  # the bias, the token
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 4
