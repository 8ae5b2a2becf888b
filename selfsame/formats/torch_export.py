"""torch.export: the graph of the network, run without the code that made it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from selfsame.encoder import Encoder
from selfsame.formats.format import Format, Reading, outputs_of
from selfsame.formats.graph import graph_of, other_size, quiet
from selfsame.formats.preprocess import Preprocess

FILE = "model.pt2"


class TorchExport(Format):
    """``model.pt2``; preprocessing lies in it as the extra file ``preprocess.json``."""

    name = "torch-export"
    library = "torch"

    def write(self, encoder: Encoder, folder: Path) -> Reading:
        """Write what ``torch.export`` captures."""
        pre, graph, outputs = Preprocess.of(encoder), graph_of(encoder), outputs_of(encoder)
        extra = {"preprocess.json": json.dumps(pre.facts())}
        with quiet():
            torch.export.save(graph.program, folder / FILE, extra_files=extra)
        return Reading(
            ["import torch", f'model = torch.export.load("{{at}}/{FILE}").module()'],
            [f"{', '.join(outputs)}{',' * (len(outputs) == 1)} = model(x)"],
            outputs,
            pre.pillow(tensor=True),
            notes=[shapes(graph.sizes, pre.size)],
            other=other_size(encoder) if graph.sizes else None,
        )


def shapes(sizes: bool, size: int) -> str:
    """What shapes a graph takes, in words."""
    return f"any batch, {'any size' if sizes else f'{size} x {size} pixels'}"
