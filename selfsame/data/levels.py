"""From raw values of any type to uint8: which of them become black and white.

Where no levels are given:

- Integers of more than 8 bits: the full 16-bit range 0..65535 maps to 0..255. A picture with any
  value outside that range has its own minimum..maximum mapped.
- Floats: a picture within 0..1 maps 0..1 to 0..255; any other has its own minimum..maximum mapped.

NaN or infinity make a picture unreadable.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from selfsame.errors import Unreadable

Levels = tuple[float, float]  # the raw values that become 0 and 255

_FROM_16_BIT = np.rint(np.arange(65536) * 255 / 65535).astype(np.uint8)
_ROWS = 2**20  # values that are scaled at once, so that float64 copies stay small


def to_8_bit(values: np.ndarray, levels: Levels | None = None) -> np.ndarray:
    """Scale raw values to uint8; 8-bit ones are returned as they are.

    Args:
        values: Pixels of any shape and type. Booleans become 0 and 255.
        levels: Raw values that become 0 and 255. A picture with values outside them has its own
            minimum..maximum mapped instead, so nothing is clipped. None: the rules above.

    Raises:
        Unreadable: The values are not real numbers, or not finite.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16 and levels is None:
        return np.take(_FROM_16_BIT, values)
    if values.dtype.kind not in "uif":
        raise Unreadable(f"pixels of type {values.dtype} are not numbers")
    if values.size == 0:
        raise Unreadable("zero size")
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(high - low):  # both propagate NaN
        raise Unreadable("holds NaN or infinity")
    black, white = levels or (0.0, _natural(values.dtype))
    if black <= low and high <= white:
        low, high = black, white
    span = (high - low) or 1.0
    flat, scaled = values.reshape(-1), np.empty(values.size, np.uint8)
    for start in range(0, values.size, _ROWS):
        part = slice(start, start + _ROWS)
        scaled[part] = np.rint((flat[part].astype(np.float64) - low) / span * 255)
    return scaled.reshape(values.shape)


def measure(pictures: Iterable[np.ndarray]) -> Levels | None:
    """Levels that keep the relative brightness of pictures of more than 8 bits.

    Returns:
        For integers that are never negative, 0 to the largest of the least number of bits, 8 or
        more, that holds every value: 12-bit values give (0, 4095) in whatever type they lie. For
        floats within 0..1, (0, 1). For others the least and the greatest value. None where there is
        no picture, all values are equal, or integers and floats are mixed.
    """
    low, high, kinds = np.inf, -np.inf, set()
    for values in pictures:
        least, greatest = float(values.min()), float(values.max())
        if np.isfinite(least) and np.isfinite(greatest):
            kinds.add("f" if values.dtype.kind == "f" else "i")
            low, high = min(low, least), max(high, greatest)
    if len(kinds) != 1:
        return None
    if low >= 0 and kinds == {"i"}:
        return 0.0, float(2 ** max(8, int(high).bit_length()) - 1)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if low < high else None


def _natural(dtype: np.dtype[np.generic]) -> float:
    if dtype.kind == "f":
        return 1.0
    return 255.0 if dtype.itemsize == 1 else 65535.0
