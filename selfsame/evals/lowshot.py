"""Few labels: how far do one, five or twenty labels a class go on frozen features?"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from selfsame.errors import DataError
from selfsame.evals.check import check_features
from selfsame.evals.evaluator import Evaluator, Scores
from selfsame.evals.interval import mean_interval
from selfsame.evals.knn import knn_right
from selfsame.evals.linear import fit_probe
from selfsame.evals.subject import Bank, Data, Subject

SHOTS = (1, 5, 10, 20)
SHARES = (0.01, 0.1)
L2 = (1e-1, 1e-2, 1e-3)  # few images want a strong penalty, and there are many fits
FOLDS = 3
HEADLINE = 5  # labels a class


class LowShot(Evaluator):
    """Linear and kNN heads on a few training images, over several draws of them.

    ``shots`` are images a class, ``shares`` parts of each class (at least one image). Those that
    ask for more images than the smallest class has, or for fewer than one a class, are left out.
    The test part is always whole.
    """

    title: ClassVar[str] = "low-shot linear"
    facts: ClassVar[frozenset[str]] = frozenset({"lowshot_draws"})

    shots: tuple[Annotated[int, Field(ge=1)], ...] = SHOTS
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = SHARES
    draws: Annotated[int, Field(ge=1)] = 5
    seed: int = 0

    def __call__(self, subject: Subject, data: Data) -> Scores:
        """``lowshot`` is the linear head's accuracy with 5 labels a class, or the most below.

        Accuracies are means over draws, with ``_std`` their standard deviation over draws; the
        headline's interval is over test images, each with its mean over draws.
        """
        bank = subject.bank(data.labelled)
        check_features(*bank)
        counts = bank.train_y.bincount()
        smallest = int(counts[counts > 0].min())
        sizes: dict[str, int | float] = {f"{n}": n for n in self.shots if n <= smallest}
        if not sizes and self.shots:
            rarest = int(torch.where(counts > 0, counts, len(bank.train_y) + 1).argmin())
            name = list(data.labelled.train.classes or ())[rarest]
            raise DataError(
                f"class '{name}' has {smallest} training images, fewer than the "
                f"{min(self.shots)} labels a class that are asked for",
                tip=f"--set lowshot.shots=[{smallest}]",
            )
        present = int((counts > 0).sum())
        sizes |= {f"{s:.0%}": s for s in self.shares if s * len(bank.train_y) >= present}
        if not sizes:
            raise DataError(
                f"{len(bank.train_y)} training images are fewer than one a class at every share",
                tip="ask for labels a class: --set lowshot.shots=[1,5]",
            )
        rights = {name: self._right(bank, size) for name, size in sizes.items()}
        found: Scores = {}
        for name, heads in rights.items():
            for head, right in heads.items():
                found[f"lowshot_{head}@{name}"] = right.mean().item()
                spread = right.mean(1).std(correction=1).item() if self.draws > 1 else 0.0
                found[f"lowshot_{head}@{name}_std"] = spread
        fitting = [n for n in sizes.values() if 1 <= n <= HEADLINE]
        shown = f"{max(fitting)}" if fitting else next(iter(sizes))
        first = {
            "lowshot": found[f"lowshot_linear@{shown}"],
            "lowshot_interval": mean_interval(rights[shown]["linear"].mean(0)),
        }
        return first | found | {"lowshot_draws": self.draws}

    def _right(self, bank: Bank, size: int | float) -> dict[str, Tensor]:
        """Whether each head is right: float64 [draws, M], on the CPU."""
        right: dict[str, list[Tensor]] = {"linear": [], "knn": []}
        for draw in range(self.draws):
            few = choose(bank.train_y, size, self.seed + draw)
            x, y = bank.train_x[few], bank.train_y[few]
            probe = fit_probe(x, y, L2, seed=draw, folds=FOLDS)
            right["linear"].append(probe.scores(bank.test_x).argmax(dim=1) == bank.test_y)
            k = min(20, len(x))
            right["knn"].append(knn_right(x, y, bank.test_x, bank.test_y, (k,))[k][:, 0])
        return {head: torch.stack(each).double().cpu() for head, each in right.items()}


def choose(y: Tensor, size: int | float, seed: int) -> Tensor:
    """Positions of some images of each class, drawn at random: int64, ascending.

    Args:
        y: int64 [N] labels.
        size: Images a class, or a share of each class below 1: rounded, at least one image.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = y.cpu()
    chosen = []
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        count = size if size >= 1 else max(1, round(size * len(members)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[: int(count)]])
    return torch.cat(chosen).sort().values.to(y.device)
