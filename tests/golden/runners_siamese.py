"""Golden runners of BYOL, SimSiam, Barlow Twins and VICReg."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsame import dist, optim, schedule
from selfsame.methods import barlow_twins, byol, simsiam, vicreg
from selfsame.nn import ema
from selfsame.optim import Optim
from selfsame.types import Backbone, Features, Progress

Arrays = Mapping[str, Tensor]
Hyper = Mapping[str, Any]


def byol_loss(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    """The library has no probe: its cross-entropy, in float64 as the authors', is added here."""
    q1, q2 = (a[f"in/prediction_view{i}"].requires_grad_() for i in (1, 2))
    z1, z2 = (a[f"in/projection_view{i}"].requires_grad_() for i in (1, 2))
    logits = a["in/logits_view1"].requires_grad_()
    representation = byol.byol_loss(q1, q2, z1, z2)
    probe = F.cross_entropy(logits.double(), a["in/labels"])
    loss = representation + probe
    loss.backward()
    assert z1.grad is None
    assert z2.grad is None
    return {
        "loss": loss,
        "repr_loss": representation,
        "classif_loss": probe,
        "grad_logits_view1": logits.grad,
        "grad_prediction_view1": q1.grad,
        "grad_prediction_view2": q2.grad,
    }


def byol_ema(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    target, online = (nn.ParameterList([a[f"in/{name}"]]) for name in ("target", "online"))
    ema.update(target, online, hyper["tau"])
    return {"target_after": target[0]}


def byol_schedules(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    steps, total = a["in/steps"].tolist(), hyper["max_steps"]
    peak = optim.scaled_lr(Optim(lr=hyper["base_learning_rate"]), hyper["batch_size"])
    warmup, base = hyper["warmup_steps"], hyper["base_ema"]
    tau = [byol.target_decay(Progress(step, total, 0, 0.0), base) for step in steps]
    lr = [schedule.warmup_cosine(step, total, warmup, peak, 0.0) for step in steps]
    return {
        "tau": torch.tensor(tau),
        "lr": torch.tensor(lr),
    }


def simsiam_loss(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    p1, p2, z1, z2 = (a[f"in/{name}"].requires_grad_() for name in ("p1", "p2", "z1", "z2"))
    loss = simsiam.simsiam_loss(p1, p2, z1, z2)
    loss.backward()
    assert z1.grad is None
    assert z2.grad is None
    return {"loss": loss, "grad_p1": p1.grad, "grad_p2": p2.grad}


class Trunk(Backbone):
    """The trunk of the case: a linear layer and a ReLU in the backbone's place."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Linear(inputs, outputs)
        self.dim = outputs

    def forward(self, x: Tensor) -> Features:
        return Features(self.body(x).relu(), None, (0, 0))


def simsiam_forward(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    ours = {"encoder.body": "backbone.body", "encoder.fc": "projector", "predictor": "predictor"}

    def renamed(name: str) -> str:
        prefix = next(key for key in ours if name.startswith(key))
        return ours[prefix] + name.removeprefix(prefix)

    state = {k.removeprefix("state/"): v for k, v in a.items() if k.startswith("state/")}
    outputs, inputs = state["encoder.body.weight"].shape
    config = simsiam.Settings(output=hyper["dim"], bottleneck=hyper["pred_dim"])
    method = simsiam.SimSiam(config, Trunk(inputs, outputs)).to(a["in/x1"].dtype)
    missing, extra = method.load_state_dict(
        {renamed(name): value for name, value in state.items()}, strict=False
    )
    assert all("running" in key or "num_batches" in key for key in missing)
    assert extra == ["projector.6.bias"]  # the authors freeze it: a BatchNorm cancels it

    x1, x2 = a["in/x1"], a["in/x2"]
    loss = method({"global": torch.stack([x1, x2])}, Progress(0, 1, 0, 0.0)).loss
    loss.backward()
    (z1, p1), (z2, p2) = method.branch(x1), method.branch(x2)
    result = {"loss": loss, "p1": p1, "p2": p2, "z1": z1, "z2": z2}
    for name in state:
        if renamed(name) not in extra:
            result[f"grad.{name}"] = method.get_parameter(renamed(name)).grad
    return result


def barlow_loss(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    z1, z2 = a["in/z1"].requires_grad_(), a["in/z2"].requires_grad_()
    norm = barlow_twins.Standardize(z1.shape[1]).to(z1.dtype)
    norm.eps, norm.momentum = hyper["bn_eps"], hyper["bn_momentum"]
    c = barlow_twins.cross_correlation(norm(z1), norm(z2))
    loss = barlow_twins.barlow_twins_loss(c, hyper["lambd"])
    loss.backward()
    return {
        "loss": loss,
        "cross_correlation": c,
        "grad_z1": z1.grad,
        "grad_z2": z2.grad,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }


def barlow_loss_2rank(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    """The stored gradients are those of one global loss; ours are those of the sum over ranks.

    Ours become the true ones in the average over ranks; the authors' are then too small by their
    number, since autograd does not see their sum of the matrices.
    """
    rank = dist.rank()
    z1, z2 = (a[f"in/z{i}_rank{rank}"].requires_grad_() for i in (1, 2))
    norm = barlow_twins.Standardize(z1.shape[1]).to(z1.dtype)
    c = barlow_twins.cross_correlation(norm(z1), norm(z2))
    loss = barlow_twins.barlow_twins_loss(c, hyper["lambd"])
    loss.backward()
    return {
        "loss": loss,
        f"grad_za_rank{rank}": z1.grad / dist.world_size(),
        f"grad_zb_rank{rank}": z2.grad / dist.world_size(),
    }


def barlow_lr_schedule(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    ratio = hyper["lr_biases"] / hyper["lr_weights"]
    options = barlow_twins.recipe("paper", 224).optim.model_copy(
        update={"lr": hyper["lr_weights"], "lr_1d": ratio}
    )
    optimizer = optim.build(nn.Linear(2, 2), options, hyper["batch_size"])
    peak = optim.scaled_lr(options, hyper["batch_size"])
    epoch = hyper["steps_per_epoch"]
    total, warmup = hyper["epochs"] * epoch, hyper["warmup_epochs"] * epoch
    rates: dict[str, list[float]] = {"weights": [], "excluded": []}
    for step in a["in/step"].tolist():
        lr = schedule.warmup_cosine(step, total, warmup, peak, options.final_lr * peak)
        optim.set_rates(optimizer, lr, options.weight_decay)
        for group in optimizer.param_groups:
            rates[group["name"]].append(group["lr"])
    return {
        "lr_weights": torch.tensor(rates["weights"], dtype=torch.float64),
        "lr_biases": torch.tensor(rates["excluded"], dtype=torch.float64),
    }


def vicreg_settings(hyper: Hyper) -> vicreg.Settings:
    return vicreg.Settings(
        lambd=hyper["sim_coeff"],
        mu=hyper["std_coeff"],
        nu=hyper["cov_coeff"],
        eps=hyper.get("eps", vicreg.Settings().eps),
    )


def vicreg_loss(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    config = vicreg_settings(hyper)
    z1, z2 = a["in/z1"].requires_grad_(), a["in/z2"].requires_grad_()
    parts = vicreg.terms(z1, z2, config)
    loss = vicreg.vicreg_loss(parts, config)
    loss.backward()
    named = {f"term_{name}": term for name, term in parts._asdict().items()}
    return {"loss": loss, "grad_z1": z1.grad, "grad_z2": z2.grad, **named}


def vicreg_loss_2rank(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    rank, config = dist.rank(), vicreg_settings(hyper)
    z1, z2 = (a[f"in/z{i}_rank{rank}"].requires_grad_() for i in (1, 2))
    loss = vicreg.vicreg_loss(vicreg.terms(z1, z2, config), config)
    loss.backward()
    return {
        f"loss_rank{rank}": loss,
        f"grad_za_rank{rank}": z1.grad,
        f"grad_zb_rank{rank}": z2.grad,
    }


TABLE = {
    ("byol", "loss"): byol_loss,
    ("byol", "ema"): byol_ema,
    ("byol", "schedules"): byol_schedules,
    ("simsiam", "loss"): simsiam_loss,
    ("simsiam", "full_forward"): simsiam_forward,
    ("barlowtwins", "loss"): barlow_loss,
    ("barlowtwins", "loss_2rank"): barlow_loss_2rank,
    ("barlowtwins", "lr_schedule"): barlow_lr_schedule,
    ("vicreg", "loss"): vicreg_loss,
    ("vicreg", "loss_2rank"): vicreg_loss_2rank,
}
