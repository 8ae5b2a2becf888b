"""Real processes that run a function of the tests as the ranks of one group (gloo).

They start at the first use and stay: importing torch is most of what such a test costs.
"""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.multiprocessing as mp

TIMEOUT = 60  # seconds, for a function and for a collective inside it


class Ranks:
    """Call it with a module-level function and its arguments; all ranks run it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[Any] = []
        self._pipes: list[Any] = []
        self._world = 0  # ranks of the group that exists

    def __call__(
        self, function: Callable[..., Any], *args: Any, world: int = 2, timeout: float = TIMEOUT
    ) -> list[Any]:
        """Return what ``function(*args)`` gives on each of ``world`` ranks, rank 0 first."""
        while len(self._processes) < world:
            self._start()
        if self._world != world:  # a group of its own for each number of ranks
            self._world = world
            store = Path(tempfile.mkdtemp(dir=self._folder)) / "store"
            for rank in range(world):
                self._pipes[rank].send((_join, (rank, world, str(store))))
        for rank in range(world):
            self._pipes[rank].send((function, args))
        answers = []
        for rank in range(world):
            answer: Any = _JOINED
            while isinstance(answer[1], str) and answer == _JOINED:
                if not self._pipes[rank].poll(timeout):
                    self.stop()
                    raise TimeoutError(f"rank {rank} gave no answer in {timeout} s")
                answer = self._pipes[rank].recv()
            answers.append(answer)
        failed = [f"rank {rank}:\n{text}" for rank, (text, _) in enumerate(answers) if text]
        if failed:
            self.stop()  # the ranks may wait for each other: begin anew at the next call
            raise AssertionError("\n".join(failed))
        return [result for _, result in answers]

    def stop(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.terminate()
            process.join()
        self._processes, self._pipes, self._world = [], [], 0

    def _start(self) -> None:
        context = mp.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there,), daemon=True)
        process.start()
        there.close()
        self._processes.append(process)
        self._pipes.append(here)


_JOINED = ("", "joined")  # the answer of `_join`, which nobody waits for


def _join(rank: int, world: int, store: str) -> str:
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=TIMEOUT),
    )
    return _JOINED[1]


def _serve(pipe: Any) -> None:
    import torch

    torch.set_num_threads(1)
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
