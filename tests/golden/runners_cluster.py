"""Golden cases of SwAV, DeepCluster-v2 and DeepCluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from runners import Arrays, Runner
from torch import Tensor

from selfsame import dist
from selfsame.methods import deepcluster, deepclusterv2, swav
from selfsame.nn.kmeans import kmeans, pca_whiten
from selfsame.nn.sinkhorn import sinkhorn


def sinkhorn_one(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    return {"q": sinkhorn(a["in/scores"], hyper["epsilon"], hyper["iterations"])}


def sinkhorn_2rank(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    rank = dist.rank()
    q = sinkhorn(a[f"in/scores_rank{rank}"], hyper["epsilon"], hyper["iterations"])
    return {f"q_rank{rank}": q}


def swav_steps(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    """Several steps of the loss, with a queue where the case has one."""
    prototypes = F.normalize(a["in/prototypes"], dim=1)
    assign = hyper["crops_for_assign"]
    order = [*assign, *(c for c in range(sum(hyper["nmb_crops"])) if c not in assign)]
    queue = a.get("state/queue")
    result = {"prototypes_normalised": prototypes}
    for step in range(hyper["steps"]):
        z = a[f"in/embeddings{step}"].unflatten(0, (-1, hyper["bs"]))  # [V, B, D]
        s = swav.scores(z, prototypes).requires_grad_()
        full = queue is not None and swav.is_full(queue)
        queued = swav.scores(queue, prototypes) if full else None
        q = swav.codes(s[assign], queued, hyper["epsilon"], hyper["sinkhorn_iterations"])
        loss = swav.swapped_prediction(s[order], q, hyper["temperature"])
        (grad,) = torch.autograd.grad(loss, s)
        result[f"scores_step{step}"] = s.flatten(0, 1)
        result[f"loss_step{step}"] = loss
        result[f"grad_scores_step{step}"] = grad.flatten(0, 1)
        if queue is not None:
            queue = swav.enqueue(queue, z[assign])
            result["queue_after"] = queue
    return result


def cluster_memory(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    suffix = f"_rank{dist.rank()}" if "N_per_rank" in hyper else ""
    memory, index = a[f"in/memory{suffix}"], a[f"in/index{suffix}"]
    starts = []
    for head, count in enumerate(hyper["nmb_prototypes"]):
        start = memory[head % len(memory), a[f"in/perm{head}"][:count]]
        starts.append(dist.gather(start)[:count])  # rank 0 chooses
    centroids, assignments = deepclusterv2.cluster_memory(
        memory, index, len(index) * dist.world_size(), starts, hyper["kmeans_iters"]
    )
    found = {f"centroids{head}": value for head, value in enumerate(centroids)}
    return found | {"assignments": assignments}


def cluster_prediction(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    s = [a[f"in/scores{h}"].requires_grad_() for h in range(len(hyper["nmb_prototypes"]))]
    loss = deepclusterv2.cluster_prediction(
        [scores.unflatten(0, (-1, hyper["bs"])) for scores in s],
        a["in/assignments"][:, a["in/batch_index"]],
        hyper["temperature"],
    )
    grads = torch.autograd.grad(loss, s)
    return {"loss": loss} | {f"grad_scores{h}": grad for h, grad in enumerate(grads)}


def pca_kmeans(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    x = pca_whiten(a["in/features"], hyper["pca"])
    x = x * (x * a["f32/whitened"]).sum(0).sign()  # which way an eigenvector points is arbitrary
    found = kmeans(x, x[a["exact/init_index"]], hyper["niter"], spherical=False)
    return {
        "whitened": x,
        "gram_f64": x @ x.T,
        "gram_f64_first100": x[:100] @ x[:100].T,
        "centroids": found.centroids,
        "objective": torch.tensor(found.objective, dtype=torch.float64),
        "assignment": found.assignment,
        "init_index": a["exact/init_index"],
    }


def reassign_sampler(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    assignment = a["in/assignment"]
    labels = deepcluster.pseudo_labels(assignment)
    rng = np.random.RandomState(hyper["numpy_seed"])
    index = labels.argsort(stable=True)
    return {
        "sampled_indices": deepcluster.balanced_indices(assignment, hyper["N"], rng),
        "reassigned": torch.stack([index, labels[index]], dim=1),
        "draws_per_cluster": torch.tensor(hyper["N"] // (int(labels.max()) + 1) + 1),
    }


TABLE: dict[tuple[str, str], Runner] = {
    ("swav", "sinkhorn"): sinkhorn_one,
    ("swav", "sinkhorn_2rank"): sinkhorn_2rank,
    ("swav", "loss"): swav_steps,
    ("swav", "loss_queue"): swav_steps,
    ("deepclusterv2", "cluster_memory"): cluster_memory,
    ("deepclusterv2", "cluster_memory_2rank"): cluster_memory,
    ("deepclusterv2", "loss"): cluster_prediction,
    ("deepcluster", "pca_kmeans"): pca_kmeans,
    ("deepcluster", "reassign_sampler"): reassign_sampler,
}

GIVEN = {("deepcluster", "pca_kmeans"): ("exact/init_index", "f32/whitened")}
