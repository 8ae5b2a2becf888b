"""How each kind of golden case is computed with this library: one function a (method, kind).

A runner gets the arrays of a case (``in/...`` and ``state/...``, floats in the precision under
test) and its hyper-parameters, and returns every expected array under its name without the prefix
of the precision. A two-rank runner is called on both ranks; what the ranks return is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfsame import dist
from selfsame.evals import align, alpha_req, knn_scores, lidar, lidar_eigenvalues, rankme, uniform
from selfsame.methods.simclr import nt_xent, similarities
from selfsame.optim import LARS

Arrays = Mapping[str, Tensor]
Runner = Callable[[Arrays, Mapping[str, Any]], dict[str, Tensor]]


def ntxent(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    hidden = a["in/hidden"].requires_grad_()
    views = hidden.unflatten(0, (2, -1))
    tau, normalize = hyper["temperature"], hyper["hidden_norm"]
    loss = nt_xent(views, tau, normalize=normalize)
    (grad,) = torch.autograd.grad(loss, hidden)
    return {
        "loss": 2 * loss,
        "loss_mean_2N": loss,
        "grad_hidden": 2 * grad,
        "grad_hidden_mean_2N": grad,
        "logits_ab": similarities(*views, tau, normalize=normalize),
    }


def ntxent_2rank(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    rank = dist.rank()
    hidden = a[f"in/hidden_rank{rank}"].requires_grad_()
    loss = 2 * nt_xent(hidden.unflatten(0, (2, -1)), hyper["temperature"])
    (grad,) = torch.autograd.grad(loss, hidden)
    return {
        f"loss_rank{rank}": loss,
        "loss_mean": dist.mean(loss.detach()),
        f"grad_hidden_rank{rank}": grad / dist.world_size(),  # the average over ranks
    }


def lars(
    a: Arrays,
    hyper: Mapping[str, Any],
    excluded: Callable[[str, Tensor], bool],
    trust: str,
    **options: Any,
) -> dict[str, Tensor]:
    params = {
        key.removeprefix("state/param."): torch.nn.Parameter(value)
        for key, value in a.items()
        if key.startswith("state/param.")
    }
    groups = [{"params": [p], "exclude": excluded(name, p)} for name, p in params.items()]
    optimizer = LARS(
        groups,
        hyper["lr"],
        momentum=hyper["momentum"],
        weight_decay=hyper["weight_decay"],
        trust_coefficient=hyper[trust],
        **options,
    )
    result = {}
    for step in range(hyper["steps"]):
        for name, p in params.items():
            p.grad = a[f"in/grad{step}.{name}"]
        optimizer.step()
        for name, p in params.items():
            result[f"param.{name}.after{step}"] = p.detach().clone()
    return result


def is_1d(_: str, p: Tensor) -> bool:
    return p.ndim == 1


def lars_simclr(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    assert hyper["exclude_from_layer_adaptation"] == "same list"
    names = hyper["exclude_from_weight_decay"]
    return lars(
        a,
        hyper,
        lambda name, _: any(part in name for part in names),
        "eeta",
        momentum_form="classic" if hyper["classic_momentum"] else "momentum_first",
        nesterov=hyper["use_nesterov"],
    )


def lars_byol(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    assert hyper["filters"] == "exclude_bias_and_norm for both decay and adaptation"
    return lars(a, hyper, lambda name, _: name.endswith(".b") or "norm" in name, "eta")


def lars_barlow(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    return lars(a, hyper, lambda name, p: hyper["filters"] and is_1d(name, p), "eta")


def lars_larc(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    return lars(
        a,
        hyper,
        lambda *_: False,
        "trust_coefficient",
        ratio="split",
        clip_ratio=hyper["clip"],
        eps=hyper["eps"],
    )


def knn(
    a: Arrays, k: int, temperature: float, num_classes: int, unit: float
) -> tuple[dict[str, Tensor], Tensor]:
    labels, test_labels = a["in/train_labels"], a["in/test_labels"]
    scores = knn_scores(
        a["in/train_features"], labels, a["in/test_features"], k, temperature, num_classes
    )
    right = scores.argsort(dim=1, descending=True) == test_labels[:, None]
    top1 = unit * right[:, 0].double().mean()
    return {"top1": top1, "class_scores": scores, "predictions": scores.argmax(dim=1)}, right


def knn_dino(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    result, right = knn(a, hyper["k"], hyper["T"], hyper["num_classes"], unit=100)
    top5 = right[:, : min(5, hyper["k"])].any(dim=1).double().mean()
    return {**result, "top5": 100 * top5}


def knn_instance(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    classes = int(a["in/train_labels"].max()) + 1
    return knn(a, hyper["K"], hyper["sigma"], classes, unit=1)[0]


def effective_rank(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    z = a["in/Z"]
    return {"rankme": rankme(z, hyper["eps"]), "singular_values": torch.linalg.svdvals(z)}


def spectrum_decay(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    z = a["in/Z"]
    first, last = hyper["index_range"]
    ranks = (first + 1, last)
    return {
        "alpha_weighted": alpha_req(z, *ranks),
        "alpha_ols": alpha_req(z, *ranks, weighted=False),
    }


def discriminant_rank(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    z, delta, eps = a["in/E"], hyper["delta"], hyper["eps"]
    return {
        "lidar_unbiased": lidar(z, delta, eps),
        "lidar_biased": lidar(z, delta, eps, unbiased=False),
        "eigenvalues_unbiased": lidar_eigenvalues(z, delta),
    }


def align_uniform(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    x, y = a["in/x"].requires_grad_(), a["in/y"].requires_grad_()
    alignment, uniformity = align(x, y, hyper["alpha"]), uniform(x, hyper["t"])
    grad_x, grad_y = torch.autograd.grad(alignment, (x, y))
    (grad_uniform,) = torch.autograd.grad(uniformity, x)
    return {
        "align": alignment,
        "grad_align_x": grad_x,
        "grad_align_y": grad_y,
        "uniform": uniformity,
        "grad_uniform_x": grad_uniform,
    }


TABLE: dict[tuple[str, str], Runner] = {
    ("simclr", "ntxent"): ntxent,
    ("simclr", "ntxent_2rank"): ntxent_2rank,
    ("lars", "simclr_tf2"): lars_simclr,
    ("lars", "byol_jax"): lars_byol,
    ("lars", "barlowtwins"): lars_barlow,
    ("lars", "vicreg"): lambda a, hyper: lars(a, hyper, is_1d, "eta"),
    ("lars", "dino"): lambda a, hyper: lars(a, hyper, is_1d, "eta"),
    ("lars", "mae_mocov3"): lambda a, hyper: lars(a, hyper, is_1d, "trust_coefficient"),
    ("lars", "apex_larc"): lars_larc,
    ("knn", "dino_weighted"): knn_dino,
    ("knn", "instance_discrimination"): knn_instance,
    ("rankme", "rankme"): effective_rank,
    ("alpha_req", "powerlaw"): spectrum_decay,
    ("lidar", "lidar"): discriminant_rank,
    ("align_uniform", "losses"): align_uniform,
}

# Every file runners_*.py next to this one holds a TABLE for a family of methods; SAMPLERS give
# random masks: (hyper, n) -> bool [n, h, w], fresh draws, compared by their statistics; GIVEN names
# expected arrays that a runner gets too, as they are choices of the authors' run (random seeds, the
# signs of eigenvectors) and not results.
RUNNERS = dict(TABLE)
SAMPLERS: dict[tuple[str, str], Callable[[Mapping[str, Any], int], Tensor]] = {}
GIVEN: dict[tuple[str, str], tuple[str, ...]] = {}
for file in sorted(Path(__file__).parent.glob("runners_*.py")):
    family = import_module(file.stem)
    RUNNERS |= family.TABLE
    SAMPLERS |= getattr(family, "SAMPLERS", {})
    GIVEN |= getattr(family, "GIVEN", {})
