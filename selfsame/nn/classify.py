"""Classifiers that stand on an encoder: what its ``head`` can be.

Each maps pooled features to scores whose softmax is the share that the classifier gives each class.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame.errors import UsageError, unknown

KINDS = ("linear", "knn")
NO_VOTE = 1e-12  # share of a class that no neighbour votes for, so that its logarithm is finite


class Linear(nn.Linear):
    """Scores ``W x + b`` of pooled features."""

    def facts(self) -> dict[str, Any]:
        """What `restore` needs besides the weights."""
        return {"kind": "linear", "rows": self.out_features}


class KNN(nn.Module):
    """The vote of the k nearest of a bank of labelled features, weighted by similarity.

    The share of class c is proportional to the sum of ``exp(cosine / temperature)`` over those of
    the k neighbours that have label c; scores are logarithms of shares. Source: Wu et al., arXiv
    1805.01978, section 3.4; DINO's ``eval_knn.py``.

    Args:
        bank: [N, D] features, normalised here.
        label: int64 [N] in [0, classes).
        classes: K.
        k: Neighbours; a smaller bank gives all of them.
        temperature: Small values let the nearest decide.
    """

    bank: Tensor
    label: Tensor

    def __init__(
        self, bank: Tensor, label: Tensor, classes: int, k: int = 20, temperature: float = 0.07
    ) -> None:
        super().__init__()
        self.classes, self.k, self.temperature = classes, min(k, len(bank)), temperature
        self.register_buffer("bank", F.normalize(bank, dim=1))
        self.register_buffer("label", label)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        similarity, nearest = (F.normalize(x, dim=1) @ self.bank.T).topk(self.k, dim=1)
        weight = ((similarity - similarity[:, :1]) / self.temperature).exp()
        votes = F.one_hot(self.label[nearest], self.classes).to(weight.dtype)  # [B, k, K]
        share = (weight[:, None] @ votes)[:, 0] / weight.sum(1, keepdim=True)
        return share.clamp(min=NO_VOTE).log()

    def facts(self) -> dict[str, Any]:
        """What `restore` needs besides the weights."""
        return {
            "kind": "knn",
            "rows": len(self.bank),
            "classes": self.classes,
            "k": self.k,
            "temperature": self.temperature,
        }


Classifier = Linear | KNN


def restore(facts: dict[str, Any], state: dict[str, Tensor]) -> Classifier:
    """The classifier whose ``facts()`` and ``state_dict()`` these are.

    Raises:
        UsageError: They do not belong together.
    """
    try:
        if facts["kind"] == "linear":
            made: Classifier = Linear(state["weight"].shape[1], facts["rows"])
        elif facts["kind"] == "knn":
            bank = torch.zeros_like(state["bank"])
            label = torch.zeros_like(state["label"])
            made = KNN(bank, label, facts["classes"], facts["k"], facts["temperature"])
        else:
            raise unknown("classifier", facts["kind"], KINDS)
        made.load_state_dict(state)
    except (KeyError, IndexError, RuntimeError) as error:
        raise UsageError(f"the classifier's weights do not fit its card: {error}") from None
    return made
