"""Golden cases of DINO, iBOT and DINOv2."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfsame import dist, optim, schedule
from selfsame.backbones.resnet import IMAGENET
from selfsame.backbones.vit import ViT, drop_samples
from selfsame.methods.dinov2 import DINOv2, koleo, nearest
from selfsame.methods.dinov2 import Settings as DINOv2Settings
from selfsame.methods.ibot import IBOTHead, ibot_masks
from selfsame.nn.heads import DINOHead
from selfsame.nn.selfdistill import (
    cross_entropies,
    dino_loss,
    masked_places,
    multi_crop,
    patch_loss,
    patch_weights,
    ramp,
    teacher_probabilities,
    update_center,
)
from selfsame.nn.sinkhorn import sinkhorn
from selfsame.optim import Optim
from selfsame.types import Backbone, Features, Progress
from selfsame.views.masks import Draws, block_masks

Arrays = Mapping[str, Tensor]
Hyper = Mapping[str, Any]
Results = dict[str, Tensor]


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


# DINO


def cosine_scheduler(a: Arrays, hyper: Hyper) -> Results:
    total, warmup = (hyper["niter_per_ep"] * hyper[k] for k in ("epochs", "warmup_epochs"))
    base, final, start = (hyper[k] for k in ("base_value", "final_value", "start_warmup_value"))
    values = [
        schedule.warmup_cosine(i, total, warmup, base, final, start=start, closed=True)
        for i in range(total)
    ]
    return {"schedule": torch.tensor(values, dtype=torch.float64)}


def clip_gradients(a: Arrays, hyper: Hyper) -> Results:
    module = nn.ParameterDict()
    for key, grad in a.items():
        module[key.removeprefix("in/grad.")] = nn.Parameter(torch.zeros_like(grad))
        module[key.removeprefix("in/grad.")].grad = grad.clone()
    optim.clip(module, Optim(clip="tensor", clip_norm=hyper["clip"]))
    return {
        **{f"grad_after.{name}": p.grad for name, p in module.items()},
        "norms": torch.stack([grad.norm().double() for grad in a.values()]),
    }


def load_head(head: DINOHead, a: Arrays) -> None:
    """Load the authors' weights.

    Their perceptron of one layer has no index; ours has no biases where BatchNorm cancels them.
    """
    given = {key.removeprefix("state/"): v for key, v in a.items() if key.startswith("state/")}
    given = {
        k.replace("mlp.weight", "mlp.0.weight").replace("mlp.bias", "mlp.0.bias"): v
        for k, v in given.items()
    }
    head.to(next(iter(given.values())).dtype)
    names = head.state_dict().keys()
    head.load_state_dict({k: v for k, v in given.items() if k in names}, strict=False)


def dino_head(a: Arrays, hyper: Hyper) -> Results:
    head = DINOHead(
        hyper["in_dim"],
        hyper["out_dim"],
        hidden=hyper["hidden_dim"],
        bottleneck=hyper["bottleneck_dim"],
        layers=hyper["nlayers"],
        norm=hyper["use_bn"],
        fixed_scale=hyper["norm_last_layer"],
    )
    load_head(head, a)
    x = a["in/x"].requires_grad_()
    out = head(x)
    out.backward(a["in/cotangent"])
    grads = {key: p.grad for key, p in head.named_parameters() if p.requires_grad}
    if hyper["nlayers"] == 1:
        grads = {key.replace("mlp.0.", "mlp."): grad for key, grad in grads.items()}
    absent = {
        f"grad.{key.removeprefix('state/')}": torch.zeros_like(value)
        for key, value in a.items()
        if hyper["use_bn"] and key.startswith("state/mlp") and key.endswith("bias")
    }
    return {
        **absent,
        "out": out,
        "grad_x": x.grad,
        **{f"grad.{key}": grad for key, grad in grads.items()},
    }


def dino_loss_steps(a: Arrays, hyper: Hyper) -> Results:
    result = {}
    center = a["in/teacher0"].new_zeros(hyper["out_dim"])
    for step, epoch in enumerate(hyper["epochs_per_step"]):
        teacher = a[f"in/teacher{step}"]
        student = a[f"in/student{step}"].requires_grad_()
        tau = ramp(
            epoch,
            hyper["warmup_teacher_temp_epochs"],
            hyper["warmup_teacher_temp"],
            hyper["teacher_temp"],
        )
        p = teacher_probabilities(teacher, center, tau).unflatten(0, (2, -1))
        views = student.unflatten(0, (hyper["ncrops"], -1))
        loss = dino_loss(p, views, hyper["student_temp"])
        update_center(center, [teacher.mean(0)], hyper["center_momentum"])
        result |= {
            f"loss_step{step}": loss,
            f"grad_student_step{step}": torch.autograd.grad(loss, student)[0],
            f"center_after{step}": center[None].clone(),
            f"teacher_temp_step{step}": number(tau),
        }
    return result


def dino_loss_2rank(a: Arrays, hyper: Hyper) -> Results:
    rank = dist.rank()
    result = {}
    center = a[f"in/teacher0_rank{rank}"].new_zeros(hyper["out_dim"])
    for step in range(sum(key.startswith("in/teacher") for key in a) // 2):
        teacher = a[f"in/teacher{step}_rank{rank}"]
        student = a[f"in/student{step}_rank{rank}"].requires_grad_()
        p = teacher_probabilities(teacher, center, hyper["teacher_temp"]).unflatten(0, (2, -1))
        views = student.unflatten(0, (hyper["ncrops"], -1))
        loss = dino_loss(p, views, hyper["student_temp"])
        update_center(center, [teacher.mean(0)], hyper["center_momentum"])
        result |= {
            f"loss_step{step}_rank{rank}": loss,
            f"grad_student_step{step}_rank{rank}": torch.autograd.grad(loss, student)[0],
            f"center_after{step}": center[None].clone(),
        }
    return result


def multicrop(a: Arrays, hyper: Hyper) -> Results:
    shapes = []

    def backbone(x: Tensor) -> Tensor:
        shapes.append(list(x.shape))
        return torch.tanh(x.mean((2, 3)) @ a["in/Wb"])

    crops = [a[f"in/crop{i}"] for i in range(len(hyper["crop_sizes"]))]
    out = multi_crop(backbone, crops) @ a["in/Wh"]
    assert shapes == hyper["backbone_call_shapes"]
    return {"out": out}


# iBOT


def ibot_head(a: Arrays, hyper: Hyper) -> Results:
    head = IBOTHead(
        hyper["in_dim"],
        hyper["out_dim"],
        None if hyper["shared_head"] else hyper["patch_out_dim"],
        hyper["bottleneck_dim"],
        hidden=hyper["hidden_dim"],
        layers=hyper["nlayers"],
        fixed_scale=hyper["norm_last_layer"],
    )
    load_head(head, a)
    x = a["in/x"]
    classes = head(x[:, 0])
    return {"out_cls": classes, "out_patch": head.patches(head.embed(x[:, 1:])), "out_2d": classes}


def ibot_terms(
    a: Arrays,
    hyper: Hyper,
    key: str,
    centers: tuple[Tensor, Tensor],
    temperatures: tuple[float, float],
) -> tuple[Tensor, Tensor, Results]:
    """Both weighted losses and their gradients; the centres are moved."""
    student, patch = (a[f"in/student_{part}{key}"].requires_grad_() for part in ("cls", "patch"))
    teacher, teacher_patch = (a[f"in/teacher_{part}{key}"] for part in ("cls", "patch"))
    local = a.get(f"in/student_local_cls{key}")
    inputs = {"cls": student, "patch": patch}
    if local is not None:
        inputs["local_cls"] = local.requires_grad_()
    views = student if local is None else torch.cat([student, local])
    mask = a[f"in/mask{key}"].bool().flatten(2).flatten(0, 1)
    crops = hyper["ngcrops"]

    p = teacher_probabilities(teacher, centers[0], temperatures[0]).unflatten(0, (crops, -1))
    views = views.unflatten(0, (crops + hyper["nlcrops"], -1))
    classes = hyper["lambda1"] * dino_loss(p, views, hyper["student_temp"])
    p_patch = teacher_probabilities(teacher_patch[mask], centers[1], temperatures[1])
    places = masked_places(mask)
    masked = patch_loss(p_patch, patch[mask], mask, places, hyper["student_temp"])
    patches = hyper["lambda2"] * masked

    update_center(centers[0], [teacher.mean(0)], hyper["center_momentum"])
    update_center(centers[1], [teacher_patch.mean((0, 1))], hyper["center_momentum2"])
    grads = torch.autograd.grad(classes + patches, list(inputs.values()))
    return classes, patches, {f"grad_student_{k}": g for k, g in zip(inputs, grads, strict=True)}


def ibot_centers(a: Arrays, hyper: Hyper, key: str) -> tuple[Tensor, Tensor]:
    like = a[f"in/teacher_cls{key}"]
    return like.new_zeros(hyper["out_dim"]), like.new_zeros(hyper["patch_out_dim"])


def ibot_loss(a: Arrays, hyper: Hyper) -> Results:
    result = {}
    centers = ibot_centers(a, hyper, "0")
    warmup = hyper["warmup_teacher_temp_epochs"]
    for step, epoch in enumerate(hyper["epochs_per_step"]):
        temperatures = (
            ramp(epoch, warmup, hyper["warmup_teacher_temp"], hyper["teacher_temp"]),
            ramp(
                epoch - hyper["mim_start_epoch"],
                warmup,
                hyper["warmup_teacher_temp2"],
                hyper["teacher_temp2"],
            ),
        )
        classes, patches, grads = ibot_terms(a, hyper, str(step), centers, temperatures)
        result |= {
            f"loss_step{step}": classes + patches,
            f"loss_cls_step{step}": classes,
            f"loss_patch_step{step}": patches,
            f"center_after{step}": centers[0][None].clone(),
            f"center2_after{step}": centers[1][None, None].clone(),
            f"temps_step{step}": number(temperatures),
            **{f"{key}_step{step}": grad for key, grad in grads.items()},
        }
    return result


def ibot_loss_2rank(a: Arrays, hyper: Hyper) -> Results:
    key = f"_rank{dist.rank()}"
    centers = ibot_centers(a, hyper, key)
    temperatures = hyper["teacher_temp"], hyper["teacher_temp2"]
    classes, patches, grads = ibot_terms(a, hyper, key, centers, temperatures)
    return {
        f"loss{key}": classes + patches,
        f"loss_cls{key}": classes,
        f"loss_patch{key}": patches,
        "center_after": centers[0][None],
        "centerp_after": centers[1][None, None],
        **{f"{name}{key}": grad for name, grad in grads.items()},
    }


def ibot_mask_sampler(hyper: Hyper, n: int) -> Tensor:
    ratios, spreads = (
        value if isinstance(value, list) else [value]
        for value in (hyper["pred_ratio"], hyper["pred_ratio_var"])
    )
    pairs = list(zip(ratios, spreads, strict=True))
    draws = Draws(0, 0, torch.arange(n))
    which = draws.uniform(np.arange(n), 0, len(pairs)).astype(int)
    ratio = np.array(pairs)[which]
    low, high = ratio[:, 0] - ratio[:, 1], ratio[:, 0] + ratio[:, 1]
    target = draws.uniform(np.arange(n), low, high)
    shape = {"block": "block", "rand": "random"}[hyper["pred_shape"]]
    target = target * hyper["grid"][0] * hyper["grid"][1]
    return ibot_masks(draws, target, tuple(hyper["grid"]), shape, tuple(hyper["pred_aspect_ratio"]))


# DINOv2


def dinov2_scheduler(a: Arrays, hyper: Hyper) -> Results:
    freeze, total, warmup = (hyper[k] for k in ("freeze_iters", "total_iters", "warmup_iters"))
    values = [
        schedule.warmup_cosine(
            i - freeze,
            total - freeze,
            warmup,
            hyper["base_value"],
            hyper["final_value"],
            start=hyper["start_warmup_value"],
            closed=True,
        )
        if i >= freeze
        else 0.0
        for i in range(total + 5)
    ]
    return {"schedule": torch.tensor(values, dtype=torch.float64)}


def class_token_loss(a: Arrays, hyper: Hyper) -> Results:
    student = [a[f"in/student{i}"].requires_grad_() for i in range(hyper["n_student"])]
    teacher = [a[f"in/teacher{i}"] for i in range(hyper["n_teacher"])]
    views = torch.stack(student)
    loss = cross_entropies(torch.stack(teacher), views, hyper["student_temp"]).sum()
    grads = torch.autograd.grad(loss, student)
    return {"loss": loss, **{f"grad_student{i}": grad for i, grad in enumerate(grads)}}


def koleo_loss(a: Arrays, hyper: Hyper) -> Results:
    x = a["in/x"].requires_grad_()
    loss = koleo(x)
    (grad,) = torch.autograd.grad(loss, x)
    return {"loss": loss, "grad": grad, "nn_index": nearest(nn.functional.normalize(x.detach()))}


def masked_patch_loss(a: Arrays, hyper: Hyper) -> Results:
    tau, mask = hyper["student_temp"], a["in/mask"].bool()
    places = masked_places(mask)
    student = a["in/student"].requires_grad_()
    padded = a["in/student_masked_padded"].requires_grad_()
    targets = a["in/teacher"][mask]
    full = patch_loss(targets, student[mask], mask, places, tau)
    masked = patch_loss(targets, padded[: len(targets)], mask, places, tau)
    (grad,) = torch.autograd.grad(full, student)
    (grad_padded,) = torch.autograd.grad(masked, padded)
    return {
        "loss_full": full,
        "grad_student_full": grad,
        "loss_masked": masked,
        "grad_student_masked": grad_padded[: len(targets)],
        "loss_masked_padded": masked,
        "grad_student_masked_padded": grad_padded,
        "masks_weight": patch_weights(mask, places, student.dtype),
    }


def sinkhorn_teacher(a: Arrays, hyper: Hyper) -> Results:
    q = sinkhorn(a["in/teacher_output"], hyper["teacher_temp"], hyper["n_iterations"])
    return {"q": q, "q_patch": q}


def softmax_center(a: Arrays, hyper: Hyper) -> Results:
    result = {}
    size = a["in/teacher_cls0"].shape[-1]
    center, patch_center = (a["in/teacher_cls0"].new_zeros(size) for _ in range(2))
    for step, tau in enumerate(hyper["teacher_temps"]):
        classes, patches = a[f"in/teacher_cls{step}"], a[f"in/teacher_patch{step}"]
        result |= {
            f"probs{step}": teacher_probabilities(classes, center, tau),
            f"patch_probs{step}": teacher_probabilities(patches, patch_center, tau),
            f"center_used{step}": center[None].clone(),
            f"patch_center_used{step}": patch_center[None, None].clone(),
        }
        update_center(center, [classes.mean(0)], hyper["center_momentum"])
        update_center(patch_center, [patches.mean((0, 1))], hyper["center_momentum"])
    return {
        **result,
        "center_final": center[None],
        "patch_center_final": patch_center[None, None],
    }


def sinkhorn_center_2rank(a: Arrays, hyper: Hyper) -> Results:
    rank = dist.rank()
    result = {}
    for suffix, part in (("", "cls"), ("_patch", "patch")):
        logits = a[f"in/teacher_{part}_rank{rank}"]
        q = sinkhorn(logits, hyper["teacher_temp"], hyper["n_iterations"])
        center = logits.new_zeros(logits.shape[1])
        update_center(center, [logits.mean(0)], hyper["center_momentum"])
        result[f"q{suffix}_rank{rank}"] = q
        if part == "cls":
            result["center_after"] = center[None]
        else:
            result["centerp_after"] = center[None, None]
    return result


def drop_path_subset(a: Arrays, hyper: Hyper) -> Results:
    x = a["in/x"].requires_grad_()
    kept = max(int(len(x) * (1 - hyper["sample_drop_ratio"])), 1)
    out = x + drop_samples(x, lambda x: torch.tanh(x @ a["in/W"]), a["in/perm"][:kept])
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    return {"out": out, "grad_x": grad}


def layer_decay(a: Arrays, hyper: Hyper) -> Results:
    """The groups that the optimiser gets for a ViT of that depth, under the names of timm."""
    backbone = ViT(
        "vit_tiny", image_size=4, patch=2, width=4, heads=1, depth=hyper["depth"], layer_scale=1e-5
    )
    config = DINOv2Settings(
        outputs=2,
        hidden=2,
        bottleneck=2,
        layer_decay=hyper["layerwise_decay"],
        patch_rate=hyper["patch_embed_lr_mult"],
    )
    method = DINOv2(config, backbone)
    names = {id(p): name.removeprefix("backbone.") for name, p in method.named_parameters()}
    found = {}
    for group in optim.parameter_groups(method, Optim(weight_decay=1.0)):
        for p in group["params"]:
            name = names[id(p)].replace("block.", "blocks.").replace("attn.qkv.", "attn.")
            name = name.replace("last_norm.", "norm.")
            found[name] = group["lr_scale"], group["weight_decay"]
    rates, decays = zip(*(found[name] for name in hyper["parameter_names"]), strict=True)
    return {"lr_multiplier": number(rates), "wd_multiplier": number(decays)}


class Given(Backbone):
    """Returns given tokens: those of the global crops where patches are replaced, else others."""

    norm = IMAGENET
    can = DINOv2.needs

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.stride = dim, 1

    def show(self, classes: Tensor, patches: Tensor, local: Tensor | None = None) -> None:
        self.given = {True: (classes, patches), False: (local, None)}

    def forward(self, x: Tensor, *, replace: Any = True) -> Features:
        pooled, tokens = self.given[replace is not None]
        return Features(pooled, tokens, (0, 0))


class Student(Given):
    def forward(self, x: Tensor, *, replace: Any = None) -> Features:
        return super().forward(x, replace=replace)


class Linear(nn.Module):
    """A linear head of given weights, [D, K], all of it in the last layer."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def embed(self, x: Tensor) -> Tensor:
        return x

    def last_layer(self, x: Tensor) -> Tensor:
        return x @ self.weight


