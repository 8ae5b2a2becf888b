"""Counter-based randomness: every random number is a function of what it is for.

There is no generator whose state would have to be saved. A number depends on the seed, the epoch,
the position of a sample in the data set, the view and the operation, so it is the same on any
number of workers and ranks, in any batch, and after a restart.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFF_FFFF
_DOUBLE_WORD = 0xFFFF_FFFF_FFFF_FFFF

# The last counter word holds the view (12 bits), the operation (8 bits) and the block (12 bits).
_VIEWS, _OPS, _BLOCKS = 1 << 12, 1 << 8, 1 << 12


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

    Args:
        counter: Four int64 tensors that broadcast together, each value in [0, 2**32).
        key: Two integers in [0, 2**32).

    Returns:
        Four int64 tensors of random 32-bit words, each value in [0, 2**32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # Products wrap modulo 2**64; masking drops the sign bits that the shift brings in.
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (b >> 32 & _WORD) ^ c1 ^ k0, b & _WORD
        c2, c3 = (a >> 32 & _WORD) ^ c3 ^ k1, a & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def uniforms(seed: int, epoch: int, index: Tensor, view: int, op: int, n: int) -> Tensor:
    """Uniform numbers for each sample, a pure function of the arguments.

    Column ``j`` does not depend on ``n``: asking for more leaves the first as they are.

    Args:
        seed: Seed of the run; its lowest 64 bits count.
        epoch: Pass over the data set, in [0, 2**32).
        index: int64 [B], position of each sample in the data set, not negative.
        view: Number of the view within the recipe, in [0, 4096).
        op: What the numbers are for, in [0, 256).
        n: How many numbers for each sample, at most 16384.

    Returns:
        float64 [B, n] in [0, 1), multiples of 2**-32, on the device of ``index``.

    Raises:
        ValueError: If an argument is out of its range.
    """
    for name, value, stop in (
        ("epoch", epoch, _WORD + 1),
        ("view", view, _VIEWS),
        ("op", op, _OPS),
        ("n", n, 4 * _BLOCKS + 1),
    ):
        if not 0 <= value < stop:
            raise ValueError(f"{name} must be in [0, {stop}), not {value}")
    block = torch.arange((n + 3) // 4, device=index.device)
    index = index[:, None]
    purpose = (view * _OPS + op) * _BLOCKS + block
    counter = (index & _WORD, index >> 32, torch.full_like(index, epoch), purpose)
    words = philox(counter, (seed & _WORD, (seed >> 32) & _WORD))
    return torch.stack(words, dim=-1).flatten(1)[:, :n].double() * 2.0**-32


def key(*parts: int) -> int:
    """Mix integers into 63 bits: a seed for a ``torch.Generator``.

    Each part goes through the finaliser of SplitMix64 (Steele et al., OOPSLA 2014), so the order
    and the number of parts count.
    """
    state = len(parts)
    for part in parts:
        state = (state + (part & _DOUBLE_WORD) + 0x9E3779B97F4A7C15) & _DOUBLE_WORD
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _DOUBLE_WORD
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _DOUBLE_WORD
        state ^= state >> 31
    return state >> 1
