"""Every method learns: in a few minutes of one core its features beat random ones.

The network, data and protocol are those of the table in ``RESULTS.md``. ``MEASURED`` holds steps
(those of the table, and more for the three that begin slowly) and how far the kNN accuracy then lay
above the same network's at random initialisation, in points, mean over three seeds; a run must
reach half of that.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from selfsame import demo, methods
from selfsame.api import pretrain
from selfsame.encoder import random_like
from selfsame.evals import knn
from selfsame.evals.features import bank
from selfsame.recipe import with_settings

RESNET = ["backbone.name=resnet14", "backbone.options.stem=patch", "backbone.options.width=32"]
VIT = [
    *("backbone.name=vit_tiny", "backbone.options.width=96", "backbone.options.depth=4"),
    *("backbone.options.heads=3", "backbone.options.patch=4"),
]
MEASURED: dict[str, tuple[int, float]] = {
    "simclr": (665, 14.3),
    "moco": (966, 11.8),
    "mocov3": (525, 12.1),
    "swav": (425, 9.1),
    "deepcluster": (869, 5.0),
    "deepclusterv2": (319, 8.1),
    "byol": (566, 9.5),
    "simsiam": (714, 10.6),
    "barlow_twins": (719, 10.4),
    "vicreg": (785, 13.2),
    "mae": (1180, 10.4),
    "dino": (306, 6.4),
    "ibot": (2000, 4.4),  # 5.8, 4.2, 3.2
    "dinov2": (800, 4.6),  # 5.3, 4.3, 4.2
    "data2vec2": (1000, 4.8),  # 5.0, 4.8, 4.6
}
SEED = 17  # none of those that were measured


def test_every_method_is_accounted_for() -> None:
    alone = {name for name in methods.METHODS if not methods.find(name).taught}
    assert MEASURED.keys() == alone - {"supervised"}
    assert all(gap > 4 for _, gap in MEASURED.values()), "too close to chance to be a test"


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_its_features_beat_random_ones(name: str, tmp_path: Path) -> None:
    steps, gap = MEASURED[name]
    recipe = methods.recipe(name, "small", 32)
    network = VIT if recipe.backbone.name.startswith("vit") else RESNET
    recipe = with_settings(recipe, [*network, f"steps={steps}", f"seed={SEED}"])
    data = demo.sample()
    result = pretrain(name, data.train, out=tmp_path / "run", recipe=recipe, device="cpu")
    control = random_like(result.encoder, SEED)
    assert control is not None
    learnt, chance = (
        100 * knn(*bank(encoder, data), ks=(20,))["knn"] for encoder in (result.encoder, control)
    )
    assert learnt >= chance + gap / 2, f"kNN {learnt:.1f}, random init {chance:.1f}"
