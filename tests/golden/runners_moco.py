"""Golden cases of MoCo and MoCo v3: the classes on the authors' little encoders."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame import dist, schedule
from selfsame.backbones import wrap
from selfsame.methods import moco, mocov3
from selfsame.nn.positions import sincos_2d
from selfsame.types import Backbone, Progress

Arrays = Mapping[str, Tensor]
NOW = Progress(0, 1, 0, 0.0)


def network(**layers: nn.Module) -> Backbone:
    """A backbone of named layers, the first of them linear."""
    (first, *_) = layers.values()
    assert isinstance(first, nn.Linear)
    return wrap(nn.Sequential(OrderedDict(layers)), torch.zeros(2, first.in_features))


def linear(weight: Tensor) -> nn.Linear:
    return nn.Linear(weight.shape[1], weight.shape[0])


def fill(module: nn.Module, a: Arrays, prefix: str) -> None:
    """Copy the arrays that are named like the module's parameters into them."""
    for name, parameter in module.named_parameters():
        parameter.data.copy_(a[prefix + name])


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def build_moco(hyper: Mapping[str, Any], backbone: Backbone, layers: int) -> moco.MoCo:
    config = moco.Settings(
        temperature=hyper["T"],
        queue=hyper["K"],
        output=hyper["dim"],
        layers=layers,
        bn_groups=dist.world_size(),
        momentum=hyper.get("m", 0.999),
    )
    return moco.MoCo(config, backbone).train()


def identity_moco(a: Arrays, hyper: Mapping[str, Any]) -> moco.MoCo:
    """MoCo whose encoders are the identity, with the given queue."""
    eye = torch.eye(hyper["dim"])
    method = build_moco(hyper, network(l1=linear(eye)), layers=1)
    for parameter in method.parameters():
        parameter.data.copy_(eye if parameter.ndim == 2 else torch.zeros(len(eye)))
    method.queue.keys.copy_(a["state/queue"].T)
    method.queue.pointer.fill_(int(a["state/ptr"]) if "state/ptr" in a else 0)
    return method


def moco_logits(method: moco.MoCo, x: Tensor, permutation: Tensor | None = None) -> Tensor:
    q, k = method.encode(x, permutation)
    return moco.similarities(q, k, method.queue.keys, method.config.temperature)


def queue_state(method: moco.MoCo, suffix: str = "") -> dict[str, Tensor]:
    return {
        f"queue_after{suffix}": method.queue.keys.T.clone(),
        f"ptr_after{suffix}": method.queue.pointer[None].clone(),
    }


