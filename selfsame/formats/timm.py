"""timm: a folder for ``timm.create_model("local-dir:...")``, or for its hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from selfsame import backbones
from selfsame.backbones.resnet import DEPTHS, ResNet
from selfsame.backbones.vit import SIZES, ViT
from selfsame.encoder import Encoder
from selfsame.errors import UsageError
from selfsame.formats.format import Format, Reading, linear_head, of_library, tensors, title
from selfsame.formats.networks import resnet_lacks, resnet_shape, vit_lacks, vit_shape
from selfsame.formats.preprocess import Preprocess


class Timm(Format):
    """``model.safetensors`` and ``config.json`` in the layout of timm's hub."""

    name = "timm"
    library = "timm"
    needs = ("timm",)

    def lacks(self, encoder: Encoder) -> str | None:
        """Other stems than the 7x7 one, other widths of ResNets, normalisation after each part."""
        network = encoder.backbone
        if isinstance(network, ResNet):
            return resnet_lacks(network, stems=("imagenet",))
        if isinstance(network, ViT):
            return vit_lacks(network)
        if not of_library(encoder, "timm"):
            return f"network like {title(encoder)}"
        assert encoder.config is not None
        cifar = encoder.config.options.get("stem") == "cifar"
        return "ResNet with the stem 'cifar'" if cifar else None

    def write(self, encoder: Encoder, folder: Path) -> Reading:
        """Write the network under timm's name, arguments and keys."""
        import timm

        network, pre = encoder.backbone, Preprocess.of(encoder)
        head, notes = linear_head(encoder)
        if isinstance(network, ResNet):
            name, arguments, state = _resnet(network)
        elif isinstance(network, ViT):
            name, arguments, state = _vit(network)
        else:
            name, arguments, state = _own(encoder)
        if head is not None and not isinstance(_classifier(name), str):
            head, notes = None, ["without the classifier: timm's network has two"]
        classes = 0 if head is None else head.out_features
        model: Any = timm.create_model(name, num_classes=classes, **arguments)
        config = dict(model.pretrained_cfg)
        where = config.get("classifier")
        if head is not None:
            state |= {f"{where}.{key}": value for key, value in tensors(head.state_dict()).items()}
        model.load_state_dict(state)  # strict: what timm would not take is noticed here
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(
            json.dumps(
                {
                    "architecture": name.partition(".")[0],
                    "num_classes": classes,
                    "num_features": encoder.dim,
                    "pretrained_cfg": {
                        "tag": "selfsame",
                        "custom_load": False,
                        "input_size": [pre.channels, pre.size, pre.size],
                        "fixed_input_size": bool(config.get("fixed_input_size")),
                        "interpolation": pre.interpolation,
                        "crop_pct": pre.crop,
                        "crop_mode": "center",
                        "mean": list(pre.norm.mean),
                        "std": list(pre.norm.std),
                        "num_classes": classes,
                        "pool_size": config.get("pool_size"),
                        "first_conv": config.get("first_conv"),
                        "classifier": where,
                        **({"label_names": list(encoder.classes)} if encoder.classes else {}),
                    },
                    "model_args": arguments,
                },
                indent=2,
            )
        )
        use, outputs = _use(model.eval(), pre)
        if head is not None:
            use, outputs = [*use, "scores = model(x)"], [*outputs, "scores"]
        load = [
            "import timm",
            'model = timm.create_model("local-dir:{at}", pretrained=True).eval()',
        ]
        transform = (
            "config = timm.data.resolve_data_config({}, model=model)",
            "transform = timm.data.create_transform(**config)",
        )
        return Reading(
            load,
            use,
            outputs,
            transform if pre.channels == 3 else (),
            transformer="timm",
            notes=[f"name {name}", *notes],
        )