def total_loss(a: Arrays, hyper: Hyper) -> Results:
    """The method itself, its networks replaced by ones that return what is given."""
    separate, size, n_local = hyper["separate_ibot_head"], hyper["B"], hyper["local_crops"]
    config = DINOv2Settings(
        outputs=hyper["K"],
        separate_heads=separate,
        targets={"centering": "centering", "sinkhorn_knopp": "sinkhorn"}[hyper["centering"]],
        student_temperature=hyper["student_temp"],
        teacher_temperature=hyper["teacher_temp"],
        teacher_warmup=0,
        class_weight=hyper["dino_loss_weight"],
        patch_weight=hyper["ibot_loss_weight"],
        koleo_weight=hyper["koleo_loss_weight"],
    )
    method = DINOv2(config, Student(hyper["dim"])).to(a["in/student_cls"].dtype)
    method.teacher = Given(hyper["dim"])
    method.head = Linear(a["in/student_dino_head"])
    method.teacher_head = Linear(a["in/teacher_dino_head"])
    if separate:
        method.patch_head = Linear(a["in/student_ibot_head"])
        method.teacher_patch_head = Linear(a["in/teacher_ibot_head"])
    names = ("student_cls", "student_patch", "student_local_cls")
    tokens = {name: a[f"in/{name}"].requires_grad_() for name in names if f"in/{name}" in a}
    method.backbone.show(*tokens.values())
    method.teacher.show(a["in/teacher_cls"], a["in/teacher_patch"])

    mask = a["in/mask"].bool().unflatten(0, (2, size))
    views = {"global": torch.zeros(2, size, 3, 4, 4), "mask": mask}
    if n_local:
        views["local"] = torch.zeros(n_local, size, 3, 2, 2)
    out = method(views, Progress(0, 1, 0, 0.0))
    out.loss.backward()

    heads = {"student_dino_head": method.head, "student_ibot_head": method.patch_head}
    grads = {name: x.grad for name, x in tokens.items()}
    grads |= {name: head.weight.grad for name, head in heads.items() if head is not None}
    # what the authors log: the class loss in two parts, others halved
    logits = a["in/teacher_cls"] @ a["in/teacher_dino_head"]
    p = method._targets(logits, method.center, hyper["teacher_temp"]).unflatten(0, (2, size))
    crops = torch.cat([x for name, x in tokens.items() if name != "student_patch"])
    crops = (crops @ method.head.weight).unflatten(0, (-1, size))
    pairs = cross_entropies(p, crops, hyper["student_temp"]) / (2 + 2 * n_local)
    display = {
        "dino_global_crops_loss": pairs[0, 1] + pairs[1, 0],
        "dino_local_crops_loss": pairs[:, 2:].sum(),
        "koleo_loss": hyper["koleo_loss_weight"] * out.metrics["koleo"] / 2,
        "ibot_loss": out.metrics["patch_loss"] / 2,
    }
    means = {
        "center": out.carry["center"],
        "patch_center": out.carry["patch_sum"] / out.carry["patch_count"],
    }
    for name, mean in means.items():
        update_center(getattr(method, name), [mean], config.center_momentum)
    return {
        "total_loss": out.loss,
        "center_after": method.center[None],
        "patch_center_after": method.patch_center[None, None],
        **{f"grad_{name}": grad for name, grad in grads.items()},
        **{f"display_{name}": value for name, value in display.items()},
    }


