import math

import pytest
import torch
from ranks import Ranks
from torch import Tensor

from selfsame import backbones, dist, methods, optim
from selfsame.errors import UsageError
from selfsame.methods.dino import DINO, Settings
from selfsame.nn.heads import DINOHead
from selfsame.nn.selfdistill import (
    RAMP_SHARE,
    dino_loss,
    entropy,
    multi_crop,
    teacher_probabilities,
    teacher_temperature,
    update_center,
)
from selfsame.types import Progress

K = 12
SIZE = {"hidden": 8, "bottleneck": 4, "outputs": K}


def vit(**options: object) -> backbones.Backbone:
    small = {"width": 8, "depth": 2, "heads": 2, "patch": 4}
    return backbones.build("vit_tiny", image_size=8, options=small | options)


def make(backbone: backbones.Backbone | None = None, **settings: object) -> DINO:
    torch.manual_seed(0)
    return DINO(Settings(**(SIZE | settings)), vit() if backbone is None else backbone)


def crops(local: int = 3, batch: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    views = {"global": torch.randn(2, batch, 3, 8, 8, generator=generator)}
    if local:
        views["local"] = torch.randn(local, batch, 3, 4, 4, generator=generator)
    return views


def at(step: int, total: int = 100, steps_per_epoch: int = 10) -> Progress:
    return Progress(step, total, step * 8, step / steps_per_epoch)


def test_uniform_outputs_give_the_log_of_the_prototypes() -> None:
    p = torch.full((2, 3, K), 1 / K)
    assert dino_loss(p, torch.zeros(4, 3, K), 0.1).item() == pytest.approx(math.log(K))
    assert entropy(p).item() == pytest.approx(math.log(K))


def test_equals_the_definition_and_leaves_out_a_view_with_itself() -> None:
    p, s = torch.rand(2, 3, K).softmax(-1), torch.randn(5, 3, K)
    losses = [
        -(p[u, b] * (s[v, b] / 0.2).log_softmax(0)).sum()
        for u in range(2)
        for v in range(5)
        for b in range(3)
        if u != v
    ]
    torch.testing.assert_close(dino_loss(p, s, 0.2), torch.stack(losses).mean())
    s = s[:2].requires_grad_()
    dino_loss(p[:1], s, 0.2).backward()
    assert s.grad[0].abs().max() == 0  # the only target is that of view 0 itself
    assert s.grad[1].abs().max() > 0


def test_one_view_has_no_other() -> None:
    with pytest.raises(UsageError, match="two views"):
        dino_loss(torch.ones(1, 3, K), torch.ones(1, 3, K), 0.1)


def test_extreme_logits_in_low_precision_stay_finite() -> None:
    student = (1e4 * torch.randn(3, 4, K)).half().requires_grad_()
    logits = (1e4 * torch.randn(2, 4, K)).half()
    with torch.autocast("cpu", torch.bfloat16):
        loss = dino_loss(teacher_probabilities(logits, torch.zeros(K), 0.04), student, 0.1)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_crops_of_one_size_go_through_together_and_keep_their_order() -> None:
    sizes = []

    def network(x: Tensor) -> Tensor:
        sizes.append(tuple(x.shape[::3]))
        return x.mean((1, 2, 3))

    x = [torch.full((2, 3, s, s), float(i)) for i, s in enumerate((8, 8, 4, 4, 4, 8))]
    assert multi_crop(network, x).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert sizes == [(4, 8), (6, 4), (2, 8)]


@pytest.mark.parametrize("local", [0, 1, 4])
def test_any_number_of_local_crops_and_none_is_a_target(local: int) -> None:
    method, views = make(), crops(local)
    seen = []
    method.teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    out = method(views, at(0))
    assert out.loss.isfinite()
    assert len(seen) == 1
    assert torch.equal(seen[0], views["global"].flatten(0, 1))


def test_only_the_student_gets_gradients() -> None:
    method = make()
    method(crops(), at(0)).loss.backward()
    for name, p in method.named_parameters():
        of_teacher = name.startswith("teacher")
        assert (p.grad is None) == (of_teacher or not p.requires_grad), name


def test_the_centre_moves_after_the_step_by_the_mean_of_raw_logits() -> None:
    method, views = make(center_momentum=0.9), crops()
    with torch.no_grad():
        method.center.normal_()
        raw = method.teacher_head(method.teacher(views["global"].flatten(0, 1)).pooled)
    before = method.center.clone()
    out = method(views, at(0))
    assert torch.equal(method.center, before)
    # two micro-batches: one update, from both
    other = {"center": torch.randn(K)}
    method.after_step(at(0), [out.carry, other])
    mean = (raw.mean(0) + other["center"]) / 2
    torch.testing.assert_close(method.center, 0.9 * before + 0.1 * mean)


def test_the_centre_is_subtracted_before_the_temperature() -> None:
    logits, center = torch.randn(3, K), torch.randn(K)
    p = teacher_probabilities(logits, center, 0.5)
    torch.testing.assert_close(p, (2 * logits - 2 * center).softmax(-1))


def test_teacher_and_centre_are_in_the_state() -> None:
    method = make()
    method.after_step(at(0), [method(crops(), at(0)).carry])
    again = make()
    again.load_state_dict(method.state_dict())
    assert torch.equal(again.center, method.center)
    assert method.center.abs().max() > 0
    assert {"teacher.cls_token", "teacher_head.last_layer.weight_v"} <= method.state_dict().keys()


def test_the_teacher_starts_equal_and_follows_by_the_step_of_the_run() -> None:
    method = make(momentum=0.9)
    teacher, student = method.teacher_head.mlp[0].weight, method.head.mlp[0].weight
    assert torch.equal(teacher, student)
    with torch.no_grad():
        student += 1
    before = teacher.clone()
    carry = [{"center": torch.zeros(K)}] * 2  # two micro-batches, one update
    method.after_step(at(0), carry)
    torch.testing.assert_close(teacher - before, torch.full_like(before, 0.1))
    with torch.no_grad():
        teacher.copy_(before)
    method.after_step(at(50), carry)  # half way, the cosine has 0.95
    torch.testing.assert_close(teacher - before, torch.full_like(before, 0.05))
    with torch.no_grad():
        teacher.copy_(before)
    method.after_step(at(100), carry)
    assert torch.equal(teacher, before)


def test_batch_norm_of_the_teacher_is_its_own() -> None:
    resnet = backbones.build("resnet10", image_size=16, options={"width": 4, "stem": "patch"})
    method = make(resnet, head_norm=True, momentum=0.5).train()
    views = {k: torch.randn(*v.shape[:3], 16, 16) for k, v in crops().items()}
    method.after_step(at(0), [method(views, at(0)).carry])
    assert method.teacher.bn1.num_batches_tracked.dtype == torch.int64
    assert method.teacher.bn1.num_batches_tracked == 1
    views["local"] = 5 * views["local"]
    running = method.teacher.bn1.running_mean.clone()
    method.after_step(at(0), [{"center": torch.zeros(K)}])
    assert torch.equal(method.teacher.bn1.running_mean, running)
    assert not torch.equal(method.backbone.bn1.running_mean, running)


def test_the_teacher_drops_no_paths() -> None:
    method = make(vit(drop_path=0.9))
    dropped = [m.drop_prob for m in method.teacher.modules() if hasattr(m, "drop_prob")]
    assert dropped == [0.0, 0.0]
    assert max(m.drop_prob for m in method.backbone.modules() if hasattr(m, "drop_prob")) == 0.9


def test_the_temperature_rises_to_its_end_and_stays() -> None:
    taus = [teacher_temperature(at(step, 1000), 3, 0.04, 0.07) for step in range(1000)]
    assert taus[0] == 0.04
    assert taus[28] < taus[29] == pytest.approx(0.07)  # the 30th step is the last of the ramp
    assert set(taus[30:]) == {0.07}
    assert taus == sorted(taus)
    short = [teacher_temperature(at(step, 10), 30, 0.04, 0.07) for step in range(10)]
    assert short[0] == 0.04
    assert set(short[round(10 * RAMP_SHARE) :]) == {0.07}
    assert teacher_temperature(at(0), 0, 0.04, 0.07) == 0.07
    delayed = [teacher_temperature(at(s, 1000), 3, 0.04, 0.07, delay=2) for s in range(1000)]
    assert set(delayed[:21]) == {0.04}
    assert delayed[20:900] == pytest.approx(taus[:880])


def test_the_last_layer_rests_for_the_first_epoch() -> None:
    method = make(freeze_last=1.0)
    last = list(method.head.last_layer.parameters())
    rests = [list(method.frozen(at(step, 1000))) for step in (0, 9, 10, 500)]
    assert [len(found) for found in rests] == [2, 2, 0, 0]
    assert all(a is b for a, b in zip(rests[0], last, strict=True))
    assert not list(method.frozen(at(3, 20)))  # of two epochs only a tenth


def test_prototypes_of_fixed_scale_give_cosines() -> None:
    torch.manual_seed(0)
    head, x = DINOHead(6, K, hidden=8, bottleneck=4), torch.randn(5, 6)
    out = head(x)
    with torch.no_grad():
        head.last_layer.weight_v *= torch.rand(K, 1) + 0.5
    torch.testing.assert_close(head(x), out)
    assert out.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(head.embed(x).norm(dim=1), torch.ones(5))
    assert not head.last_layer.weight_g.requires_grad
    free = DINOHead(6, K, hidden=8, bottleneck=4, fixed_scale=False)
    free(x).square().sum().backward()
    assert free.last_layer.weight_g.grad.abs().max() > 0
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in free.modules())


