from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from ranks import Ranks
from torch import Tensor, nn

from selfsame import dist, methods, optim
from selfsame.backbones import wrap
from selfsame.errors import UsageError
from selfsame.methods.moco import MoCo, Settings, info_nce, similarities
from selfsame.nn.precision import unit
from selfsame.nn.queue import Queue
from selfsame.nn.shuffle import in_groups, shuffle, unshuffle
from selfsame.recipe import with_settings
from selfsame.types import Progress

NOW = Progress(0, 10, 0, 0.0)


def build(*, norm: bool = True, seed: int = 0, **settings: object) -> MoCo:
    """MoCo on an encoder of six numbers, in float64."""
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 5), *([nn.BatchNorm1d(5)] if norm else []), nn.Tanh()]
    backbone = wrap(nn.Sequential(*layers), torch.zeros(2, 6))
    chosen = {"queue": 12, "output": 4, "bn_groups": 1, "momentum": 0.9} | settings
    return MoCo(Settings.model_validate(chosen), backbone).double().train()


def views(batch: int = 8, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, 6, dtype=torch.float64, generator=generator)


def key_parameters(method: MoCo) -> Iterator[tuple[Tensor, Tensor]]:
    """Each parameter of the key encoder with its fellow of the query encoder."""
    yield from zip(method.key_backbone.parameters(), method.backbone.parameters(), strict=True)
    yield from zip(method.key_head.parameters(), method.head.parameters(), strict=True)


# --- the queue ---


@pytest.mark.parametrize("size", [1, 5, 8])
@pytest.mark.parametrize("batches", [[3, 3, 3, 3], [4, 4, 4], [5], [8, 1], [11, 2, 23], [0, 2]])
def test_queue_holds_the_newest_as_if_they_came_one_by_one(size: int, batches: list[int]) -> None:
    queue = Queue(size, 2)
    expected, pointer = queue.keys.clone(), 0
    for count in batches:
        keys = torch.randn(count, 2)
        queue.enqueue(keys)
        for key in keys:
            expected[pointer] = key
            pointer = (pointer + 1) % size
        assert torch.equal(queue.keys, expected)
        assert int(queue.pointer) == pointer


def test_queue_starts_with_unit_vectors_and_is_all_state() -> None:
    queue = Queue(9, 4)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(9))
    assert not list(queue.parameters())
    assert queue.state_dict().keys() == {"keys", "pointer"}
    assert queue.pointer.dtype == torch.int64
    queue.enqueue(torch.ones(2, 4, dtype=torch.bfloat16))
    assert queue.keys.dtype == torch.float32


# --- the loss ---


def test_equal_similarities_give_the_log_of_the_candidates() -> None:
    q = unit(torch.ones(3, 4))
    logits = similarities(q, q, q[:1].expand(10, -1), 0.07)
    assert logits.shape == (3, 11)
    assert info_nce(logits).item() == pytest.approx(math.log(11))


@pytest.mark.parametrize("tau", [0.07, 0.2, 1.0])
def test_a_queue_that_is_orthogonal_to_the_queries(tau: float) -> None:
    eye = torch.eye(6, dtype=torch.float64)
    loss = info_nce(similarities(eye[:2], eye[:2], eye[2:], tau))
    assert loss.item() == pytest.approx(math.log(1 + 4 * math.exp(-1 / tau)))


def test_loss_is_float32_in_low_precision() -> None:
    x = torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        q = unit(x.bfloat16())
        logits = similarities(q, q, unit(x), 0.07)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits[:, 0], torch.full((5,), 1 / 0.07))


def test_no_gradient_reaches_keys_or_queue() -> None:
    method, x = build(shuffle=False), views().requires_grad_()
    method({"global": x}, NOW).loss.backward()
    assert x.grad is not None
    assert x.grad[0].abs().max() > 0
    assert not x.grad[1].any()
    assert not method.queue.keys.requires_grad
    assert all(key.grad is None and query.grad is not None for key, query in key_parameters(method))