class PythonDraws(Draws):
    """Numbers for one mask at a time, in the order in which the authors take them."""

    def __init__(self, stream: random.Random) -> None:
        self.count, self.stream = 1, stream

    def uniform(self, rows: np.ndarray, low: Any, high: Any) -> np.ndarray:
        ends = np.broadcast_arrays(low, high, rows)[:2]
        pairs = zip(*(np.atleast_1d(end).tolist() for end in ends), strict=True)
        return np.array([self.stream.uniform(*pair) for pair in pairs])

    def integer(self, rows: np.ndarray, high: np.ndarray) -> np.ndarray:
        return np.array([self.stream.randint(0, int(h)) for h in high], dtype=np.int64)


def collate(a: Arrays, hyper: Hyper) -> Results:
    """The authors' masks of a batch, from their stream of random numbers."""
    size, tokens, n_local = (hyper[k] for k in ("n_samples", "n_tokens", "local_crops"))
    side = round(tokens**0.5)
    draws = PythonDraws(random.Random(hyper["python_random_seed"]))
    masked = int(2 * size * hyper["mask_probability"])
    edges = torch.linspace(*hyper["mask_ratio_tuple"], masked + 1)
    masks = []
    for low, high in pairwise(edges):
        target = np.array([int(tokens * draws.stream.uniform(low, high))])
        masks.append(block_masks(draws, target, (side, side), smallest=4, largest=0.5 * tokens)[0])
    masks += [torch.zeros(side, side, dtype=torch.bool)] * (2 * size - masked)
    draws.stream.shuffle(masks)
    mask = torch.stack(masks).flatten(1)
    tags = torch.arange(size) + 0.0
    return {
        "masks": mask,
        "mask_indices_list": masked_places(mask),
        "n_masked_patches": mask.sum()[None],
        "upperbound": torch.tensor(sum(int(tokens * edge) for edge in edges[1:])),
        "masks_weight": patch_weights(mask, masked_places(mask)),
        "global_order": torch.stack([tags, tags + 100]).flatten(0, 1),
        "local_order": torch.stack([tags + 1000 * (j + 1) for j in range(n_local)]).flatten(0, 1),
    }


