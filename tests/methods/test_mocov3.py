from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from ranks import Ranks
from torch import Tensor, nn

from selfsame import backbones, dist, methods, optim
from selfsame.backbones import wrap
from selfsame.errors import UsageError
from selfsame.methods.mocov3 import MoCoV3, Settings, ctr
from selfsame.recipe import with_settings
from selfsame.types import Progress


def build(*, seed: int = 0, **settings: object) -> MoCoV3:
    """MoCo v3 on an encoder of six numbers, in float64."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh())
    chosen = {"hidden": 7, "output": 4, "momentum": 0.9} | settings
    return MoCoV3(Settings.model_validate(chosen), wrap(layers, torch.zeros(2, 6))).double().train()


def views(batch: int = 8, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, 6, dtype=torch.float64, generator=generator)


def at(step: int, total: int = 10, epoch: float = 0.0) -> Progress:
    return Progress(step, total, 8 * step, epoch)


def key_parameters(method: MoCoV3) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter of the momentum encoder with its fellow of the base encoder."""
    yield from zip(method.key_backbone.parameters(), method.backbone.parameters(), strict=True)
    yield from zip(method.key_projector.parameters(), method.projector.parameters(), strict=True)


# --- the loss ---


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_keys_that_are_orthogonal_to_all_other_queries(tau: float) -> None:
    z = 3 * torch.eye(5, dtype=torch.float64)
    loss, found, _ = ctr(z, z, tau)
    assert loss.item() == pytest.approx(2 * tau * math.log(1 + 4 * math.exp(-1 / tau)))
    assert found == 1
    _, found, _ = ctr(z, z.roll(1, 0), tau)
    assert found == 0


def test_equal_similarities_give_the_log_of_the_batch() -> None:
    loss, *_ = ctr(torch.ones(8, 3), torch.ones(8, 3), 0.2)
    assert loss.item() == pytest.approx(0.4 * math.log(8))


def test_lengths_do_not_matter_and_keys_get_no_gradient() -> None:
    q, k = views().requires_grad_()
    loss, *_ = ctr(q, k, 0.2)
    torch.testing.assert_close(ctr(3 * q, 7 * k, 0.2)[0], loss)
    grad_q, grad_k = torch.autograd.grad(loss, (q, k), allow_unused=True)
    assert grad_k is None
    assert grad_q.abs().max() > 0
    torch.testing.assert_close((grad_q * q).sum(1), torch.zeros(8, dtype=torch.float64))


def test_low_precision_stays_finite() -> None:
    q, k = torch.randn(2, 8, 16).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss, *_ = ctr(q, k, 0.01)
    assert loss.dtype == torch.float32
    assert loss.isfinite()