def test_two_views_are_needed() -> None:
    with pytest.raises(UsageError, match="two views"):
        build()({"global": torch.zeros(3, 4, 6, dtype=torch.float64)}, NOW)


# --- the queue and the key encoder in a step ---


def test_a_query_is_scored_against_the_queue_before_its_own_key_joins() -> None:
    method, x = build(norm=False, shuffle=False), views()
    q, k = method.encode(x, None)
    out = method({"global": x}, NOW)
    before = info_nce(similarities(q, k, method.queue.keys, 0.2))
    method.queue.enqueue(k)
    after = info_nce(similarities(q, k, method.queue.keys, 0.2))
    torch.testing.assert_close(out.loss, before)
    assert after > before + 0.1


def test_one_update_a_step_from_all_micro_batches() -> None:
    method = build(queue=12)
    carries = [method({"global": views(5, seed)}, NOW).carry for seed in (1, 2, 3)]
    with torch.no_grad():
        for _, query in key_parameters(method):
            query.add_(1.0)  # an optimiser's step
    expected = [0.9 * key + 0.1 * query for key, query in key_parameters(method)]
    method.after_step(NOW, carries)
    torch.testing.assert_close([key.data for key, _ in key_parameters(method)], expected)
    keys = torch.cat([carry["keys"] for carry in carries])
    assert int(method.queue.pointer) == 3
    assert torch.equal(method.queue.keys.roll(-3, 0), keys[3:])


def test_key_encoder_starts_equal_and_no_optimiser_knows_it() -> None:
    method = build()
    assert all(torch.equal(key, query) for key, query in key_parameters(method))
    groups = optim.parameter_groups(method, optim.Optim())
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(query) for _, query in key_parameters(method)}


def test_key_encoder_keeps_running_statistics_of_its_own() -> None:
    method, x = build(), views()
    out = method({"global": torch.stack([x[0], 5 + x[1]])}, NOW)
    mine, theirs = dict(method.key_backbone.named_buffers()), dict(method.backbone.named_buffers())
    assert not torch.allclose(mine["module.1.running_mean"], theirs["module.1.running_mean"])
    before = {name: buffer.clone() for name, buffer in mine.items()}
    theirs["module.1.num_batches_tracked"].add_(7)
    method.after_step(NOW, [out.carry])
    assert all(torch.equal(mine[name], before[name]) for name in before)


def test_the_authors_order_of_a_step_gives_the_same_run() -> None:
    """They move the key encoder, compute keys, learn; here it moves after the optimiser."""
    ours, theirs = build(norm=False, shuffle=False), build(norm=False, shuffle=False)
    for step in range(4):
        x = views(5, step)
        theirs.update_key_encoder()
        losses = []
        for method in (ours, theirs):
            out = method({"global": x}, NOW)
            losses.append(out.loss.detach())
            method.zero_grad()
            out.loss.backward()
            with torch.no_grad():
                for p in method.parameters():
                    p.sub_(0 if p.grad is None else p.grad)
            if method is ours:
                method.after_step(NOW, [out.carry])
            else:
                method.queue.enqueue(out.carry["keys"])
        torch.testing.assert_close(*losses)
        assert torch.allclose(ours.queue.keys, theirs.queue.keys)
    assert not torch.allclose(*next(key_parameters(ours)))


def test_state_dict_is_the_whole_memory() -> None:
    method = build()
    for step in range(3):
        out = method({"global": views(5, step)}, NOW)
        with torch.no_grad():
            for _, query in key_parameters(method):
                query.mul_(1.1)
        method.after_step(NOW, [out.carry])
    other = build(seed=9)
    other.load_state_dict(method.state_dict())
    results = []
    for each in (method, other):
        torch.manual_seed(0)
        out = each({"global": views(5, 7)}, NOW)
        each.after_step(NOW, [out.carry])
        results.append((out.loss.detach(), each.queue.keys, each.queue.pointer))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# --- shuffling BN ---


