"""safetensors: names and tensors, for any code, and the folder that selfsame itself loads."""

from __future__ import annotations

from pathlib import Path

from selfsame.encoder import CARD, HEAD, WEIGHTS, Encoder
from selfsame.formats.format import Format, Reading

OWN = ("format", "backbone", "dim", "image_size", "channels", "mean", "std", "levels")


class Safetensors(Format):
    """``backbone.safetensors`` and ``card.json``, with a classifier in ``head.safetensors``.

    Read back bit by bit, and by selfsame as an encoder.
    """

    name = "safetensors"
    library = "safetensors"
    tolerance = 0.0

    def write(self, encoder: Encoder, folder: Path) -> Reading:
        """Write the state dict as it is."""
        kept = {key: value for key, value in encoder.card.items() if key not in OWN}
        encoder.save(folder, **kept)
        load = ["from safetensors.torch import load_file", f'state = load_file("{{at}}/{WEIGHTS}")']
        if encoder.head is not None:
            load.append(f'head = load_file("{{at}}/{HEAD}")')
        note = (
            f"selfsame.load, evaluate and embed take the folder, too: {CARD} describes the network"
        )
        return Reading(load, (), (), notes=(note,))
