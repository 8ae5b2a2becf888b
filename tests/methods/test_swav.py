import math

import pytest
import torch
import torch.nn.functional as F
from ranks import Ranks
from torch import Tensor, nn

from selfsame import dist, methods, optim
from selfsame.errors import UsageError
from selfsame.methods import swav
from selfsame.methods.swav import Settings, SwAV, codes, enqueue, is_full, swapped_prediction
from selfsame.types import Backbone, Features, Progress


class Flat(Backbone):
    """Features are four pixels: whatever the side, the first 2 x 2."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 4
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Features:
        return Features(self.layer(x[:, 0, :2, :2].flatten(1)), None, (0, 0))


def at(epoch: float) -> Progress:
    return Progress(int(10 * epoch), 1000, int(40 * epoch), epoch)


def small(**settings: object) -> SwAV:
    """A method in float64 without BatchNorm, so that images meet in the loss alone."""
    torch.manual_seed(0)
    config = Settings(**({"prototypes": 6, "hidden": 8, "output": 5, "queue_start": 0} | settings))
    method = SwAV(config, Flat())
    method.head = nn.Sequential(nn.Linear(4, 5))
    return method.double()


def crops(images: int = 4, local: int = 3, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    views = {"global": torch.randn(2, images, 1, 4, 4, dtype=torch.float64, generator=generator)}
    if local:
        shape = (local, images, 1, 2, 2)
        views["local"] = torch.randn(shape, dtype=torch.float64, generator=generator)
    return views


def test_the_loss_of_a_collapsed_network_is_the_log_of_the_prototypes() -> None:
    s = torch.zeros(5, 3, 30)
    q = codes(s[:2], None, 0.05, 3)
    torch.testing.assert_close(q, torch.full((2, 3, 30), 1 / 30))
    assert swapped_prediction(s, q, 0.1).item() == pytest.approx(math.log(30))


def test_each_crop_predicts_the_codes_of_the_others_and_never_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    s = torch.randn(4, 3, 7, dtype=torch.float64, generator=generator)
    q = torch.rand(2, 3, 7, dtype=torch.float64, generator=generator)
    expected = 0.0
    for i in range(2):
        for v in {0, 1, 2, 3} - {i}:
            for b in range(3):
                expected -= float(q[i, b] @ F.log_softmax(s[v, b] / 0.1, 0)) / (2 * 3 * 3)
    assert swapped_prediction(s, q, 0.1).item() == pytest.approx(expected)
    # with one crop of codes, only the other crop learns
    s.requires_grad_()
    swapped_prediction(s[:2], q[:1], 0.1).backward()
    assert (s.grad[0] == 0).all()
    assert (s.grad[1] != 0).all()


def test_codes_have_no_gradient() -> None:
    s = torch.randn(2, 3, 4, requires_grad=True)
    assert not codes(s, torch.randn(2, 5, 4), 0.05, 3).requires_grad


def test_local_crops_give_no_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = swav.sinkhorn

    def spy(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
        seen.append(scores)
        return real(scores, epsilon, iterations)

    monkeypatch.setattr(swav, "sinkhorn", spy)
    method, views = small(), crops()
    method(views, at(1))
    z = swav.embed(method.backbone, method.head, {"global": views["global"]})
    torch.testing.assert_close(torch.stack(seen), z @ method.prototypes.weight.T)


def test_no_local_crops_and_too_few_global_ones() -> None:
    method = small()
    assert method(crops(local=0), at(0)).loss.isfinite()
    with pytest.raises(UsageError, match="1 global views"):
        method({"global": crops()["global"][:1], "local": crops()["local"]}, at(0))
    with pytest.raises(UsageError, match="needs 2"):
        small(codes=1)({"global": crops()["global"][:1]}, at(0))


def test_prototypes_have_unit_length_before_every_forward() -> None:
    method = small()
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(6).double())
    method(crops(), at(2)).loss.backward()
    with torch.no_grad():
        method.prototypes.weight -= method.prototypes.weight.grad
    assert not torch.allclose(method.prototypes.weight.norm(dim=1), torch.ones(6).double())
    method.after_step(at(2), [{}])
    torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(6).double())
    assert method.prototypes.weight.requires_grad


def test_prototypes_rest_for_exactly_one_epoch() -> None:
    method = small()
    assert method.frozen(Progress(0, 30, 0, 0.0)) == [method.prototypes.weight]
    assert method.frozen(Progress(9, 30, 36, 0.9)) == [method.prototypes.weight]
    assert method.frozen(Progress(10, 30, 40, 1.0)) == []


def test_the_newest_embeddings_come_first_and_the_oldest_leave() -> None:
    queue = torch.zeros(2, 5, 1)
    for step in range(1, 4):
        queue = enqueue(queue, torch.full((2, 2, 1), float(step)))
        assert is_full(queue) == (step == 3)
    assert queue[1, :, 0].tolist() == [3, 3, 2, 2, 1]
    assert enqueue(queue, torch.arange(14.0).reshape(2, 7, 1))[0, :, 0].tolist() == [0, 1, 2, 3, 4]


def test_the_queue_is_filled_from_its_epoch_and_used_once_full() -> None:
    method = small(queue=8, queue_start=2)
    views, other = crops(), crops(seed=1)
    plain = small()(views, at(3)).loss
    method.after_step(at(1.9), [method(other, at(1.9)).carry])
    assert not method.queue.any()
    for images in (4, 8):
        torch.testing.assert_close(method(views, at(3)).loss, plain)  # not full yet
        method.after_step(at(2), [method(other, at(2)).carry])
        assert method.queue.any(-1).sum() == 2 * images
    assert not torch.allclose(method(views, at(3)).loss, plain)
    torch.testing.assert_close(method(views, at(1)).loss, plain)
    assert "queue" in method.state_dict()


def test_the_queue_is_scored_before_the_batch_enters_it() -> None:
    method = small(queue=4)
    method.after_step(at(0), [method(crops(seed=1), at(0)).carry])
    views = crops()
    z = swav.embed(method.backbone, method.head, views)
    s = z @ method.prototypes.weight.T
    q = codes(s[:2], method.queue @ method.prototypes.weight.T, 0.05, 3)
    torch.testing.assert_close(method(views, at(0)).loss, swapped_prediction(s, q, 0.1))


def test_micro_batches_enter_the_queue_together() -> None:
    whole, parts = small(queue=6), small(queue=6)
    views = crops(local=0)
    whole.after_step(at(0), [whole(views, at(0)).carry])
    half = [{"global": views["global"][:, i : i + 2]} for i in (0, 2)]
    parts.after_step(at(0), [parts(part, at(0)).carry for part in half])
    torch.testing.assert_close(parts.queue, whole.queue)


def on_a_rank() -> list[Tensor]:
    method = small(queue=6)
    for seed in range(3):  # a step uses the queue of the one before
        own = {
            k: v.chunk(dist.world_size(), 1)[dist.rank()]
            for k, v in crops(images=6, seed=seed).items()
        }
        method.zero_grad()
        out = method(own, at(0))
        out.loss.backward()
        method.after_step(at(0), [out.carry])
    grads = [dist.mean(p.grad) for p in method.parameters()]
    return [dist.mean(out.loss.detach()), method.queue, *grads]


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    one = on_a_rank()
    for found in ranks(on_a_rank):
        for ours, expected in zip(found, one, strict=True):
            torch.testing.assert_close(ours, expected)


def test_collapse_shows_in_the_entropy() -> None:
    method = small()
    spread = method(crops(), at(0)).metrics["entropy"]
    with torch.no_grad():
        method.head[0].weight.zero_()
        method.prototypes.weight.zero_()
        method.prototypes.weight[:, 0] = torch.tensor([10.0, 0, 0, 0, 0, 0])
        method.head[0].bias.copy_(torch.tensor([1.0, 0, 0, 0, 0]))
    assert method(crops(), at(0)).metrics["entropy"] < 1e-6 < spread


def test_the_papers_learning_rates() -> None:
    made = methods.recipe("swav", "paper", 224)
    assert [(v.name, v.count, v.size) for v in made.views] == [("global", 2, 224), ("local", 6, 96)]
    total, epoch = 800 * 313, 313

    def lr(step: int) -> float:
        return optim.rates(made.optim, 4096, Progress(step, total, 0, 0), epoch).lr

    assert lr(0) == pytest.approx(0.3)
    assert lr(10 * epoch - 1) == pytest.approx(4.8)
    assert lr(total - 1) == pytest.approx(0.0048, rel=1e-4)
