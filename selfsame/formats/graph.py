"""The network as a graph: what ONNX, torch.export and TorchScript hold."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from selfsame.encoder import Encoder
from selfsame.errors import UsageError
from selfsame.formats.format import outputs_of


class Network(nn.Module):
    """From images, float32 [B, C, S, S], to a tuple: pooled, tokens, scores, as there are."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.backbone, self.head = encoder.backbone, encoder.head
        self.outputs = outputs_of(encoder)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, C, S, S] -> [B, D], [B, N, D], [B, K]."""
        features = self.backbone(images)
        found = {"pooled": features.pooled, "tokens": features.tokens}
        if self.head is not None:
            found["scores"] = self.head(features.pooled)
        return tuple(found[name] for name in self.outputs)


class Graph(NamedTuple):
    """A network as ``torch.export`` sees it."""

    program: torch.export.ExportedProgram
    sizes: bool  # whether it takes images of any size (any batch it takes anyway)


def graph_of(encoder: Encoder) -> Graph:
    """Export a network for any batch, and for any size of images where it takes them.

    Raises:
        UsageError: the network's code cannot be captured.
    """
    network = Network(encoder).eval()
    side = encoder.image_size
    example = torch.zeros(2, encoder.channels, side, side)
    free = torch.export.Dim.AUTO  # decides for each network
    try:
        with quiet():
            program = _capture(network, example, {2: free, 3: free})
            if not _takes_other_sizes(program, network, encoder):
                program = _capture(network, example, {})
                return Graph(program, False)
    except Exception as error:  # torch.export raises whatever the network's code does
        raise UsageError(
            f"torch.export cannot capture the network: {str(error).strip().splitlines()[0]}",
            tip="its forward must be plain tensor code: x.shape[0] for len(x), no .item(), no "
            "choice by values",
        ) from error
    return Graph(program, True)


def other_size(encoder: Encoder) -> int:
    """Another side to try, pixels: half as large again, in whole strides."""
    stride = encoder.backbone.stride or 32
    return -(-encoder.image_size * 3 // (2 * stride)) * stride


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of exporters about themselves, and without gradients."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def _capture(
    network: Network, example: Tensor, sizes: dict[int, Any]
) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim.DYNAMIC, **sizes},)
    return torch.export.export(network, (example,), dynamic_shapes=shapes)


def _takes_other_sizes(
    program: torch.export.ExportedProgram, network: Network, encoder: Encoder
) -> bool:
    """Whether the graph gives what the network gives for images of another size."""
    side = other_size(encoder)
    x = torch.rand(1, encoder.channels, side, side + (encoder.backbone.stride or 32))
    try:
        got, wanted = program.module()(x), network(x)
    except Exception:  # a guard of the graph, or the network itself
        return False
    return all(
        a.shape == b.shape and torch.allclose(a, b, atol=1e-4)
        for a, b in zip(got, wanted, strict=True)
    )
