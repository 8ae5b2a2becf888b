"""ONNX: a graph that onnxruntime and many other engines run, with its preprocessing."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from selfsame.encoder import Encoder
from selfsame.formats.format import Format, Reading, outputs_of
from selfsame.formats.graph import graph_of, other_size, quiet
from selfsame.formats.preprocess import Preprocess
from selfsame.formats.torch_export import shapes
from selfsame.types import Backbone, Features, Norm

FILE = "model.onnx"
INT8 = "model-int8.onnx"
OPSET = 18  # what PyTorch's exporter writes without a conversion; onnxruntime since 1.14
INPUT = "images"
ONE_FILE = 1_900_000_000  # bytes of weights: beyond, they lie in a file of their own


class Onnx(Format):
    """``model.onnx`` for any batch; preprocessing and class names lie in its metadata."""

    name = "onnx"
    library = "onnxruntime"
    needs = ("onnx", "onnxruntime", "onnxscript")
    extra = "onnx"
    tolerance = 1e-4

    def write(self, encoder: Encoder, folder: Path) -> Reading:
        """Write what ``torch.onnx`` makes of the captured graph; checked against the standard."""
        import onnx

        pre, graph, outputs = Preprocess.of(encoder), graph_of(encoder), outputs_of(encoder)
        size = sum(w.numel() * w.element_size() for w in encoder.state_dict().values())
        with quiet(), _silent():
            program: Any = torch.onnx.export(
                graph.program,
                (),
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=outputs,
                dynamo=True,
            )
        model = program.model_proto
        _name_shapes(model)
        facts = {"preprocess": pre.facts(), "source": "selfsame"}
        if encoder.classes is not None and encoder.head is not None:
            facts["classes"] = list(encoder.classes)
        onnx.helper.set_model_props(
            model, {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
        )
        apart = size > ONE_FILE
        onnx.save(model, folder / FILE, save_as_external_data=apart, location=f"{FILE}.data")
        onnx.checker.check_model(folder / FILE, full_check=True)
        return Reading(
            [
                "import onnxruntime",
                f'session = onnxruntime.InferenceSession("{{at}}/{FILE}")',
            ],
            [
                f"{', '.join(outputs)}{',' * (len(outputs) == 1)} = "
                f'session.run(None, {{"{INPUT}": x}})'
            ],
            outputs,
            pre.pillow(),
            arrays="numpy",
            notes=[f"opset {OPSET}", shapes(graph.sizes, pre.size)],
            other=other_size(encoder) if graph.sizes else None,
        )


def quantise(folder: Path, images: Tensor) -> Path:
    """Write ``model-int8.onnx`` beside the float model: weights of 8 bits, one scale a channel.

    In a convolutional network the scales of activations are fixed, those that ``images`` have:
    onnxruntime is slower than with floats where it measures them at every call. In others they are
    measured, which is the more exact. Weights have 7 bits where the scales are fixed and are
    unsigned elsewhere: a CPU without VNNI adds up products in 16 bits, which would overflow.

    Args:
        folder: With the float model.
        images: float32 [N, C, S, S], as the network takes them.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load(folder / FILE, load_external_data=False)
    convolutions = sum(node.op_type == "Conv" for node in model.graph.node)
    with quiet(), _silent(), TemporaryDirectory() as temporary:
        if convolutions > 1:  # a ViT has one
            prepared = Path(temporary) / FILE
            quant_pre_process(folder / FILE, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                folder / INT8,
                _Calibration(images),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
        else:
            quantize_dynamic(
                folder / FILE, folder / INT8, weight_type=QuantType.QUInt8, per_channel=True
            )
    return folder / INT8


class _Calibration:
    """``CalibrationDataReader``, which is looked at for its method alone."""

    def __init__(self, images: Tensor) -> None:
        self._batches = iter(torch.split(images, 32))

    def get_next(self) -> dict[str, Any] | None:
        """The next batch, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch.numpy()}


class OnnxBackbone(Backbone):
    """A network in an ONNX file, for evaluators. It runs on the CPU and has no weights of ours."""

    def __init__(self, file: Path, like: Encoder) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(str(file), options)
        self.dim, self.stride, self.norm = like.dim, None, Norm(*like.norm)
        self.can = frozenset()
        self.register_buffer("here", torch.zeros(0))

    def forward(self, x: Tensor) -> Features:
        """Features of normalised images [B, C, S, S], without tokens."""
        (pooled,) = self.session.run(["pooled"], {INPUT: x.contiguous().cpu().numpy()})
        return Features(torch.from_numpy(pooled), None, (0, 0))


def _name_shapes(model: Any) -> None:
    """Call free dimensions what they are, rather than by the exporter's symbols."""
    shape = model.graph.input[0].type.tensor_type.shape.dim
    axes = {0: "batch", 2: "height", 3: "width"}
    names = {shape[i].dim_param: name for i, name in axes.items() if shape[i].dim_param}
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = pattern.sub(lambda found: names[found[1]], dim.dim_param)


@contextmanager
def _silent() -> Iterator[None]:
    """Without what exporters print and log on their way."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)