def _resnet(network: ResNet) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    shape = resnet_shape(network)
    exact = [n for n, own in DEPTHS.items() if own == (shape.bottleneck, shape.depths, 64)]
    plain = "resnet50" if shape.bottleneck else "resnet18"
    name = exact[0] if exact and exact[0] != "resnet10" else plain
    arguments: dict[str, Any] = {"in_chans": shape.channels}
    if name == plain:
        arguments["layers"] = list(shape.depths)
    return name, arguments, tensors(network.state_dict())


def _vit(network: ViT) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    shape = vit_shape(network)
    named = {width: name for name, (width, _, _) in SIZES.items()}
    name = named.get(shape.dim, "vit_base")  # the arguments say all that differs
    name += "_patch14_224" if name == "vit_huge" else "_patch16_224"
    hidden = shape.hidden
    if shape.swiglu:  # the name brings the gated perceptron; its first layer holds both halves
        name, hidden = "vit_giant_patch14_dinov2", 2 * shape.hidden
    ratio = hidden / shape.dim
    if int(shape.dim * ratio) != hidden:
        ratio = (hidden + 0.5) / shape.dim
    cls = shape.pool == "cls"
    arguments = {
        "img_size": shape.size,
        "patch_size": shape.patch,
        "in_chans": shape.channels,
        "embed_dim": shape.dim,
        "depth": shape.depth,
        "num_heads": shape.heads,
        "mlp_ratio": ratio,
        "class_token": cls,
        "global_pool": "token" if cls else "avg",
        "fc_norm": False,  # the mean is of normalised tokens, and not the other way round
    }
    if shape.layer_scale or shape.swiglu:
        arguments["init_values"] = 1.0  # the name of the gated perceptron brings layer scale
    state = tensors(network.state_dict())
    state["pos_embed"] = tensors({"": network.pos_embed})[""]  # fixed ones are no state of ours
    renamed = {}
    for key, value in state.items():
        key = key.replace("block.", "blocks.", 1) if key.startswith("block.") else key
        key = key.replace("last_norm.", "norm.").replace(".w12.", ".fc1.").replace(".w3.", ".fc2.")
        renamed[key] = value
    if shape.swiglu and not shape.layer_scale:
        for i in range(shape.depth):
            renamed |= {f"blocks.{i}.ls{n}.gamma": torch.ones(shape.dim) for n in (1, 2)}
    return name, arguments, renamed


def _own(encoder: Encoder) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """A network that timm built for us: with the arguments that built it."""
    import timm

    assert encoder.config is not None
    name, options = encoder.config.name.rpartition("/")[2], dict(encoder.config.options)
    options.pop("stem", None)
    module = encoder.backbone.module
    assert isinstance(module, nn.Module)
    state = tensors(module.state_dict())
    common: dict[str, Any] = {"in_chans": encoder.channels, **options}
    for extra in (*backbones.timm_sizes(encoder.image_size), {}):
        try:
            timm.create_model(name, num_classes=0, **common, **extra).load_state_dict(state)
        except TypeError:
            continue
        return name, common | extra, state
    raise UsageError(f"timm does not build {name} with {common}", tip="--format onnx can write it")


def _classifier(name: str) -> Any:
    """What timm calls the classifier of a network: a name, or names where there are two."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    return None if config is None else config.classifier


def _use(model: Any, pre: Preprocess) -> tuple[list[str], list[str]]:
    """Python that takes the features of a timm network, by the shape of what it returns."""
    use = [
        "features = model.forward_features(x)",
        "pooled = model.forward_head(features, pre_logits=True)",
    ]
    with torch.no_grad():
        y = model.forward_features(torch.zeros(1, pre.channels, pre.size, pre.size))
    if y.ndim == 4:
        first = y.shape[1] == getattr(model, "num_features", y.shape[1])
        tokens = "features.flatten(2).transpose(1, 2)" if first else "features.flatten(1, 2)"
    elif y.ndim == 3:
        prefix = getattr(model, "num_prefix_tokens", 0)
        tokens = f"features[:, {prefix}:]" if prefix else "features"
    else:
        return use, ["pooled"]
    return [*use, f"tokens = {tokens}"], ["pooled", "tokens"]
