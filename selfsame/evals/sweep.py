"""Linear evaluation by SGD, swept over learning rates and layers: the protocol of DINOv2.

Oquab et al., arXiv 2304.07193, section 7.1 and appendix B.3; ``dinov2/eval/linear.py``: 13 learning
rates, the class tokens of the last one or four blocks, with and without the mean of the last patch
tokens, all trained at once. Here the features are of un-augmented images, so they are computed
once; they are standardised, as by the BatchNorm of MAE's probe; and the best head is chosen on a
fifth of the train part, not on the test part, then trained on all of it.
"""

from __future__ import annotations

from itertools import product
from typing import Annotated, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsame.evals.check import check_features
from selfsame.evals.evaluator import Evaluator, Scores
from selfsame.evals.interval import bootstrap_interval
from selfsame.evals.linear import stratified_folds
from selfsame.evals.subject import Data, Subject
from selfsame.schedule import cosine
from selfsame.types import Source

# of a batch of 256, as in the authors' code
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
MOMENTUM = 0.9


class Input(NamedTuple):
    """Which features a head reads."""

    layers: int  # pooled features of this many last blocks, side by side
    patches: bool  # and the mean of the last patch tokens


class Sweep(Evaluator):
    """SGD with a cosine to 0; the learning rate, the layers and the pooling are chosen."""

    title: ClassVar[str] = "linear (SGD)"
    facts: ClassVar[frozenset[str]] = frozenset(
        {"linear-sgd_lr", "linear-sgd_layers", "linear-sgd_patches"}
    )

    rates: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = RATES
    layers: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 4)
    steps: Annotated[int, Field(ge=1)] = 2000
    batch_size: Annotated[int, Field(ge=1)] = 256
    seed: int = 0

    def __call__(self, subject: Subject, data: Data) -> Scores:
        """Accuracy of the chosen head on the test part."""
        labelled = data.labelled
        train, train_y = self._inputs(subject, labelled.train)
        test, test_y = self._inputs(subject, labelled.test)
        subject.bank(labelled)  # refuses a class without training images
        for name, x in train.items():
            check_features(x, train_y, test[name], test_y)
        classes = int(torch.cat([train_y, test_y]).max()) + 1
        lr, used = self.rates[0], next(iter(train))
        held = stratified_folds(train_y, self.seed) == 0
        if held.any():
            best = -1
            for name, x in train.items():
                heads = self._fit(x[~held], train_y[~held], classes, self.rates)
                guess = heads.scores(x[held]).argmax(dim=-1)  # [R, n]
                right = (guess == train_y[held]).sum(dim=1)
                if int(right.max()) > best:  # the fewest layers and the smallest rate of equals
                    best, lr, used = int(right.max()), self.rates[int(right.argmax())], name
        head = self._fit(train[used], train_y, classes, (lr,))
        correct = head.scores(test[used])[0].argmax(dim=1) == test_y
        accuracy = correct.double().mean().item()
        return {
            "linear-sgd": accuracy,
            "linear-sgd_interval": bootstrap_interval(accuracy, len(test_y)),
            "linear-sgd_lr": lr,
            "linear-sgd_layers": used.layers,
            "linear-sgd_patches": int(used.patches),
        }

    def _inputs(self, subject: Subject, source: Source) -> tuple[dict[Input, Tensor], Tensor]:
        """What heads may read of the images of a source, fewest layers first, and their labels."""
        found = subject.features(source, layers=max(self.layers))
        layers, patches = found["layers"], found["patches"]
        assert source.labels is not None
        label = torch.from_numpy(source.labels)[found["index"]]
        counts = sorted({min(n, layers.shape[1]) for n in self.layers})
        mean_is_new = not torch.allclose(patches, layers[:, -1], atol=1e-5)
        inputs = {}
        for n, mean in product(counts, (False, True) if mean_is_new else (False,)):
            parts = [layers[:, -n:].flatten(1), *([patches] if mean else [])]
            inputs[Input(n, mean)] = subject.near(torch.cat(parts, dim=1))
        return inputs, subject.near(label)

    def _fit(self, x: Tensor, y: Tensor, classes: int, rates: tuple[float, ...]) -> Heads:
        return fit_heads(
            x,
            y,
            classes,
            [rate * self.batch_size / 256 for rate in rates],
            steps=self.steps,
            batch_size=self.batch_size,
            seed=self.seed,
        )


class Heads(NamedTuple):
    """Linear classifiers of standardised features, one a learning rate."""

    weight: Tensor  # [R, D, C]
    bias: Tensor  # [R, 1, C]
    mean: Tensor  # [D]
    std: Tensor  # [D]

    def scores(self, x: Tensor) -> Tensor:
        """Logits [R, N, C] of features [N, D]."""
        return torch.baddbmm(self.bias, self._standard(x), self.weight)

    def _standard(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).expand(len(self.weight), -1, -1)


@torch.no_grad()
def fit_heads(
    x: Tensor,
    y: Tensor,
    classes: int,
    rates: list[float],
    *,
    steps: int,
    batch_size: int,
    seed: int,
) -> Heads:
    """Train a linear classifier for each peak learning rate, all on the same batches.

    SGD with momentum .9, no weight decay, a cosine to 0; weights from N(0, .01^2), biases 0.

    Args:
        x: float32 [N, D] features.
        y: int64 [N] labels.
        classes: C.
        rates: R peak learning rates of a batch of this size.
        steps: Of SGD.
        batch_size: Images a step, at most N.
        seed: Of the weights and the batches.
    """
    generator = torch.Generator().manual_seed(seed)
    std, mean = torch.std_mean(x, dim=0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    standard = (x - mean) / std
    target = F.one_hot(y, classes).to(x.dtype)
    size = (len(rates), x.shape[1], classes)
    weight = (0.01 * torch.randn(size[1:], generator=generator)).expand(size).clone().to(x)
    bias = x.new_zeros(len(rates), 1, classes)
    momenta = torch.zeros_like(weight), torch.zeros_like(bias)
    peak = torch.tensor(rates, dtype=torch.float64).to(x)[:, None, None]
    batch_size = min(batch_size, len(x))
    order = torch.randperm(len(x), generator=generator)
    at = 0
    for step in range(steps):
        if at + batch_size > len(x):
            order, at = torch.randperm(len(x), generator=generator), 0
        rows = order[at : at + batch_size].to(x.device)
        at += batch_size
        batch = standard[rows].expand(len(rates), -1, -1)
        residual = torch.baddbmm(bias, batch, weight).softmax(dim=-1) - target[rows]
        residual /= batch_size
        lr = peak * cosine(step, steps, 1.0, 0.0)
        gradients = batch.transpose(1, 2) @ residual, residual.sum(dim=1, keepdim=True)
        for value, momentum, gradient in zip((weight, bias), momenta, gradients, strict=True):
            momentum.mul_(MOMENTUM).add_(gradient)
            value -= lr * momentum
    return Heads(weight, bias, mean, std)
