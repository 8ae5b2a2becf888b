"""What every evaluator asks of the features that it is given."""

from __future__ import annotations

from torch import Tensor

from selfsame.errors import RunError, UsageError


def check_features(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> None:
    """Refuse features and labels that cannot be scored.

    Raises:
        UsageError: Sizes do not agree, or a split is empty.
        RunError: A feature is not finite.
    """
    for split, x, y in (("train", train_x, train_y), ("test", test_x, test_y)):
        if x.ndim != 2 or len(x) == 0 or y.shape != x.shape[:1]:
            raise UsageError(
                f"{split} features {list(x.shape)} do not match labels {list(y.shape)}",
                tip="give features [N, D] and labels [N], with N above 0",
            )
        if not x.isfinite().all():
            bad = int((~x.isfinite()).any(dim=1).sum())
            raise RunError(
                f"{bad} of {len(x)} {split} features are not finite",
                tip="the encoder has diverged: look at the loss, then lower the learning rate",
            )
    if train_x.shape[1] != test_x.shape[1]:
        raise UsageError(
            f"train features have {train_x.shape[1]} channels, test features {test_x.shape[1]}",
            tip="extract both splits with the same encoder",
        )
