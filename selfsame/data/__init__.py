"""Images from anywhere to batches of uint8 canvases, in an order that is a function of the step."""

from selfsame.data.decode import decode
from selfsame.data.images import (
    Check,
    Images,
    count_channels,
    measure_levels,
    measure_norm,
    suggest_canvas,
)
from selfsame.data.loader import Loader
from selfsame.data.order import batch_indices, permutation, steps_per_epoch
from selfsame.data.source import Labelled, Subset, open_labelled, open_parts, open_source
from selfsame.errors import Unreadable

__all__ = [
    "Check",
    "Images",
    "Labelled",
    "Loader",
    "Subset",
    "Unreadable",
    "batch_indices",
    "count_channels",
    "decode",
    "measure_levels",
    "measure_norm",
    "open_labelled",
    "open_parts",
    "open_source",
    "permutation",
    "steps_per_epoch",
    "suggest_canvas",
]
