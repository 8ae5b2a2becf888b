"""Batches of a run, prepared ahead of the step that needs them."""

from __future__ import annotations

import atexit
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from selfsame.data.images import Images
from selfsame.data.order import batch_indices, steps_per_epoch
from selfsame.errors import UsageError
from selfsame.types import Batch


class Loader:
    """Iterates over (epoch, Batch) for the steps ``start`` to ``total - 1`` of a run.

    What a step gets is a function of (seed, step) and the data alone: a loader that starts at
    step k continues exactly where one that stopped there left off. One thread prepares batches
    ahead; it ends when the iteration ends, is left, or the loader is closed::

        with Loader(images, 256, seed=0, start=0, total=1000) as loader:
            for epoch, batch in loader: ...

    Args:
        images: The decoded images.
        batch_size: Images a step, over all ranks.
        seed: Of the order of the images.
        start: First step, from 0.
        total: Steps of the whole run.
        prefetch: Batches prepared ahead, 1 or more.
        rank: Which part of each batch this process gets.
        world: Number of equal parts; the batch size is a multiple of it.

    Raises:
        UsageError: The batch is larger than the data set, or cannot be divided.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        seed: int,
        start: int,
        total: int,
        prefetch: int = 2,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        steps_per_epoch(len(images), batch_size)
        if batch_size % world:
            raise UsageError(
                f"a batch of {batch_size} cannot be divided among {world} processes",
                tip=f"use a multiple of {world}",
            )
        if prefetch < 1 or not 0 <= rank < world:
            raise UsageError(
                f"prefetch {prefetch}, rank {rank} of {world}", tip="1 or more; 0 to world - 1"
            )
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.total = total
        self.prefetch = prefetch
        self.rank = rank
        self.world = world
        self.waited = 0.0  # seconds that the consumer spent waiting for batches
        # Weak, so that a loop that is left without closing the loader ends its iteration at once.
        self._running: weakref.ref[Generator[tuple[int, Batch], None, None]] | None = None

    def __len__(self) -> int:
        return max(0, self.total - self.start)

    def __iter__(self) -> Iterator[tuple[int, Batch]]:
        self.close()
        running = self._run()
        self._running = weakref.ref(running)
        return running

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration and its thread."""
        running = self._running() if self._running is not None else None
        if running is not None:
            running.close()

    def load(self, step: int) -> tuple[int, Batch]:
        """Epoch and batch of one step: this rank's slice of the global batch."""
        epoch, index = batch_indices(self.seed, step, len(self.images), self.batch_size)
        share = self.batch_size // self.world
        return epoch, self.images.batch(index[self.rank * share : (self.rank + 1) * share])

    def _run(self) -> Generator[tuple[int, Batch], None, None]:
        # An executor rather than a bare thread: it also ends cleanly with the interpreter.
        pool = ThreadPoolExecutor(1, thread_name_prefix="selfsame-loader")
        ahead: deque[Future[tuple[int, Batch]]] = deque()
        # An iteration that is still open when the interpreter ends would find modules torn down.
        atexit.register(self.close)
        try:
            for step in range(self.start, self.total):
                last = min(step + self.prefetch, self.total - 1)
                for later in range(step + len(ahead), last + 1):
                    ahead.append(pool.submit(self.load, later))
                since = time.perf_counter()
                item = ahead.popleft().result()
                self.waited += time.perf_counter() - since
                yield item
        finally:
            atexit.unregister(self.close)
            pool.shutdown(cancel_futures=True)
