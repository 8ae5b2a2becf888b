import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from ranks import Ranks
from torch import Tensor

from selfsame import dist
from selfsame.backbones import build
from selfsame.errors import UsageError
from selfsame.methods.deepclusterv2 import (
    DeepClusterV2,
    Settings,
    cluster_memory,
    cluster_prediction,
)
from selfsame.types import Progress

N = 12
START, LATER = Progress(0, 100, 0, 0.0), Progress(3, 100, 12, 1.0)


def small(**settings: object) -> DeepClusterV2:
    torch.manual_seed(0)
    common = {"images": N, "prototypes": (3, 4), "hidden": 8, "output": 6}
    network = build("resnet10", image_size=8, options={"width": 4, "stem": "patch"})
    return DeepClusterV2(Settings(**(common | settings)), network).train()


def pictures(seed: int = 0) -> Tensor:
    return torch.randn(N, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def sweep(images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for index in torch.arange(N).split(5):
        yield index, images[index]


def views(index: Tensor, local: int = 2) -> dict[str, Tensor]:
    x = torch.stack([pictures(1)[index], pictures(2)[index]])
    found = {"global": x, "index": index}
    return found | ({"local": x[:1, :, :, :4, :4].repeat(local, 1, 1, 1, 1)} if local else {})


def test_equal_scores_give_the_mean_log_of_the_clusters() -> None:
    s = [torch.zeros(4, 3, 5), torch.zeros(4, 3, 9)]
    targets = torch.tensor([[0, 4, 2], [8, 1, 0]])
    expected = (math.log(5) + math.log(9)) / 2
    assert cluster_prediction(s, targets, 0.1).item() == pytest.approx(expected)


def test_all_crops_of_an_image_have_its_target() -> None:
    s = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([[1, 0, 4, 4]])
    expected = [F.cross_entropy(crop / 0.2, target[0]) for crop in s]
    torch.testing.assert_close(cluster_prediction([s], target, 0.2), torch.stack(expected).mean())


def test_images_without_a_cluster_do_not_count() -> None:
    s = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    some = cluster_prediction([s], torch.tensor([[1, -100, 4, -100]]), 0.1)
    torch.testing.assert_close(some, cluster_prediction([s[:, ::2]], torch.tensor([[1, 4]]), 0.1))
    s.requires_grad_()
    none = cluster_prediction([s], torch.full((1, 4), -100), 0.1)
    none.backward()
    assert none == 0
    assert (s.grad == 0).all()


def test_heads_take_turns_with_the_banks() -> None:
    memory = F.normalize(torch.randn(2, 20, 6), dim=2)
    starts = [memory[0, :4], memory[1, :5], memory[0, :4]]
    centroids, assignments = cluster_memory(memory, torch.arange(20), 20, starts, 3)
    assert [len(c) for c in centroids] == [4, 5, 4]
    assert torch.equal(centroids[0], centroids[2])
    assert torch.equal(assignments[1], (memory[1] @ centroids[1].T).argmax(1))


def test_the_memory_is_filled_before_the_first_epoch_and_not_again() -> None:
    method = small()
    method.before_epoch(START, sweep(pictures()))
    assert method.training
    method.eval()
    torch.testing.assert_close(method.memory[1], method._embed_plain(pictures()).detach())
    method.before_epoch(LATER, iter(()))  # reads no image
    assert torch.equal(method.memory[0], method.memory[1])


def test_prototypes_become_centroids_of_unit_length() -> None:
    method = small()
    method.before_epoch(START, sweep(pictures()))
    for head, prototypes in enumerate([method.prototypes0, method.prototypes1]):
        torch.testing.assert_close(prototypes.norm(dim=1), torch.ones(len(prototypes)))
        scores = method.memory[head] @ prototypes.T
        assert torch.equal(method.assignments[head], scores.argmax(1))


def test_an_epoch_changes_the_memory_and_neither_prototypes_nor_targets() -> None:
    method = small()
    method.before_epoch(START, sweep(pictures()))
    before = {k: v.clone() for k, v in method.state_dict().items()}
    index = torch.tensor([7, 2, 5])
    out = method(views(index), START)
    assert torch.equal(method.memory, before["memory"])  # forward remembers nothing
    out.loss.backward()
    with torch.no_grad():
        for p in method.parameters():
            p -= 0.1 * p.grad
    method.after_step(START, [out.carry])
    for key in ("prototypes0", "prototypes1", "assignments"):
        assert torch.equal(method.state_dict()[key], before[key])
    rest = [i for i in range(N) if i not in index]
    assert torch.equal(method.memory[:, rest], before["memory"][:, rest])
    assert torch.equal(method.memory[:, index], out.carry["z"])
    assert method.memory.shape == (2, N, 6)  # the two global crops, not the local ones


def test_prototypes_are_not_trained() -> None:
    assert not [name for name, _ in small().named_parameters() if "prototypes" in name]


def test_the_state_dict_is_the_whole_memory() -> None:
    method = small()
    method.before_epoch(START, sweep(pictures()))
    again = small()
    again.load_state_dict(method.state_dict())
    batch = views(torch.tensor([1, 4, 6]))
    assert torch.equal(again(batch, LATER).loss, method(batch, LATER).loss)


def test_micro_batches_are_all_remembered() -> None:
    method = small()
    parts = [method(views(torch.tensor(i), local=0), START).carry for i in ([0, 1], [8, 3])]
    method.after_step(START, parts)
    assert method.memory[:, [0, 1, 8, 3]].norm(dim=2).min() > 0.99
    torch.testing.assert_close(method.memory[:, [8, 3]], parts[1]["z"])
    assert not method.memory[:, [2, 4, 5, 6, 7, 9, 10, 11]].any()


def test_more_clusters_than_images() -> None:
    config = Settings().for_data(100, None)
    assert config.images == 100
    assert config.prototypes == (100, 100, 100)
    with pytest.raises(ValidationError, match="more than the images"):
        Settings(images=5)
    with pytest.raises(UsageError, match="needs their number"):
        small(images=0)


def on_a_rank() -> tuple[Tensor, ...]:
    method = small()
    index = torch.arange(4).chunk(dist.world_size())[dist.rank()]
    z = F.normalize(torch.arange(48.0).sin().reshape(2, 4, 6), dim=2)
    torch.manual_seed(5)
    batches = list(sweep(pictures()))[dist.rank() :: dist.world_size()]
    method.before_epoch(START, iter(batches))
    method.after_step(START, [{"index": index, "z": z[:, index]}])
    method.before_epoch(LATER, iter(()))
    return method.memory, method.assignments, method.prototypes0, method.prototypes1


def test_two_ranks_equal_one(ranks: Ranks) -> None:
    one = on_a_rank()
    for found in ranks(on_a_rank):
        for ours, expected in zip(found, one, strict=True):
            torch.testing.assert_close(ours, expected)
