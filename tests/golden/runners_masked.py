"""Golden cases of the methods that hide tokens: MAE and data2vec 2.0."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from selfsame import optim, schedule
from selfsame.backbones.vit import Block, ViT, keep_tokens, layer_of
from selfsame.methods import data2vec2 as d2v
from selfsame.methods import mae
from selfsame.nn import ema
from selfsame.nn.decoders import Decoder2d
from selfsame.nn.positions import sincos_2d
from selfsame.rng import uniforms
from selfsame.types import Progress
from selfsame.views.masks import inverse_block_count, inverse_block_masks

Arrays = Mapping[str, Tensor]
Hyper = Mapping[str, Any]
START = Progress(step=0, total=1, images=0, epoch=0.0)


def load(module: nn.Module, a: Arrays, prefix: str, renames: Mapping[str, str]) -> dict[str, str]:
    """Fill a module with a case's state; the official name of each of its parameters."""
    dtype = next(iter(a.values())).dtype
    state, official = {}, {}
    for key, value in a.items():
        if not key.startswith(prefix):
            continue
        ours = name = key.removeprefix(prefix)
        for pattern, new in renames.items():
            ours = re.sub(pattern, new, ours)
        state[ours], official[ours] = value, name
    module.to(dtype).load_state_dict(state)
    return official


def gradients(module: nn.Module, official: Mapping[str, str]) -> dict[str, Tensor]:
    return {
        f"grad.{official[name]}": p.grad
        for name, p in module.named_parameters()
        if p.grad is not None
    }