def test_groups_do_not_see_each_other() -> None:
    method, x = build(bn_groups=4, shuffle=False), views(8)
    q, k = method.encode(x, None)
    changed = x.clone()
    changed[:, 6:] += 3 * torch.randn(2, 2, 6, dtype=torch.float64)
    q2, k2 = method.encode(changed, None)
    torch.testing.assert_close(q2[:6], q[:6])
    torch.testing.assert_close(k2[:6], k[:6])
    whole, _ = build(bn_groups=1).encode(x, None)
    assert not torch.allclose(q, whole)


def test_shuffled_keys_are_normalised_in_other_company_and_return_to_their_queries() -> None:
    method, x = build(bn_groups=4), views(8)
    permutation = torch.tensor([3, 6, 0, 7, 2, 5, 1, 4])
    q, k = method.encode(x, permutation)
    straight = method.encode(x, None)
    torch.testing.assert_close(q, straight[0])
    assert not torch.allclose(k, straight[1])
    for pair in permutation.view(4, 2):
        alone = method.key_head(method.key_backbone(x[1, pair]).pooled)
        torch.testing.assert_close(k[pair], F.normalize(alone, dim=1))


def test_one_group_makes_the_shuffle_void() -> None:
    method, x = build(bn_groups=1), views(8)
    shuffled, straight = method.encode(x, torch.randperm(8)), method.encode(x, None)
    torch.testing.assert_close(shuffled[1], straight[1])


def test_unshuffle_undoes_shuffle() -> None:
    x, permutation = torch.randn(7, 2, 3), torch.randperm(7)
    assert torch.equal(shuffle(x, permutation), x[permutation])
    assert torch.equal(unshuffle(shuffle(x, permutation), permutation), x)


@pytest.mark.parametrize("batch", [2, 3, 7, 17])
def test_no_group_is_a_single_image(batch: int) -> None:
    """BatchNorm cannot normalise one image: such a group would raise."""
    q, k = build(bn_groups=8).encode(views(batch), torch.randperm(batch))
    assert q.shape == k.shape == (batch, 4)


def test_groups_are_even() -> None:
    sizes = []
    in_groups(lambda x: sizes.append(len(x)) or x, torch.zeros(7, 2), 3)
    assert sizes == [3, 2, 2]


def a_step_on_a_rank(x: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    method = build(bn_groups=2)
    torch.manual_seed(3)
    out = method({"global": x.chunk(dist.world_size(), dim=1)[dist.rank()]}, NOW)
    out.loss.backward()
    method.after_step(NOW, [out.carry])
    grads = [query.grad for _, query in key_parameters(method)]
    return out.loss.detach(), grads, method.queue.keys.clone()


def test_two_ranks_equal_one_with_two_groups(ranks: Ranks) -> None:
    x = views(8)
    (loss0, grads0, queue0), (loss1, grads1, queue1) = ranks(a_step_on_a_rank, x)
    loss, grads, queue = a_step_on_a_rank(x)
    torch.testing.assert_close((loss0 + loss1) / 2, loss)
    torch.testing.assert_close([(a + b) / 2 for a, b in zip(grads0, grads1, strict=True)], grads)
    torch.testing.assert_close(queue0, queue)
    assert torch.equal(queue0, queue1)


# --- the versions ---


def test_heads_of_the_versions() -> None:
    first, second = build(layers=1), build()
    assert [type(m) for m in first.head] == [nn.Linear]
    assert [type(m) for m in second.head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert second.head[0].out_features == 5  # the encoder's width


def test_version_1_by_settings() -> None:
    paper = methods.recipe("moco", "paper", 224)
    settings = "method.layers=1 method.temperature=0.07 views.jitter=1.0 views.hue=0.4 "
    settings += "views.blur=0.0 optim.schedule=step optim.milestones=[0.6,0.8]"
    first = with_settings(paper, settings.split())
    at = [
        optim.rates(first.optim, 256, Progress(step, 200, 0, 0.0), 1).lr
        for step in (0, 119, 120, 160)
    ]
    assert at == pytest.approx([0.03, 0.03, 0.003, 0.0003])
    assert first.method == Settings(layers=1, temperature=0.07)
