"""Hugging Face transformers: a folder for ``AutoModel.from_pretrained``.

Keys are those of the checkpoints on its hub, which every version reads; ``ViTModel`` for plain
ViTs, ``Dinov2Model`` for those with layer scale or a gated perceptron, ``ResNetModel``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from selfsame.backbones.resnet import ResNet
from selfsame.backbones.transformers import HuggingFace
from selfsame.backbones.vit import ViT
from selfsame.encoder import Encoder
from selfsame.formats.format import Format, Reading, linear_head, tensors, title
from selfsame.formats.networks import ViTShape, resnet_shape, vit_lacks, vit_shape
from selfsame.formats.preprocess import Preprocess

State = dict[str, Tensor]
BICUBIC = 3  # Pillow's number


class Transformers(Format):
    """``config.json``, ``model.safetensors`` and ``preprocessor_config.json``."""

    name = "transformers"
    library = "transformers"
    needs = ("transformers",)
    extra = "transformers"

    def lacks(self, encoder: Encoder) -> str | None:
        """Other stems than the 7x7 one, ViTs without a class token, and networks of others."""
        network = encoder.backbone
        if isinstance(network, HuggingFace):
            return None
        if isinstance(network, ResNet):
            stem = resnet_shape(network).stem
            return None if stem == "imagenet" else f"ResNet with the stem '{stem}'"
        if not isinstance(network, ViT):
            return f"network like {title(encoder)}"
        if (missing := vit_lacks(network)) is not None:
            return missing
        shape = vit_shape(network)
        if shape.pool != "cls":
            return "ViT without a class token (pool=mean)"
        whole = _ratio(shape) is not None or not _like_dinov2(shape)
        return None if whole else "ViT with layer scale whose mlp_ratio is no whole number"

    def write(self, encoder: Encoder, folder: Path) -> Reading:
        """Write the network under the keys of transformers' checkpoints."""
        network, pre = encoder.backbone, Preprocess.of(encoder)
        if isinstance(network, HuggingFace):
            reading = self._own(encoder, network, folder)
        else:
            reading = self._ours(encoder, folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(_processor(pre), indent=2))
        transform = (
            "from transformers import AutoImageProcessor",
            'processor = AutoImageProcessor.from_pretrained("{at}")',
            "",
            "def transform(image):  # a PIL image",
            '    return processor(image, return_tensors="pt").pixel_values[0]',
        )
        if pre.channels != 3:
            return reading
        return reading._replace(transform=transform, transformer="transformers")

    def _ours(self, encoder: Encoder, folder: Path) -> Reading:
        network = encoder.backbone
        head, notes = linear_head(encoder)
        if isinstance(network, ViT):
            kind, config, state = _vit(network)
        elif isinstance(network, ResNet):
            kind, config, state = _resnet(network)
        else:
            raise TypeError(f"no way to write {type(network).__name__}")  # `lacks` says so first
        base = {"ViT": "vit", "Dinov2": "dinov2", "ResNet": "resnet"}[kind]
        auto, architecture = "AutoModel", f"{kind}Model"
        if head is not None:
            auto, architecture = "AutoModelForImageClassification", f"{kind}ForImageClassification"
            state = {f"{base}.{key}": value for key, value in state.items()}
            state |= _classifier(kind, head.weight.detach(), head.bias.detach())
            names = encoder.classes or [f"class {i}" for i in range(head.out_features)]
            config["id2label"] = {str(i): name for i, name in enumerate(names)}
            config["label2id"] = {name: i for i, name in enumerate(names)}
        elif kind == "ViT":  # a pooler that hands the class token on: there is no other
            state["pooler.dense.weight"] = torch.eye(encoder.dim)
            state["pooler.dense.bias"] = torch.zeros(encoder.dim)
            config["pooler_act"] = "linear"
        config |= {"architectures": [architecture], "model_type": base}
        (folder / "config.json").write_text(json.dumps(config, indent=2))
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        load = [
            f"from transformers import {auto}",
            f'model = {auto}.from_pretrained("{{at}}").eval()',
        ]
        inner = f"model.{base}" if head is not None else "model"
        if kind == "ResNet":
            use = [f"y = {inner}(pixel_values=x)", "pooled = y.pooler_output.flatten(1)"]
            use.append("tokens = y.last_hidden_state.flatten(2).transpose(1, 2)")
        else:
            use = [
                f"y = {inner}(pixel_values=x).last_hidden_state",
                "pooled, tokens = y[:, 0], y[:, 1:]",
            ]
        outputs = ["pooled", "tokens"]
        if head is not None:
            use, outputs = [*use, "scores = model(pixel_values=x).logits"], [*outputs, "scores"]
        return Reading(load, use, outputs, notes=[f"class {architecture}", *notes])

    def _own(self, encoder: Encoder, network: HuggingFace, folder: Path) -> Reading:
        """A network that transformers built for us."""
        module: Any = network.module
        notes = [] if encoder.head is None else ["without the classifier: onnx and others carry it"]
        with _no_bars():
            module.save_pretrained(folder)
        example = torch.zeros(1, encoder.channels, encoder.image_size, encoder.image_size)
        extra = "".join(f", {key}={value}" for key, value in network.extra.items())
        with torch.no_grad():
            found = module(pixel_values=example, **network.extra)
            wanted = network(example)
        y = found.last_hidden_state
        use = [f"y = model(pixel_values=x{extra})"]
        if y.ndim == 4:
            mean = "y.last_hidden_state.mean((2, 3))"
            pooled = mean if found.pooler_output is None else "y.pooler_output.flatten(1)"
            tokens = "y.last_hidden_state.flatten(2).transpose(1, 2)"
        else:
            prefix = y.shape[1] - wanted.grid[0] * wanted.grid[1]
            pooled = "y.last_hidden_state[:, 0]" if prefix else "y.last_hidden_state.mean(1)"
            tokens = f"y.last_hidden_state[:, {prefix}:]" if prefix else "y.last_hidden_state"
        load = [
            "from transformers import AutoModel",
            'model = AutoModel.from_pretrained("{at}").eval()',
        ]
        use += [f"pooled = {pooled}", f"tokens = {tokens}"]
        return Reading(
            load, use, ["pooled", "tokens"], notes=[f"class {type(module).__name__}", *notes]
        )


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the progress bars of transformers."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _processor(pre: Preprocess) -> dict[str, Any]:
    """Resize the shorter side, cut the centre, scale, normalise: ``BitImageProcessor``."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": pre.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": pre.resize},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": pre.size, "width": pre.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pre.norm.mean),
        "image_std": list(pre.norm.std),
    }


def _resnet(network: ResNet) -> tuple[str, dict[str, Any], State]:
    shape = resnet_shape(network)
    expansion = 4 if shape.bottleneck else 1
    config = {
        "num_channels": shape.channels,
        "embedding_size": shape.width,
        "hidden_sizes": [shape.width * 2**i * expansion for i in range(len(shape.depths))],
        "depths": list(shape.depths),
        "layer_type": "bottleneck" if shape.bottleneck else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": False,
    }
    return "ResNet", config, {_resnet_key(k): v for k, v in tensors(network.state_dict()).items()}


def _resnet_key(key: str) -> str:
    """``layer1.0.conv2.weight`` -> ``encoder.stages.0.layers.0.layer.1.convolution.weight``."""
    if found := re.fullmatch(r"(conv|bn)1\.(\w+)", key):
        return f"embedder.embedder.{_PARTS[found[1]]}.{found[2]}"
    found = re.fullmatch(r"layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.([01]))\.(\w+)", key)
    assert found is not None, key
    stage, block, kind, number, shortcut, leaf = found.groups()
    place = f"encoder.stages.{int(stage) - 1}.layers.{block}"
    if shortcut is not None:
        return f"{place}.shortcut.{_PARTS['bn' if shortcut == '1' else 'conv']}.{leaf}"
    return f"{place}.layer.{int(number) - 1}.{_PARTS[kind]}.{leaf}"


_PARTS = {"conv": "convolution", "bn": "normalization"}


def _vit(network: ViT) -> tuple[str, dict[str, Any], State]:
    shape = vit_shape(network)
    dinov2 = _like_dinov2(shape)
    config: dict[str, Any] = {
        "hidden_size": shape.dim,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "hidden_act": "gelu",
        "image_size": shape.size,
        "patch_size": shape.patch,
        "num_channels": shape.channels,
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    }
    if dinov2:
        config |= {"mlp_ratio": _ratio(shape), "use_swiglu_ffn": shape.swiglu}
    else:
        config["intermediate_size"] = shape.hidden
    state = tensors(network.state_dict())
    state["pos_embed"] = tensors({"": network.pos_embed})[""]  # fixed ones are no state of ours
    found: State = {}
    for key, value in state.items():
        found |= _vit_keys(key, value, dinov2)
    if dinov2:
        found["embeddings.mask_token"] = torch.zeros(1, shape.dim)
        for i in range(shape.depth if not shape.layer_scale else 0):
            for number in (1, 2):
                found[f"encoder.layer.{i}.layer_scale{number}.lambda1"] = torch.ones(shape.dim)
    return "Dinov2" if dinov2 else "ViT", config, found


def _like_dinov2(shape: ViTShape) -> bool:
    return shape.layer_scale or shape.swiglu


def _ratio(shape: ViTShape) -> int | None:
    """Dinov2's ratio of the perceptron's hidden layer, a whole number."""
    for ratio in range(1, 65):
        hidden = shape.dim * ratio
        if (((hidden * 2 // 3) + 7) // 8 * 8 if shape.swiglu else hidden) == shape.hidden:
            return ratio
    return None


def _vit_keys(key: str, value: Tensor, dinov2: bool) -> State:
    """A tensor of ours under transformers' keys: three where q, k and v are one."""
    embeddings = {
        "cls_token": "cls_token",
        "pos_embed": "position_embeddings",
        "patch_embed.proj.weight": "patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "patch_embeddings.projection.bias",
    }
    if key in embeddings:
        return {f"embeddings.{embeddings[key]}": value}
    if key.startswith("last_norm."):
        return {key.replace("last_norm", "layernorm"): value}
    _, number, part, leaf = re.fullmatch(r"(block)\.(\d+)\.(.+)\.(\w+)", key).groups()  # type: ignore[union-attr]
    place = f"encoder.layer.{number}"
    if part == "attn.qkv":
        thirds = zip(("query", "key", "value"), value.chunk(3), strict=True)
        return {f"{place}.attention.attention.{n}.{leaf}": v.clone() for n, v in thirds}
    return {
        f"{place}.{(_DINOV2 if dinov2 else _VIT)[part]}.{leaf.replace('gamma', 'lambda1')}": value
    }


_VIT: Mapping[str, str] = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_DINOV2: Mapping[str, str] = {
    "norm1": "norm1",
    "attn.proj": "attention.output.dense",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
    "ls1": "layer_scale1",
    "ls2": "layer_scale2",
}


def _classifier(kind: str, weight: Tensor, bias: Tensor) -> State:
    """A linear classifier of the pooled features, as the class of transformers holds it."""
    if kind == "Dinov2":  # it also looks at the mean of the tokens: with no weight
        weight = torch.cat([weight, torch.zeros_like(weight)], dim=1)
    name = "classifier.1" if kind == "ResNet" else "classifier"
    return {f"{name}.weight": weight.contiguous().clone(), f"{name}.bias": bias.clone()}
