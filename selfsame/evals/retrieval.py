"""Image retrieval: does the nearest image show the same thing, and do all of them come first?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from selfsame.errors import DataError
from selfsame.evals.check import check_features
from selfsame.evals.evaluator import Evaluator, Scores
from selfsame.evals.interval import mean_interval
from selfsame.evals.subject import Data, Subject
from selfsame.nn.precision import unit

RANKED_AT_ONCE = 2**24  # similarities: sorting takes several times their memory
RANKS = (1, 5, 10)


class Retrieval(Evaluator):
    """Cosine ranking of the train part for each test image; mean average precision and recall@k.

    With ``leave_one_out`` each test image is asked among the other test images, as in metric
    learning (Song et al., arXiv 1511.06452, section 5).
    """

    title: ClassVar[str] = "retrieval mAP"
    facts: ClassVar[frozenset[str]] = frozenset({"retrieval_queries"})

    ks: tuple[Annotated[int, Field(ge=1)], ...] = RANKS
    leave_one_out: bool = False

    def __call__(self, subject: Subject, data: Data) -> Scores:
        """``retrieval`` is the mean average precision over queries."""
        bank = subject.bank(data.labelled)
        check_features(*bank)
        gallery = (bank.test_x, bank.test_y) if self.leave_one_out else bank[:2]
        precision, recall = rank(*gallery, *bank[2:], self.ks, leave_one_out=self.leave_one_out)
        asked = precision.isfinite()  # a query without an image of its class is none
        if not asked.any():
            raise DataError(
                "no query has another image of its class to find",
                tip="give two images a class or more, or leave leave_one_out out",
            )
        found: Scores = {
            "retrieval": precision[asked].mean().item(),
            "retrieval_interval": mean_interval(precision[asked]),
        }
        for k, hit in zip(self.ks, recall[asked].double().T, strict=True):
            found[f"retrieval_recall@{k}"] = hit.mean().item()
            if k == self.ks[0]:
                found[f"retrieval_recall@{k}_interval"] = mean_interval(hit)
        return found | {"retrieval_queries": int(asked.sum())}


def rank(
    gallery_x: Tensor,
    gallery_y: Tensor,
    query_x: Tensor,
    query_y: Tensor,
    ks: Sequence[int] = RANKS,
    *,
    leave_one_out: bool = False,
) -> tuple[Tensor, Tensor]:
    """Average precision and hits of each query, by cosine.

    Average precision is the mean, over the gallery's images of the query's class, of the precision
    at their rank: all ranks count. Images at the same distance stay in the gallery's order.

    Args:
        gallery_x: [N, D] features that are searched.
        gallery_y: int64 [N].
        query_x: [M, D].
        query_y: int64 [M].
        ks: Ranks of the hits.
        leave_one_out: The queries are the gallery: none finds itself.

    Returns:
        float64 [M], NaN where the gallery has no other image of that class, and bool [M, len(ks)]:
        whether one is among the first k.
    """
    gallery, queries = unit(gallery_x), unit(query_x)
    precision, hits = [], []
    rows = max(1, RANKED_AT_ONCE // len(gallery))
    for start in range(0, len(queries), rows):
        chunk = slice(start, start + rows)
        similarity = queries[chunk] @ gallery.T
        if leave_one_out:
            own = torch.arange(start, start + len(similarity), device=similarity.device)
            similarity[torch.arange(len(own), device=own.device), own] = -torch.inf
        order = similarity.argsort(dim=1, descending=True, stable=True)
        same = gallery_y[order] == query_y[chunk, None]
        if leave_one_out:
            same = same[:, :-1]  # itself is last
        place = torch.arange(1, same.shape[1] + 1, device=same.device, dtype=torch.float64)
        exact = same.cumsum(dim=1) / place  # [m, N]: precision at each rank
        precision.append((exact * same).sum(dim=1) / same.sum(dim=1))
        hits.append(torch.stack([same[:, :k].any(dim=1) for k in ks], dim=1))
    return torch.cat(precision), torch.cat(hits)
