import torch
from helpers import textures

from selfsame.data.arrays import ArraySource
from selfsame.evals import Data, Subject, evaluators
from selfsame.evals.copies import ranks
from selfsame.evals.pixels import pixels


def test_ranks_are_those_of_a_loop_and_ties_count_against() -> None:
    g = torch.Generator().manual_seed(0)
    searched, queries = torch.randn(12, 4, generator=g), torch.randn(3, 2, 4, generator=g)
    searched[7] = searched[5]  # the same picture twice
    originals = torch.tensor([5, 0, 11])
    found = ranks(searched, queries, originals)
    for i, row in enumerate(originals.tolist()):
        for v in range(2):
            similar = torch.cosine_similarity(searched, queries[i, v][None])
            better = sum(similar[k] > similar[row] + 1e-6 for k in range(12) if k != row)
            assert found[i, v] == better + 1 + (row == 5)


def test_copies_are_keyed_and_found_better_than_by_chance() -> None:
    data = Data(ArraySource(textures(40)))
    copies = evaluators(["copies"], ["copies.queries=10", "copies.copies=2"])["copies"]
    subject = Subject(pixels(), centred=True)
    scores = copies(subject, data)
    assert (scores["copies_queries"], scores["copies_searched"]) == (10, 40)
    assert scores == copies(subject, data)
    assert scores["copies_recall@1"] <= scores["copies"]
    chance = sum(1 / k for k in range(1, 41)) / 40  # .107
    assert scores["copies"] > 2 * chance
