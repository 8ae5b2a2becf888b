"""Two real processes that run a function of the tests as rank 0 and rank 1 of one group (gloo).

They start at the first use and stay: importing torch is most of what a two-process test costs.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

WORLD = 2
TIMEOUT = 60  # seconds, for a function and for a collective inside it


class Ranks:
    """Call it with a module-level function and its arguments; both ranks run it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[Any] = []
        self._pipes: list[Any] = []

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return what ``function(*args)`` gives on each rank, rank 0 first."""
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send((function, args))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(TIMEOUT):
                self.stop()
                raise TimeoutError(f"rank {rank} gave no answer in {TIMEOUT} s")
            answers.append(pipe.recv())
        failed = [f"rank {rank}:\n{text}" for rank, (text, _) in enumerate(answers) if text]
        if failed:
            self.stop()  # the ranks may wait for each other: begin anew at the next call
            raise AssertionError("\n".join(failed))
        return [result for _, result in answers]

    def stop(self) -> None:
        """End both processes."""
        for process in self._processes:
            process.terminate()
            process.join()
        self._processes, self._pipes = [], []

    def _start(self) -> None:
        context = mp.get_context("spawn")
        store = Path(tempfile.mkdtemp(dir=self._folder)) / "store"
        for rank in range(WORLD):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, str(store), there), daemon=True)
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)


def _serve(rank: int, store: str, pipe: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=TIMEOUT),
    )
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("", function(*args))
        except Exception:
            answer = (traceback.format_exc(), None)
        pipe.send(answer)