def test_prototypes_keep_float32_under_autocast() -> None:
    head, z = DINOHead(6, K, hidden=8, bottleneck=4), torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = head.last_layer(z)
        assert head(torch.randn(5, 6)).dtype == torch.float32
    assert torch.equal(out, head.last_layer(z))


def test_the_paper_clips_each_tensor_alone() -> None:
    recipe = methods.recipe("dino", "paper")
    module = torch.nn.Linear(2, 1)
    module.weight.grad, module.bias.grad = torch.tensor([[30.0, 40.0]]), torch.tensor([2.0])
    optim.clip(module, recipe.optim)
    torch.testing.assert_close(module.weight.grad.norm(), torch.tensor(3.0))
    assert module.bias.grad.item() == 2.0


def test_the_paper_ends_at_its_rates() -> None:
    recipe = methods.recipe("dino", "paper")
    last = optim.rates(recipe.optim, recipe.batch_size, at(10**6, 10**6), 1250)
    assert last == pytest.approx((1e-6, 0.4))
    first = optim.rates(recipe.optim, recipe.batch_size, at(0, 10**6), 1250)
    assert first == pytest.approx((0.0, 0.04))
    assert optim.scaled_lr(recipe.optim, recipe.batch_size) == pytest.approx(2e-3)


def center_of(x: Tensor) -> Tensor:
    center = torch.ones(K, dtype=torch.float64)
    micro = x.chunk(2)[dist.rank()].chunk(2) if dist.world_size() == 2 else [x]
    update_center(center, [part.mean(0) for part in micro], 0.7)
    return center


def test_the_centre_is_the_same_on_two_ranks_as_on_one(ranks: Ranks) -> None:
    x = torch.randn(8, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    first, second = ranks(center_of, x)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, center_of(x))