def on_a_rank(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mine = q.chunk(dist.world_size())[dist.rank()].clone().requires_grad_()
    loss, found, _ = ctr(mine, k.chunk(dist.world_size())[dist.rank()], 0.2)
    loss.backward()
    return loss.detach(), mine.grad, found


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    q, k = views()
    (loss0, grad0, found0), (loss1, grad1, found1) = ranks(on_a_rank, q, k)
    loss, grad, found = on_a_rank(q, k)
    torch.testing.assert_close((loss0 + loss1) / 2, loss)
    torch.testing.assert_close(torch.cat([grad0, grad1]) / 2, grad)
    torch.testing.assert_close((found0 + found1) / 2, found)


def test_the_views_may_change_places() -> None:
    x = views()
    loss = build()({"global": x}, at(0)).loss
    torch.testing.assert_close(build()({"global": x.flip(0)}, at(0)).loss, loss)


def test_two_views_are_needed() -> None:
    with pytest.raises(UsageError, match="two views"):
        build()({"global": torch.zeros(3, 4, 6, dtype=torch.float64)}, at(0))


def test_each_view_is_normalised_by_itself() -> None:
    """BatchNorm cancels the shift of a whole view, unless its statistics are those of both."""
    method, x = build(), views()
    loss = method({"global": x}, at(0)).loss
    x[1] += 50.0
    torch.testing.assert_close(method({"global": x}, at(0)).loss, loss)


# --- the momentum encoder ---


def test_only_the_base_encoder_and_the_predictor_are_trained() -> None:
    method = build()
    assert all(torch.equal(key, base) for key, base in key_parameters(method))
    groups = optim.parameter_groups(method, optim.Optim())
    trained = {id(p) for group in groups for p in group["params"]}
    base = {id(base) for _, base in key_parameters(method)}
    assert trained == base | {id(p) for p in method.predictor.parameters()}


@pytest.mark.parametrize(("step", "total"), [(0, 10), (4, 10), (8, 9), (99, 1000)])
def test_momentum_rises_with_a_cosine_of_the_step(step: int, total: int) -> None:
    momentum = 1 - 0.1 * (1 + math.cos(math.pi * (step + 1) / total)) / 2
    for epoch in (0.0, 3.7):
        method = build()
        with torch.no_grad():
            for _, base in key_parameters(method):
                base.add_(1.0)
        before = [key.clone() for key, _ in key_parameters(method)]
        method.after_step(at(step, total, epoch), [{}, {}, {}])  # once, however many micro-batches
        for old, (key, base) in zip(before, key_parameters(method), strict=True):
            torch.testing.assert_close(key.data, momentum * old + (1 - momentum) * base.data)


def test_running_statistics_of_the_momentum_encoder_are_its_own() -> None:
    method, x = build(), views()
    with torch.no_grad():
        method.backbone.module[0].weight.mul_(2)
    method({"global": x}, at(0))
    mine, theirs = dict(method.key_backbone.named_buffers()), dict(method.backbone.named_buffers())
    assert not torch.allclose(mine["module.1.running_var"], theirs["module.1.running_var"])
    assert mine["module.1.num_batches_tracked"] == 2
    before = {name: buffer.clone() for name, buffer in mine.items()}
    theirs["module.1.num_batches_tracked"].add_(7)
    method.after_step(at(0), [{}])
    assert all(torch.equal(mine[name], before[name]) for name in before)


def test_the_authors_order_of_a_step_gives_the_same_run() -> None:
    """They move the momentum encoder, with the step's momentum, before it computes keys."""
    ours, theirs = build(), build()
    for step in range(5):
        x = views(8, step)
        theirs.update_momentum_encoder(1 - 0.1 * (1 + math.cos(math.pi * step / 5)) / 2)
        losses = []
        for method in (ours, theirs):
            out = method({"global": x}, at(step, 5))
            losses.append(out.loss.detach())
            method.zero_grad()
            out.loss.backward()
            with torch.no_grad():
                for p in method.parameters():
                    p.sub_(0 if p.grad is None else p.grad)
        ours.after_step(at(step, 5), [out.carry])
        torch.testing.assert_close(*losses)
    assert not torch.allclose(*next(key_parameters(ours)))


def test_state_dict_is_the_whole_memory() -> None:
    method, other = build(), build(seed=9)
    with torch.no_grad():
        for _, base in key_parameters(method):
            base.mul_(1.1)
    method.after_step(at(0), [{}])
    other.load_state_dict(method.state_dict())
    loss, same = (each({"global": views()}, at(1)).loss for each in (method, other))
    assert torch.equal(loss, same)


# --- the two designs ---


def test_heads_of_the_two_designs() -> None:
    def kinds(head: nn.Module) -> list[str]:
        return [type(m).__name__ for m in head if not isinstance(m, nn.ReLU)]

    vit, resnet = build(), build(projector_layers=2, predictor_norm=False)
    pair = ["Linear", "BatchNorm1d"]
    assert kinds(vit.projector) == 3 * pair
    assert kinds(vit.predictor) == 2 * pair
    assert kinds(resnet.projector) == 2 * pair
    assert kinds(resnet.predictor) == [*pair, "Linear"]
    for head in (vit.projector, vit.predictor, resnet.projector):
        assert not head[-1].affine
    for head in (vit.projector, vit.predictor, resnet.projector, resnet.predictor):
        assert all(m.bias is None for m in head if isinstance(m, nn.Linear))


def test_the_patch_projection_of_the_paper_stays_as_it_was_drawn() -> None:
    recipe = methods.recipe("mocov3", "paper", 32)
    options = recipe.backbone.options | {"width": 16, "depth": 1, "heads": 2, "patch": 16}
    vit = backbones.build(recipe.backbone.name, image_size=32, options=options)
    method = MoCoV3(Settings(hidden=8, output=4), vit).train()
    method({"global": torch.randn(2, 4, 3, 32, 32)}, at(0)).loss.backward()
    patch = vit.patch_embed.proj
    assert patch.weight.grad is None
    assert all(p.grad is not None for p in vit.block.parameters())
    method.after_step(at(0), [{}])
    assert torch.equal(method.key_backbone.patch_embed.proj.weight, patch.weight)


def test_resnet_50_by_settings() -> None:
    paper = methods.recipe("mocov3", "paper", 224)
    settings = "method.temperature=1.0 method.projector_layers=2 method.predictor_norm=false "
    settings += "views.scale=[0.2,1.0] optim.name=lars optim.lr=0.3 optim.weight_decay=1e-6 "
    settings += "optim.exclude_1d=true optim.warmup=10"
    resnet = with_settings(paper, settings.split())
    assert optim.scaled_lr(resnet.optim, 4096) == pytest.approx(4.8)
    assert resnet.optim == optim.Optim(name="lars", lr=0.3, weight_decay=1e-6)
    expected = Settings(temperature=1.0, projector_layers=2, predictor_norm=False)
    assert resnet.method == expected