def logits_queue(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    method = identity_moco(a, hyper)
    result = {}
    for step in range(hyper["steps"]):
        q = a[f"in/q{step}"].requires_grad_()
        x = torch.stack([q, a[f"in/k{step}"]])
        out = method({"global": x}, NOW)
        (grad,) = torch.autograd.grad(out.loss, q)
        result |= {
            f"loss_step{step}": out.loss,
            f"logits_step{step}": moco_logits(method, x),
            f"grad_q_step{step}": grad,
        }
        method.after_step(NOW, [out.carry])
        result |= queue_state(method, str(step))
    return result


def queue_2rank(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    rank = dist.rank()
    method = identity_moco(a, hyper)
    q = a[f"in/im_q_rank{rank}"].requires_grad_()
    x = torch.stack([q, a[f"in/im_k_rank{rank}"]])
    torch.manual_seed(0)  # equal on all ranks, as in the loop: the shuffle draws from it
    out = method({"global": x}, NOW)
    (grad,) = torch.autograd.grad(out.loss, q)
    result = {
        f"loss_rank{rank}": out.loss,
        f"logits_rank{rank}": moco_logits(method, x),
        f"grad_im_q_rank{rank}": grad,
    }
    method.after_step(NOW, [out.carry])
    return result | queue_state(method)


def load_moco(method: moco.MoCo, a: Arrays) -> None:
    """The authors' two encoders, whose last layer ``fc`` is our head, and the queue."""
    for prefix, body, head in (
        ("state/encoder_q.", method.backbone, method.head),
        ("state/encoder_k.", method.key_backbone, method.key_head),
    ):
        fill(body.get_submodule("module"), a, prefix)
        if prefix + "fc.weight" in a:
            fill(head[0], a, prefix + "fc.")
        else:
            fill(head, a, prefix + "fc.")
    method.queue.keys.copy_(a["state/queue"].T)


def named(method: moco.MoCo, body: nn.Module, head: nn.Module) -> dict[str, nn.Module]:
    """Prefixes of the authors' names and the modules that hold those parameters."""
    return {"": body.get_submodule("module"), "fc.": head[0] if method.config.layers == 1 else head}


def moco_full_step(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    backbone = network(l1=linear(a["state/encoder_q.l1.weight"]), relu=nn.ReLU())
    method = build_moco(hyper, backbone, layers=2 if hyper["mlp"] else 1)
    load_moco(method, a)
    method.update_key_encoder()  # the authors' order
    x = torch.stack([a["in/im_q"], a["in/im_k"]])
    out = method({"global": x}, NOW)
    out.loss.backward()
    result = {"loss": out.loss, "logits": moco_logits(method, x)}
    for prefix, module in named(method, method.backbone, method.head).items():
        result |= {f"grad_encoder_q.{prefix}{k}": g for k, g in gradients(module).items()}
    for prefix, module in named(method, method.key_backbone, method.key_head).items():
        result |= {f"encoder_k_after.{prefix}{k}": p.clone() for k, p in module.named_parameters()}
    method.after_step(NOW, [out.carry])
    return result | queue_state(method)


def shuffle_bn_2rank(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    rank = dist.rank()
    l1 = linear(a["state/encoder_q.l1.weight"])
    backbone = network(l1=l1, bn=nn.BatchNorm1d(l1.out_features), relu=nn.ReLU())
    method = build_moco(hyper, backbone, layers=1)
    load_moco(method, a)
    method.update_key_encoder()
    im_q = a[f"in/im_q_rank{rank}"].requires_grad_()
    x = torch.stack([im_q, a[f"in/im_k_rank{rank}"]])
    q, k = method.encode(x, a["in/perm"])
    logits = moco.similarities(q, k, method.queue.keys, method.config.temperature)
    loss = moco.info_nce(logits)
    loss.backward()
    result = {
        f"loss_rank{rank}": loss,
        f"logits_rank{rank}": logits,
        f"grad_im_q_rank{rank}": im_q.grad,
    }
    for prefix, module in named(method, method.backbone, method.head).items():
        result |= {f"grad.{prefix}{k}_rank{rank}": g for k, g in gradients(module).items()}
    method.after_step(NOW, [{"keys": k}])
    return result | queue_state(method)


def contrastive_loss(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    q1, q2 = a["in/q1"].requires_grad_(), a["in/q2"].requires_grad_()
    one, *_ = mocov3.ctr(q1, a["in/k2"], hyper["T"])
    two, *_ = mocov3.ctr(q2, a["in/k1"], hyper["T"])
    grad1, grad2 = torch.autograd.grad(one + two, (q1, q2))
    return {
        "loss": one + two,
        "loss_q1k2": one,
        "loss_q2k1": two,
        "grad_q1": grad1,
        "grad_q2": grad2,
    }


def contrastive_loss_2rank(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    rank = dist.rank()
    own = {
        key.removesuffix(f"_rank{rank}"): value
        for key, value in a.items()
        if key.endswith(f"_rank{rank}")
    }
    result = contrastive_loss(own, hyper)
    return {
        f"loss_rank{rank}": result["loss"],
        f"grad_qa_rank{rank}": result["grad_q1"],
        f"grad_qb_rank{rank}": result["grad_q2"],
    }


def mocov3_full_step(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    backbone = network(body=linear(a["state/base_encoder.body.weight"]), relu=nn.ReLU())
    vit = "state/base_encoder.head.6.weight" in a  # its projector has a third layer
    config = mocov3.Settings(
        temperature=hyper["T"],
        momentum=hyper["m"],
        hidden=hyper["mlp_dim"],
        output=hyper["dim"],
        projector_layers=3 if vit else 2,
        predictor_norm=vit,
    )
    method = mocov3.MoCoV3(config, backbone).train()
    base = {"": method.backbone.get_submodule("module"), "head.": method.projector}
    keys = {"": method.key_backbone.get_submodule("module"), "head.": method.key_projector}
    for prefix in base:
        fill(base[prefix], a, f"state/base_encoder.{prefix}")
        fill(keys[prefix], a, f"state/momentum_encoder.{prefix}")
    fill(method.predictor, a, "state/predictor.")

    method.update_momentum_encoder(hyper["m"])  # the authors' order
    out = method({"global": torch.stack([a["in/x1"], a["in/x2"]])}, NOW)
    out.loss.backward()
    result = {"loss": out.loss}
    for prefix in base:
        result |= {f"grad.base_encoder.{prefix}{k}": g for k, g in gradients(base[prefix]).items()}
        result |= {
            f"after.momentum_encoder.{prefix}{k}": p for k, p in keys[prefix].named_parameters()
        }
    return result | {f"grad.predictor.{k}": g for k, g in gradients(method.predictor).items()}


def schedules(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    total = hyper["epochs"]
    epochs = a["in/epoch"].tolist()
    lr = [
        schedule.warmup_cosine(e, total, hyper["warmup_epochs"], hyper["lr"], 0.0) for e in epochs
    ]
    momentum = [schedule.cosine(e, total, hyper["moco_m"], 1.0) for e in epochs]
    return {"lr": torch.tensor(lr), "momentum": torch.tensor(momentum)}


def sincos_pos_embed(a: Arrays, hyper: Mapping[str, Any]) -> dict[str, Tensor]:
    """The authors' table runs through the grid column by column: rows and columns change places."""
    table = sincos_2d(
        hyper["embed_dim"],
        hyper["w"],
        hyper["h"],
        first="row",
        temperature=hyper["temperature"],
    )
    return {"pos_embed": F.pad(table, (0, 0, 1, 0))[None].to(torch.get_default_dtype())}


TABLE: dict[tuple[str, str], Callable[[Arrays, Mapping[str, Any]], dict[str, Tensor]]] = {
    ("moco", "logits_queue"): logits_queue,
    ("moco", "full_step"): moco_full_step,
    ("moco", "queue_2rank"): queue_2rank,
    ("moco", "shuffle_bn_2rank"): shuffle_bn_2rank,
    ("mocov3", "contrastive_loss"): contrastive_loss,
    ("mocov3", "contrastive_loss_2rank"): contrastive_loss_2rank,
    ("mocov3", "full_step"): mocov3_full_step,
    ("mocov3", "schedules"): schedules,
    ("mocov3", "sincos_pos_embed"): sincos_pos_embed,
}