def mae_loss(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    prediction = a["in/pred"].requires_grad_()
    target = mae.patchify(a["in/imgs"], hyper["patch_size"])
    if hyper["norm_pix_loss"]:
        target = mae.normalize_patches(target)
    loss = mae.masked_mse(prediction, target, a["in/mask"])
    (grad,) = torch.autograd.grad(loss, prediction)
    return {"loss": loss, "grad_pred": grad}


def mae_positions(_: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    dim, side = hyper["embed_dim"], hyper["grid_size"]
    table = sincos_2d(dim, side, side)
    first = table.new_zeros(int(hyper["cls_token"]), dim)
    return {"pos_embed": torch.cat([first, table])}


def mae_forward(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    backbone = ViT(
        "vit_tiny",
        image_size=hyper["img_size"],
        channels=hyper["in_chans"],
        patch=hyper["patch_size"],
        width=hyper["embed_dim"],
        depth=hyper["depth"],
        heads=hyper["num_heads"],
        mlp_ratio=hyper["mlp_ratio"],
        positions="mae",
    )
    assert hyper["mlp_ratio"] == 4  # the decoder's is fixed
    settings = mae.Settings(
        mask_ratio=hyper["mask_ratio"],
        norm_pix=hyper["norm_pix_loss"],
        width=hyper["decoder_embed_dim"],
        depth=hyper["decoder_depth"],
        heads=hyper["decoder_num_heads"],
    )
    method = mae.MAE(settings, backbone)
    renames = {
        r"^(cls_token|patch_embed|blocks|norm\.)": r"backbone.\1",
        r"^backbone\.blocks": "backbone.block",
        r"^backbone\.norm": "backbone.last_norm",
        r"^mask_token": "decoder.mask_token",
        r"^decoder_blocks": "decoder.block",
        r"^decoder_pred": "decoder.predict",
        r"^decoder_": "decoder.",
    }
    official = load(method, a, "state/", renames)
    images = a["in/imgs"].requires_grad_()
    keep, restore = mae.random_masking(a["in/noise"], settings.mask_ratio)
    seen: dict[str, Tensor] = {}
    method.decoder.register_forward_hook(lambda _, __, out: seen.update(pred=out))
    views = {"global": images[None], "keep": keep[None], "restore": restore[None]}
    loss = method(views, START).loss
    loss.backward()
    latent = backbone(images, keep=keep)
    return {
        "loss": loss,
        "pred": seen["pred"],
        "mask": (restore >= keep.shape[1]).to(images.dtype),
        "latent": torch.cat([latent.pooled[:, None], latent.tokens], dim=1),
        "grad_imgs": images.grad,
        "pos_embed": backbone.pos_embed,
        "decoder_pos_embed": mae.decoder_positions(settings.width, latent.grid)
        .to(images.dtype)
        .unsqueeze(0),
        **gradients(method, official),
    }


def mae_layer_decay(_: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    depth, names = hyper["depth"], hyper["parameter_names"]
    scales = [hyper["layer_decay"] ** (depth + 1 - layer_of(name, depth)) for name in names]
    # the case's network has a norm, then a linear layer in each block
    spared = [
        re.search(r"bias$|norm\.|blocks\.\d+\.0\.", name) or name in hyper["no_weight_decay_list"]
        for name in names
    ]
    decays = [0.0 if one_dimensional else hyper["weight_decay"] for one_dimensional in spared]
    return {
        "lr_scale": torch.tensor(scales, dtype=torch.float64),
        "weight_decay": torch.tensor(decays, dtype=torch.float64),
    }


def mae_schedule(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    weight = nn.Parameter(torch.zeros(1))
    groups = [{"params": [weight], "lr_scale": hyper["lr_scale"]}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    plain, scaled = [], []
    for epoch in a["in/epoch"].tolist():
        lr = schedule.warmup_cosine(
            epoch, hyper["epochs"], hyper["warmup_epochs"], hyper["lr"], hyper["min_lr"]
        )
        optim.set_rates(optimizer, lr, 0.0)
        plain.append(lr)
        scaled.append(optimizer.param_groups[0]["lr"])
    return {
        "lr": torch.tensor(plain, dtype=torch.float64),
        "lr_scaled": torch.tensor(scaled, dtype=torch.float64),
    }


def mae_patchify(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    return {"patches": mae.patchify(a["in/imgs"], hyper["patch_size"])}


def mae_masking(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    keep, restore = mae.random_masking(a["in/noise"], hyper["mask_ratio"])
    return {
        "x_masked": keep_tokens(a["in/x"], keep),
        "mask": (restore >= keep.shape[1]).float(),
        "ids_restore": restore,
    }


def d2v_targets(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    kinds: tuple[d2v.Norm, ...] = ("batch", "instance", "layer")
    each = [kind for kind in kinds if hyper[f"{kind}_norm_target_layer"]]
    mean = [kind for kind in ("layer", "instance") if hyper[f"{kind}_norm_targets"]]
    layers = a["in/layers"][-hyper["average_top_k_layers"] :]
    return {"targets": d2v.make_targets(layers.unbind(), each, mean)}


def d2v_block(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    dim = hyper["dim"]
    block = Block(
        dim,
        hyper["heads"],
        int(dim * hyper["mlp_ratio"]),
        pre_norm=hyper["layer_norm_first"],
        eps=hyper["ln_eps"],
    )
    official = load(block, a, "state/", {})
    x = a["in/x"].requires_grad_()
    out, target = block.with_feed_forward(x)
    if hyper["layer_norm_first"]:  # the authors' branch, which no vision model uses: see the method
        out = 2 * target
    if not hyper["ffn_targets"]:
        target = out
    (out * a["in/cotangent"]).sum().backward()
    return {"out": out, "target": target, "grad_x": x.grad, **gradients(block, official)}


def d2v_loss(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    x = a["in/x"].requires_grad_()
    loss = d2v.d2v_loss(x, a["in/y"], beta=hyper["loss_beta"], scale=hyper["loss_scale"])
    (grad,) = torch.autograd.grad(loss.sum(), x)
    return {
        "loss_elements": loss,
        "loss_sum": loss.sum(),
        "loss_per_token": loss.sum() / len(x),
        "grad_x": grad,
    }


def d2v_decoder(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    decoder = Decoder2d(
        hyper["input_dim"],
        hyper["decoder_dim"],
        hyper["decoder_groups"],
        hyper["decoder_kernel"],
        hyper["decoder_layers"],
        residual=hyper["decoder_residual"],
    )
    load(decoder, a, "state/", {r"^blocks\.(\d+)\.0": r"convolution.\1"})
    x = a["in/x"].requires_grad_()
    out = decoder(x, tuple(hyper["grid"]))
    (grad,) = torch.autograd.grad(out.square().sum(), x)
    return {"out": out, "grad_x": grad}


def d2v_decay(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    shape = (hyper["ema_decay"], hyper["ema_end_decay"], hyper["ema_anneal_end_step"])
    decays = [d2v.ema_decay(step, *shape) for step in a["in/step"].tolist()]
    return {"decay": torch.tensor(decays, dtype=torch.float64)}


def d2v_ema(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    def module(prefix: str) -> nn.Module:
        values = {k.removeprefix(prefix): v for k, v in a.items() if k.startswith(prefix)}
        found = nn.Module()
        for name, value in values.items():
            found.register_parameter(name, nn.Parameter(value.clone()))
        return found

    teacher = ema.teacher_of(module("state/param."))
    result = {}
    for step in range(hyper["steps"]):
        ema.update(teacher, module(f"in/student{step}."), hyper["decay"])
        for name, value in teacher.named_parameters():
            result[f"ema.{name}.after{step}"] = value.detach().clone()
    return result


def d2v_forward(a: Arrays, hyper: Hyper) -> dict[str, Tensor]:
    images, mask = a["in/imgs"], a["in/mask"]
    backbone = ViT(
        "vit_tiny",
        image_size=hyper["img"],
        patch=hyper["patch"],
        width=hyper["embed_dim"],
        depth=hyper["prenet_depth"] + hyper["depth"],
        heads=hyper["heads"],
        positions="mae",
        pre_norm=False,
    )
    assert (hyper["num_extra_tokens"], hyper["loss_scale"]) == (1, "1/sqrt(D)")
    settings = d2v.Settings(
        masks=hyper["clone_batch"],
        mask_noise=hyper["mask_noise_std"],
        layers=hyper["average_top_k_layers"],
        loss_beta=hyper["loss_beta"],
        cls_loss=hyper["cls_loss"],
        cls_images=len(images),
        decoder_width=hyper["decoder"]["dim"],
        decoder_groups=hyper["decoder"]["groups"],
        decoder_kernel=hyper["decoder"]["kernel"],
        decoder_layers=hyper["decoder"]["layers"],
    )
    method = d2v.Data2Vec2(settings, backbone)
    prenet = hyper["prenet_depth"]

    def rename(name: str) -> str:
        name = name.removeprefix("modality_encoders.IMAGE.")
        if name.startswith("blocks."):
            _, i, rest = name.split(".", 2)
            name = f"block.{prenet + int(i)}.{rest}"
        for old, new in {
            "extra_tokens": "cls_token",
            "local_encoder": "patch_embed",
            "context_encoder.blocks": "block",
            "context_encoder.norm": "norm_pre",
        }.items():
            name = name.replace(old, new)
        return name

    state, official = {}, {}
    for key, value in a.items():
        side, _, name = key.removeprefix("state/").partition(".")
        if side not in ("student", "teacher"):
            continue
        ours = rename(name)
        if ours.startswith("decoder."):
            ours = re.sub(r"blocks\.(\d+)\.0", r"convolution.\1", ours)
        else:
            ours = f"{'backbone' if side == 'student' else 'teacher'}.{ours}"
        state[ours], official[ours] = value, name
    method.to(images.dtype).load_state_dict(state)

    order = mask.argsort(dim=-1, stable=True).unflatten(0, (1, len(images), -1))
    hidden = int(mask[0].sum())
    views = {"global": images[None], "keep": order[..., :-hidden], "hidden": order[..., -hidden:]}
    seen: dict[str, Tensor] = {}
    method.decoder.register_forward_hook(lambda _, __, out: seen.update(prediction=out))
    method.backbone.register_forward_hook(lambda _, __, out: seen.update(pooled=out.pooled))
    out = method(views, START)
    out.loss.backward()
    sample_size = mask.sum()

    # the two sums that the authors log
    targets = d2v.make_targets(method.teacher.feed_forwards(images, settings.layers))
    everywhere = targets.repeat_interleave(settings.masks, dim=0)
    regression = (d2v.d2v_loss(seen["prediction"], everywhere).sum(-1) * mask).sum()
    distance = d2v.d2v_loss(seen["pooled"], everywhere.mean(1)).sum()
    return {
        "total_per_sample_size": out.loss,
        "loss_regression_sum": regression,
        "loss_cls_sum": settings.cls_loss * sample_size * distance,
        "pos_embed": backbone.pos_embed[:, 1:],
        "target_var": out.metrics["target_std"],
        "pred_var": out.metrics["prediction_std"],
        "sample_size": sample_size.long(),
        **gradients(method, official),
    }


def d2v_masks(hyper: Hyper, n: int) -> Tensor:
    assert hyper["inverse_mask"]
    assert hyper["require_same_masks"]
    grid = tuple(hyper["grid"])
    shape = (hyper["mask_prob"], hyper["mask_length"], hyper["mask_prob_adjust"])
    _, numbers = inverse_block_count(grid, *shape)
    u = uniforms(0, 0, torch.arange(n), 0, d2v.OP_MASK, numbers)
    return inverse_block_masks(u, grid, mask_ratio=shape[0], block=shape[1], adjust=shape[2])


TABLE = {
    ("mae", "loss"): mae_loss,
    ("mae", "sincos_pos_embed"): mae_positions,
    ("mae", "full_forward"): mae_forward,
    ("mae", "layer_decay"): mae_layer_decay,
    ("mae", "lr_schedule"): mae_schedule,
    ("mae", "patchify"): mae_patchify,
    ("mae", "random_masking"): mae_masking,
    ("data2vec2", "make_targets"): d2v_targets,
    ("data2vec2", "block"): d2v_block,
    ("data2vec2", "d2v_loss"): d2v_loss,
    ("data2vec2", "decoder2d"): d2v_decoder,
    ("data2vec2", "ema_decay_schedule"): d2v_decay,
    ("data2vec2", "ema_step"): d2v_ema,
    ("data2vec2", "full_forward"): d2v_forward,
}
SAMPLERS = {("data2vec2", "block_mask_2d_stats"): d2v_masks}
