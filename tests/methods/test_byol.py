import math

import pytest
import torch
from torch import nn

from selfsame import optim
from selfsame.backbones import build
from selfsame.errors import UsageError
from selfsame.methods import byol
from selfsame.methods.byol import BYOL, Settings, byol_loss, regression_loss, target_decay
from selfsame.nn.pairs import spread
from selfsame.types import Progress


def at(step: int, total: int = 100, epoch: float = 0.0) -> Progress:
    return Progress(step, total, 0, epoch)


@pytest.fixture
def method() -> BYOL:
    torch.manual_seed(0)
    backbone = build("resnet8", image_size=16, options={"width": 4, "stem": "patch"})
    return BYOL(Settings(hidden=16, output=8, tau_base=0.9), backbone).train()


@pytest.fixture
def views() -> dict[str, torch.Tensor]:
    return {"global": torch.randn(2, 6, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def random(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)]


def move_online(method: BYOL) -> None:
    """What an optimiser step does, in short."""
    with torch.no_grad():
        for p in method.online.parameters():
            p.add_(0.1 * torch.randn_like(p))


def test_parallel_orthogonal_and_opposite_vectors() -> None:
    q = torch.tensor([[2.0, 0], [2.0, 0], [2.0, 0]])
    z = torch.tensor([[5.0, 0], [0, 0.1], [-3.0, 0]])
    torch.testing.assert_close(regression_loss(q, z), torch.tensor([0.0, 2.0, 4.0]))


def test_both_directions_are_summed() -> None:
    one, other = torch.eye(3), torch.eye(3).roll(1, 0)
    assert byol_loss(one, one, one, one).item() == 0
    assert byol_loss(one, one, other, other).item() == pytest.approx(4)
    assert byol_loss(one, one, -one, -one).item() == pytest.approx(8)
    assert byol_loss(one, other, one, one).item() == pytest.approx(2)  # only q2 misses its target


def test_each_view_predicts_the_other() -> None:
    q1, q2 = random(2, 5, 4)
    assert byol_loss(q1, q2, z1=q2, z2=q1).item() == pytest.approx(0)
    assert byol_loss(q1, q2, z1=q1, z2=q2).item() > 0.1


def test_lengths_and_the_order_of_the_views_do_not_matter() -> None:
    q1, q2, z1, z2 = random(4, 5, 4)
    loss = byol_loss(q1, q2, z1, z2)
    torch.testing.assert_close(byol_loss(3 * q1, q2, z1, 0.1 * z2), loss)
    torch.testing.assert_close(byol_loss(q2, q1, z2, z1), loss)


def test_no_gradient_reaches_the_target() -> None:
    q1, q2, z1, z2 = (x.requires_grad_() for x in random(4, 5, 4))
    byol_loss(q1, q2, z1, z2).backward()
    assert z1.grad is None
    assert z2.grad is None
    assert q1.grad.abs().max() > 0
    # the loss sees directions only, so its gradient is orthogonal to the prediction
    torch.testing.assert_close((q1 * q1.grad).sum(1), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_dead_vectors_stay_finite(dtype: torch.dtype) -> None:
    q = (100 * torch.randn(4, 64)).to(dtype)
    q[0] = 0
    q.requires_grad_()
    loss = byol_loss(q, q, q, q)
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    torch.testing.assert_close(loss, byol_loss(*[q.float()] * 4))


@pytest.mark.parametrize("total", [10, 1000])
def test_decay_is_a_cosine_over_the_steps_of_the_run(total: int) -> None:
    base = 0.9
    assert target_decay(at(0, total), base) == pytest.approx(base, abs=1e-12)
    assert target_decay(at(total // 2, total), base) == pytest.approx((1 + base) / 2)
    last = 1 - (1 - base) * math.sin(math.pi / (2 * total)) ** 2
    assert target_decay(at(total - 1, total), base) == pytest.approx(last, abs=1e-12)
    assert target_decay(at(total, total), base) == 1
    assert target_decay(at(3, total, epoch=7.5), base) == target_decay(at(3, total), base)


def test_target_starts_as_a_copy_and_learns_nothing_itself(method: BYOL) -> None:
    for ours, theirs in zip(method.target.parameters(), method.online.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()
        assert not ours.requires_grad
    groups = optim.parameter_groups(method, optim.Optim())
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {
        id(p) for part in (method.online, method.predictor) for p in part.parameters()
    }


def test_target_follows_the_updated_online_branch_once_a_step(
    method: BYOL, views: dict[str, torch.Tensor]
) -> None:
    before = [p.clone() for p in method.target.parameters()]
    carries = [method(views, at(50)).carry for _ in range(3)]  # three micro-batches
    for p, old in zip(method.target.parameters(), before, strict=True):
        assert torch.equal(p, old), "forward moved the target"
    move_online(method)
    method.after_step(at(50), carries)
    tau = 0.95  # half way from 0.9 to 1
    for p, old, new in zip(
        method.target.parameters(), before, method.online.parameters(), strict=True
    ):
        torch.testing.assert_close(p, tau * old + (1 - tau) * new.detach())


def test_running_statistics_of_the_target_are_its_own(
    method: BYOL, views: dict[str, torch.Tensor]
) -> None:
    move_online(method)  # the branches differ, so their activations do
    method(views, at(0))
    before = {k: v.clone() for k, v in method.target.named_buffers()}
    method.after_step(at(0), [{}])
    online = dict(method.online.named_buffers())
    for key, value in method.target.named_buffers():
        assert torch.equal(value, before[key]), f"{key} was averaged"
        if key.endswith("num_batches_tracked"):
            assert value.item() == 2  # one a view
            assert value.dtype == torch.int64
        elif key != "backbone.bn1.running_mean":
            assert not torch.equal(value, online[key]), f"{key} was copied"


def test_every_view_goes_through_batchnorm_alone(
    method: BYOL, views: dict[str, torch.Tensor]
) -> None:
    seen: dict[nn.Module, list[int]] = {method.online: [], method.target: []}
    for branch in seen:
        branch.register_forward_hook(lambda m, args, _: seen[m].append(len(args[0])))
    predictor: list[torch.Tensor] = []
    method.predictor.register_forward_hook(lambda *args: predictor.append(args[2].detach()))
    method(views, at(0))
    assert list(seen.values()) == [[6, 6], [6, 6]]
    method({"global": views["global"] * torch.tensor([1.0, 50.0]).view(2, 1, 1, 1, 1)}, at(0))
    assert torch.equal(predictor[0], predictor[2])  # whatever the other view is


def test_target_is_in_the_checkpoint(method: BYOL, views: dict[str, torch.Tensor]) -> None:
    move_online(method)
    method(views, at(0))
    method.after_step(at(0), [{}])
    backbone = build("resnet8", image_size=16, options={"width": 4, "stem": "patch"})
    other = BYOL(method.config, backbone)
    other.load_state_dict(method.state_dict())
    ours, theirs = method.target.state_dict(), other.target.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_heads_are_the_papers(method: BYOL) -> None:
    for head, inputs in ((method.online.projector, 16), (method.predictor, 8)):
        kinds = [type(layer) for layer in head]
        assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
        assert head[0].weight.shape == (16, inputs)
        assert head[3].weight.shape == (8, 16)
        assert head[3].bias is None


def test_other_numbers_of_views_are_refused(method: BYOL) -> None:
    with pytest.raises(UsageError, match="two global views of each image, not 3"):
        method({"global": torch.zeros(3, 2, 3, 16, 16)}, at(0))


def test_views_are_asymmetric() -> None:
    first, second = byol.recipe("paper", 224).views
    assert (first.name, second.name) == ("global", "global")
    assert (first.blur, first.solarize) == (1.0, 0.0)
    assert (second.blur, second.solarize) == (0.1, 0.2)


def test_spread_is_one_on_the_sphere_and_zero_after_a_collapse() -> None:
    z = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert spread(z).item() == pytest.approx(1, abs=0.02)
    assert spread(7 * z).item() == pytest.approx(spread(z).item())
    assert spread(torch.ones(9, 16)).item() == pytest.approx(0, abs=1e-6)
