"""Which images to label first: a linear probe on n chosen images against n random ones.

    python benchmarks/label_first.py RUN

RUN is an encoder of 32 px, for example what ``selfsame demo`` leaves; the images are the demo's:
8,000 of CIFAR-10 to choose from, 2,000 to test on. Printed: accuracy in %, mean and deviation over
seeds (of the random draw, or of the clusters; k-centre has none), and how many of the ten classes
the choice has seen.
"""

from __future__ import annotations

import sys

import torch

import selfsame
from selfsame import demo
from selfsame.evals.linear import fit_probe
from selfsame.evals.lowshot import FOLDS, L2
from selfsame.evals.subject import extract
from selfsame.index.choose import k_centre, typical
from selfsame.nn.precision import unit

SIZES, SEEDS = (20, 50, 100, 200, 500), 5


def main(run: str) -> None:
    encoder, data = selfsame.load(run), demo.sample()
    x, test_x = (extract(encoder, part)["pooled"] for part in (data.train, data.test))
    y, test_y = (torch.from_numpy(part.labels) for part in (data.train, data.test))
    z = unit(x)

    def score(rows: torch.Tensor) -> tuple[float, int]:
        probe = fit_probe(x[rows], y[rows], L2, folds=FOLDS)
        right = (probe.scores(test_x).argmax(1) == test_y).double().mean().item()
        return 100 * right, len(y[rows].unique())

    for n in SIZES:
        ways = {
            "random": [
                torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n]
                for seed in range(SEEDS)
            ],
            "typical": [typical(z, n, seed)[0] for seed in range(SEEDS)],
            "k-centre": [k_centre(z, n)[0]],
        }
        for name, draws in ways.items():
            found = torch.tensor([score(rows) for rows in draws], dtype=torch.float64)
            mean, std = found[:, 0].mean(), found[:, 0].std() if len(draws) > 1 else 0.0
            print(f"{n:4d} {name:9s} {mean:.1f} ± {std:.1f}  classes {found[:, 1].mean():.1f}")


if __name__ == "__main__":
    main(sys.argv[1])
