import pytest
import torch
import torch.nn.functional as F
from ranks import Ranks
from torch import Tensor, nn

from selfsame import dist
from selfsame.nn import kmeans as module
from selfsame.nn.kmeans import collect, embed_all, kmeans, own_rows, pca_whiten


def blobs(count: int = 60, clusters: int = 4, seed: int = 0) -> Tensor:
    """Rows around ``clusters`` far points, row i around point i mod clusters."""
    generator = torch.Generator().manual_seed(seed)
    centres = 10 * torch.eye(clusters, 6, dtype=torch.float64)
    noise = torch.randn(count, 6, dtype=torch.float64, generator=generator)
    return centres[torch.arange(count) % clusters] + noise


def test_separate_blobs_are_found_and_centroids_are_their_means() -> None:
    x = blobs()
    found = kmeans(x, x[:4], 10, spherical=False)
    assert torch.equal(found.assignment, torch.arange(60) % 4)
    torch.testing.assert_close(found.centroids, torch.stack([x[i::4].mean(0) for i in range(4)]))
    expected = (x - found.centroids[found.assignment]).square().sum()
    assert found.objective[-1] == pytest.approx(float(expected))
    assert list(found.objective) == sorted(found.objective, reverse=True)
    assert len(found.objective) < 10  # it ended when nothing changed


def test_spherical_centroids_have_unit_length_and_scores_grow() -> None:
    x = F.normalize(blobs(seed=1) - 2, dim=1)
    found = kmeans(x, x[:7], 10, spherical=True)
    torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(7).double())
    assert torch.equal(found.assignment, (x @ found.centroids.T).argmax(1))
    assert list(found.objective) == sorted(found.objective)


@pytest.mark.parametrize("spherical", [False, True])
def test_chunks_do_not_change_the_result(spherical: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x = F.normalize(blobs(seed=2), dim=1)
    whole = kmeans(x, x[:5], 4, spherical=spherical)
    whitened = pca_whiten(x, 3)
    monkeypatch.setattr(module, "CHUNK_BYTES", 5 * 8 * 7)  # 7 rows of 5 scores
    parts = kmeans(x, x[:5], 4, spherical=spherical)
    assert torch.equal(parts.assignment, whole.assignment)
    torch.testing.assert_close(parts.centroids, whole.centroids)
    torch.testing.assert_close(pca_whiten(x, 3), whitened)


def test_empty_euclidean_clusters_take_half_of_a_crowded_one() -> None:
    torch.manual_seed(0)
    x = blobs()
    far = torch.full((3, 6), 1000.0, dtype=torch.float64) * torch.tensor([[1.0], [2], [3]])
    found = kmeans(x, torch.cat([x[:5], far]), 20, spherical=False)
    assert (found.assignment.bincount(minlength=8) > 0).all()
    assert found.centroids.abs().max() < 100


def test_a_split_is_symmetric_about_the_old_centroid() -> None:
    centroids = torch.tensor([[1.0, 2, 4], [5, 6, 7], [9, 9, 9]])
    module._split_clusters(centroids, torch.tensor([8, 0, 1]))  # a cluster of one is never split
    assert not torch.equal(centroids[0], centroids[1])
    torch.testing.assert_close((centroids[0] + centroids[1]) / 2, torch.tensor([1.0, 2, 4]))
    assert centroids[2].tolist() == [9, 9, 9]


def test_more_clusters_than_rows_is_no_error() -> None:
    x = blobs(3)
    found = kmeans(x, torch.cat([x, x]), 3, spherical=False)
    assert found.centroids.isfinite().all()


def test_empty_spherical_clusters_keep_their_centroids() -> None:
    x = F.normalize(blobs(), dim=1)  # near the first four axes
    away = -torch.eye(6, dtype=torch.float64)[:2]
    found = kmeans(x, torch.cat([x[:4], away]), 5, spherical=True)
    assert torch.equal(found.centroids[4:], away)
    assert found.assignment.max() == 3


def on_a_rank(x: Tensor, first: int, spherical: bool) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    torch.manual_seed(0)
    index = torch.arange(len(x)).split([first, len(x) - first])[dist.rank()]
    start = torch.cat([x[:4], -50 + torch.zeros(1, x.shape[1], dtype=x.dtype)])
    found = kmeans(x[index], start, 6, spherical=spherical)
    return found.centroids, collect(index, found.assignment, len(x)), found.objective


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("first", [30, 7, 0])
def test_two_ranks_equal_one(ranks: Ranks, spherical: bool, first: int) -> None:
    x = F.normalize(blobs(), dim=1)
    torch.manual_seed(0)
    start = torch.cat([x[:4], torch.full((1, 6), -50.0, dtype=torch.float64)])
    one = kmeans(x, start, 6, spherical=spherical)
    for centroids, assignment, objective in ranks(on_a_rank, x, first, spherical):
        torch.testing.assert_close(centroids, one.centroids)
        assert torch.equal(assignment, one.assignment)
        assert objective == pytest.approx(one.objective)


def rows_of_a_rank(count: int) -> Tensor:
    return torch.arange(count)[own_rows()]


def test_ranks_share_all_rows(ranks: Ranks) -> None:
    assert torch.cat(ranks(rows_of_a_rank, 7)).sort()[0].tolist() == list(range(7))
    assert rows_of_a_rank(3).tolist() == [0, 1, 2]


def test_who_was_not_seen_has_no_cluster() -> None:
    found = collect(torch.tensor([3, 0]), torch.tensor([5, 0]), 5)
    assert found.tolist() == [0, -100, -100, 5, -100]


def test_whitening_forgets_every_linear_map_of_the_features() -> None:
    x = blobs(seed=3)
    mapped = x @ torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b = pca_whiten(x, 6), pca_whiten(mapped + 7, 6)
    torch.testing.assert_close(a @ a.T, b @ b.T)
    torch.testing.assert_close(a.norm(dim=1), torch.ones(60).double())


def test_whitening_takes_the_directions_of_most_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.1, 30.0, 1.0, 9.0])
    x = scales * torch.randn(4000, 4, generator=generator)
    expected = F.normalize((x - x.mean(0))[:, [1, 3]] / scales[[1, 3]], dim=1)
    torch.testing.assert_close(pca_whiten(x, 2), expected, atol=0.2, rtol=0)
    assert pca_whiten(x, 2).dtype == torch.float32


def test_whitening_of_features_without_variance_is_finite() -> None:
    x = torch.cat([torch.randn(9, 2), torch.ones(9, 3)], dim=1)
    assert pca_whiten(x, 5).isfinite().all()
    assert (pca_whiten(x, 5)[:, 2:] == 0).all()
    assert (pca_whiten(torch.ones(4, 3), 3) == 0).all()


def test_all_images_are_embedded_in_order_and_in_evaluation_mode() -> None:
    network = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2, affine=False))
    x = torch.arange(10.0).reshape(5, 2)
    order = torch.tensor([3, 0, 4, 1, 2])
    found = embed_all(network, network, ((i, x[i]) for i in order.split(2)), 5)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=0)
    assert network.training
    assert network[1].num_batches_tracked == 0
    embed_all(network.eval(), network, [(order, x)], 5)
    assert not network.training