def dinov2_mask_sampler(hyper: Hyper, n: int) -> Tensor:
    draws = Draws(0, 0, torch.arange(n))
    wanted = hyper["num_masking_patches"]
    low, high = wanted if isinstance(wanted, list) else (wanted, wanted)
    target = low + draws.integer(np.arange(n), np.full(n, high - low))
    return block_masks(
        draws,
        target,
        tuple(hyper["grid"]),
        smallest=hyper["min_num_patches"],
        largest=hyper["max_num_patches"],
        aspect=(hyper["min_aspect"], 1 / hyper["min_aspect"]),
    )


TABLE: dict[tuple[str, str], Callable[[Arrays, Hyper], Results]] = {
    ("dino", "cosine_scheduler"): cosine_scheduler,
    ("dino", "clip_gradients"): clip_gradients,
    ("dino", "head"): dino_head,
    ("dino", "loss"): dino_loss_steps,
    ("dino", "loss_2rank"): dino_loss_2rank,
    ("dino", "multicrop"): multicrop,
    ("ibot", "head"): ibot_head,
    ("ibot", "loss"): ibot_loss,
    ("ibot", "loss_2rank"): ibot_loss_2rank,
    ("dinov2", "cosine_scheduler"): dinov2_scheduler,
    ("dinov2", "dino_clstoken_loss"): class_token_loss,
    ("dinov2", "koleo"): koleo_loss,
    ("dinov2", "ibot_patch_loss"): masked_patch_loss,
    ("dinov2", "sinkhorn_knopp_teacher"): sinkhorn_teacher,
    ("dinov2", "softmax_center_teacher"): softmax_center,
    ("dinov2", "sinkhorn_center_2rank"): sinkhorn_center_2rank,
    ("dinov2", "drop_path_subset"): drop_path_subset,
    ("dinov2", "layer_decay"): layer_decay,
    ("dinov2", "total_loss"): total_loss,
    ("dinov2", "collate"): collate,
}

SAMPLERS: dict[tuple[str, str], Callable[[Hyper, int], Tensor]] = {
    ("ibot", "block_mask_stats"): ibot_mask_sampler,
    ("dinov2", "masking_generator_stats"): dinov2_mask_sampler,
}
