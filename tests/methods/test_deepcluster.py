from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from ranks import Ranks
from torch import Tensor

from selfsame import dist
from selfsame.backbones import build
from selfsame.errors import UsageError
from selfsame.methods import deepcluster
from selfsame.methods.deepcluster import (
    DeepCluster,
    Settings,
    balanced_indices,
    pseudo_labels,
    weighted_loss,
)
from selfsame.nn.kmeans import Clustering
from selfsame.types import Progress

N = 16
START = Progress(0, 100, 0, 0.0)


def small(**settings: object) -> DeepCluster:
    torch.manual_seed(0)
    network = build("resnet10", image_size=8, options={"width": 4, "stem": "patch"})
    common = {"images": N, "clusters": 4, "components": 3}
    return DeepCluster(Settings(**(common | settings)), network).train()


def pictures() -> Tensor:
    """Image i shows colour i mod 4, with a little noise."""
    colours = torch.tensor([[3.0, -3, 0], [-3, 3, 3], [0, 0, 4], [-3, -3, -3]])
    noise = torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return colours[torch.arange(N) % 4][:, :, None, None] + 0.01 * noise


def sweep(order: Tensor | None = None, batch: int = 5) -> Iterator[tuple[Tensor, Tensor]]:
    for index in (torch.arange(N) if order is None else order).split(batch):
        yield index, pictures()[index]


def clustered(seed: int, method: DeepCluster | None = None, **options: object) -> DeepCluster:
    method = method or small()
    torch.manual_seed(seed)
    batches = list(sweep(**options))  # type: ignore[arg-type]
    method.before_epoch(START, iter(batches[dist.rank() :: dist.world_size()]))
    return method


def test_pseudo_labels_leave_no_gap() -> None:
    assert pseudo_labels(torch.tensor([7, 2, 2, 5, 7])).tolist() == [2, 0, 0, 1, 2]


def test_every_cluster_is_drawn_equally_often() -> None:
    assignment = torch.tensor([0] * 90 + [2] * 9 + [5])
    drawn = balanced_indices(assignment, 3000, np.random.RandomState(0))
    counts = assignment[drawn].bincount(minlength=6)
    assert counts[[1, 3, 4]].tolist() == [0, 0, 0]
    assert counts[[0, 2, 5]].sum() == 3000
    assert (counts[[0, 2, 5]] - 1000).abs().max() <= 3
    few = balanced_indices(assignment, 60, np.random.RandomState(0))
    big = few[assignment[few] == 0]
    assert len(big.unique()) == len(big)  # without replacement where there are enough


def test_weights_equal_uniform_sampling_over_clusters() -> None:
    label = torch.tensor([0] * 9 + [1] * 3 + [3])  # cluster 2 is empty
    logits = torch.randn(13, 4, generator=torch.Generator().manual_seed(0))
    losses = F.cross_entropy(logits, label, reduction="none")
    of_clusters = torch.stack([losses[label == k].mean() for k in (0, 1, 3)])
    found = weighted_loss(logits, label, label.bincount(minlength=4))
    torch.testing.assert_close(found, of_clusters.mean())
    assert not torch.allclose(found, losses.mean())
    balanced = torch.arange(12) % 4
    torch.testing.assert_close(
        weighted_loss(logits[:12], balanced, balanced.bincount()),
        F.cross_entropy(logits[:12], balanced),
    )


def test_uniform_can_be_switched_off() -> None:
    method = small(uniform=False)
    method.label.copy_(torch.tensor([0] * 13 + [1, 2, 3]))
    method.sizes.copy_(method.label.bincount())
    views = {"global": pictures()[None, :8], "index": torch.arange(8)}
    logits = method.classifier(method.backbone(views["global"][0]).pooled)
    expected = F.cross_entropy(logits, method.label[:8])
    torch.testing.assert_close(method(views, START).loss, expected)


def test_images_that_look_alike_get_one_label() -> None:
    for seed in range(5):
        method = clustered(seed)
        groups = method.label.reshape(-1, 4)  # a column is a colour
        if all(len(column.unique()) == 1 for column in groups.T):
            assert len(groups[0].unique()) == 4
            assert method.sizes.tolist() == [4, 4, 4, 4]
            return
    pytest.fail("k-means found the four colours from none of five starts")


def test_the_order_of_the_images_does_not_matter() -> None:
    backwards = clustered(3, order=torch.arange(N).flip(0), batch=3)
    assert torch.equal(backwards.label, clustered(3).label)


def test_every_epoch_has_its_own_seeds() -> None:
    assert len({tuple(clustered(seed).label.tolist()) for seed in range(6)}) > 1
    assert torch.equal(clustered(1).label, clustered(1).label)


def test_the_pass_over_the_images_leaves_no_trace_but_labels_and_classifier() -> None:
    method = small()
    before = {k: v.clone() for k, v in method.state_dict().items()}
    clustered(0, method)
    assert method.training
    assert all(m.training for m in method.modules())
    changed = {k for k, v in method.state_dict().items() if not torch.equal(v, before[k])}
    assert changed <= {"label", "sizes", "classifier.weight", "classifier.bias"}
    assert all(p.grad is None and p.requires_grad for p in method.parameters())


def test_the_classifier_is_drawn_anew_and_reported() -> None:
    method = small()
    with torch.no_grad():
        method.classifier.bias.fill_(1.0)
    before = method.classifier.weight.clone()
    torch.manual_seed(0)
    drawn = list(method.before_epoch(START, sweep()))
    assert drawn[0] is method.classifier.weight
    assert drawn[1] is method.classifier.bias
    assert not torch.equal(method.classifier.weight, before)
    assert (method.classifier.bias == 0).all()
    wide = small(clusters=N).classifier.weight
    assert wide.std().item() == pytest.approx(0.01, rel=0.2)


def test_empty_clusters_leave_the_labels_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal images cannot be told apart, so that clusters stay empty whatever k-means tries."""
    assignment = torch.tensor([3, 1] * (N // 2))
    monkeypatch.setattr(
        deepcluster, "kmeans", lambda x, start, *_, **__: Clustering(start, assignment, ())
    )
    method = clustered(0)
    assert method.label.tolist() == [1, 0] * (N // 2)
    assert method.sizes.tolist() == [8, 8, 0, 0]
    out = method({"global": pictures()[None], "index": torch.arange(N)}, START)
    assert out.loss.isfinite()


def test_all_images_alike() -> None:
    method = small()
    x = torch.ones(N, 3, 8, 8)
    method.before_epoch(START, iter([(torch.arange(N), x)]))
    out = method({"global": x[None], "index": torch.arange(N)}, START)
    assert out.loss.isfinite()
    assert out.metrics["largest"] == method.sizes.max() / N


def test_more_clusters_than_images() -> None:
    config = Settings().for_data(100, None)
    assert (config.images, config.clusters) == (100, 100)
    with pytest.raises(ValidationError, match="more than the 5 images"):
        Settings(images=5)
    with pytest.raises(UsageError, match="needs their number"):
        small(images=0)


def on_a_rank() -> tuple[Tensor, ...]:
    method = clustered(0)
    return method.label, method.sizes, method.classifier.weight.detach()


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    one = on_a_rank()
    for found in ranks(on_a_rank):
        for ours, expected in zip(found, one, strict=True):
            torch.testing.assert_close(ours, expected)
