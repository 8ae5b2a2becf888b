"""Many small pieces of work on all cores, each piece on one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from threading import Barrier
from typing import TypeVar

import torch

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def spread(work: Callable[[_In], _Out], pieces: Sequence[_In]) -> list[_Out]:
    """What ``work`` makes of each piece, in order, without gradients.

    As many threads as PyTorch gives to one operation take a piece each and give one thread to each
    operation: an operation on a single image is too short to be shared.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(pieces) == 1:
        with torch.no_grad():
            return [work(piece) for piece in pieces]
    inference = torch.is_inference_mode_enabled()  # of this thread; others start without

    def alone(piece: _In) -> _Out:
        with torch.inference_mode(inference), torch.no_grad():
            return work(piece)

    return list(_pool(threads).map(alone, pieces))


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads whose operations take one thread each."""
    pool = ThreadPoolExecutor(threads, "selfsame-views", _take_one)
    together = Barrier(threads)
    list(pool.map(lambda _: together.wait(), range(threads)))  # now all have begun
    torch.set_num_threads(threads)  # they set it for themselves and for threads still to come
    return pool


def _take_one() -> None:
    torch.set_num_threads(1)
    torch.get_num_threads()  # a thread's first look at the setting is what it keeps


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a fork has none of the threads
