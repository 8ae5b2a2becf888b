"""TorchScript: a traced network for C++ and phones.

PyTorch has deprecated it in favour of ``torch.export``; runtimes that read it are in use.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from selfsame.encoder import Encoder
from selfsame.formats.format import Format, Reading, outputs_of
from selfsame.formats.graph import Network, quiet
from selfsame.formats.preprocess import Preprocess
from selfsame.formats.torch_export import shapes

FILE = "model.ts"


class TorchScript(Format):
    """``model.ts``; preprocessing lies in it as the extra file ``preprocess.json``."""

    name = "torchscript"
    library = "torch"

    def write(self, encoder: Encoder, folder: Path) -> Reading:
        """Write a trace."""
        pre, outputs = Preprocess.of(encoder), outputs_of(encoder)
        example = torch.rand(2, pre.channels, pre.size, pre.size)
        with quiet():
            network: Any = Network(encoder).eval()
            traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
            extra = {"preprocess.json": json.dumps(pre.facts())}
            torch.jit.save(traced, str(folder / FILE), _extra_files=extra)
        return Reading(
            ["import torch", f'model = torch.jit.load("{{at}}/{FILE}").eval()'],
            [f"{', '.join(outputs)}{',' * (len(outputs) == 1)} = model(x)"],
            outputs,
            pre.pillow(tensor=True),
            notes=[shapes(False, pre.size)],
        )
