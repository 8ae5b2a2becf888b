"""Golden runners of knowledge distillation and DeiT."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsame.methods.deit import hard_loss, soft_loss
from selfsame.nn.mix import smoothed
from selfsame.nn.taught import soft_targets

Arrays = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def kd(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    student, teacher = a["in/student_logits"].requires_grad_(), a["in/teacher_logits"]
    temperature, alpha = hyper["T"], hyper["alpha"]
    soft = soft_targets(student, teacher, temperature)
    hard = F.cross_entropy(student, a["in/labels"])
    total = alpha * soft + (1 - alpha) * hard
    (grad,) = torch.autograd.grad(total, student)
    p = (teacher / temperature).softmax(1)
    entropy = temperature**2 * torch.special.entr(p).sum(1).mean()
    return {
        "kl_batchmean": soft / temperature**2,
        "kl_T2": soft,
        "soft_ce_T2": soft + entropy,
        "hard_ce": hard,
        "total": total,
        "grad_student_total": grad,
    }


def deit(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    outputs, kd_outputs = a["in/outputs"].requires_grad_(), a["in/outputs_kd"].requires_grad_()
    teacher, alpha = a["in/teacher_logits"], hyper["alpha"]
    smoothing = 0.1 if "smoothing" in hyper["base_criterion"] else 0.0
    target = smoothed(a["in/labels"], outputs.shape[1], smoothing).to(outputs.dtype)
    if hyper["distillation_type"] == "hard":
        taught = hard_loss(kd_outputs, teacher)
    else:
        taught = soft_loss(kd_outputs, teacher, hyper["tau"], by_class=True)
    loss = (1 - alpha) * F.cross_entropy(outputs, target) + alpha * taught
    grads = torch.autograd.grad(loss, (outputs, kd_outputs))
    return {"loss": loss, "grad_outputs": grads[0], "grad_outputs_kd": grads[1]}


TABLE = {("hinton_kd", "kd"): kd, ("deit", "distillation"): deit}
