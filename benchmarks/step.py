"""The training step beside its peers: images a second, peak memory, share of the machine.

    scripts/bench step [--quick] [--cases "ViT-S"] [--rounds 3] [--steps 3] [--profile] [--install]

A step is forward, backward and update on float views that lie in memory; no data is read. Every
contestant has a process of its own for each case and takes its turn; numbers are medians over
rounds, ratios are taken within a round.

- per CPU s: images over user and system time, torch on one thread.
- per s: images a second of the clock, torch on ``--threads`` threads.
- peak: the largest resident memory less that before the model is built.
- of ceiling: floating-point operations a CPU second (those of the products and convolutions of the
  plain loop, of which two a multiply-add), over what one thread reaches in a large matrix product
  of the contestant's precision, measured in the same round.

Contestants:

- selfsame: as the training loop has it, in the precision that it chooses here, and in float32.
- plain: a loop in plain PyTorch, float32.
- lightly: its modules and losses as its examples use them, float32.

Ours alone takes the norm of the gradient, looks whether it is finite, and computes its metrics.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Cost, about, peers, ratio, write
from rich.console import Console
from rich.table import Table
from step_peers import LIGHTLY, PLAIN, Step

from selfsame import accumulate, machine, methods, optim, plan
from selfsame.cli import keep_memory
from selfsame.plan import Choices
from selfsame.recipe import with_settings

CEILING = "ceiling"  # stands for a contestant, and measures the machine
RUN = 10_000  # steps that a step is one of


@dataclass(frozen=True)
class Case:
    """Work for all contestants."""

    title: str
    method: str
    network: str
    batch: int
    sizes: tuple[int, ...]  # of the views, pixels
    asked: bool = False  # left out unless its title is asked for


CASES = [
    Case("SimCLR, ResNet-18 at 32 px", "simclr", "resnet18", 64, (32, 32)),
    Case("SimCLR, ResNet-50 at 224 px", "simclr", "resnet50", 8, (224, 224)),
    Case("DINO, ViT-S/16, 2x224 + 8x96", "dino", "vit_small", 4, (224, 224, *[96] * 8)),
    Case("MAE, ViT-S/16 at 224 px", "mae", "vit_small", 8, (224,)),
    Case("MAE, ViT-B/16 at 224 px", "mae", "vit_base", 8, (224,), asked=True),
]


def ours(precision: str, case: Case) -> Step:
    """A step of the training loop, `selfsame.train`, without its data and its files."""
    size = case.sizes[0]
    base = methods.recipe(case.method, "paper", size)
    locals_ = {"count": len(case.sizes) - 2}
    views = tuple(
        view.model_copy(update=locals_) if view.name == "local" else view for view in base.views
    )
    settings = [f"backbone.name={case.network}", f"batch_size={case.batch}", f"steps={RUN}"]
    settings += [f"precision={precision}"]
    if case.method == "simclr":
        settings += ["optim.name=sgd"]  # as the peers have it, who have no LARS
    recipe = with_settings(base.model_copy(update={"views": views}), settings)
    nothing = np.broadcast_to(np.uint8(7), (4 * case.batch, size, size, 3))
    made = plan.make(case.method, nothing, Choices(recipe=recipe), "cpu")
    made.images.close()
    recipe = made.recipe
    method = made.build().train()
    optimizer = optim.build(method, recipe.optim, case.batch)
    peak = optim.scaled_lr(recipe.optim, case.batch)
    autocast = partial(machine.autocast, made.device, recipe.precision)
    given: dict[str, torch.Tensor] = {}
    for name, side in zip(("global", "local"), dict.fromkeys(case.sizes), strict=False):
        count = case.sizes.count(side)
        x = torch.randn(count * case.batch, 3, side, side)
        x = x.contiguous(memory_format=torch.channels_last)  # as the views are made
        given[name] = x.unflatten(0, (count, case.batch))
    index, done = torch.arange(case.batch), RUN // 5  # past the last layer's rest

    def step() -> None:
        nonlocal done
        t = made.progress(done)
        drawn = method.draw(given, index, seed=0, epoch=done)
        rates = optim.rates(recipe.optim, case.batch, t, made.steps_per_epoch)
        optim.set_rates(optimizer, rates.lr, rates.weight_decay, peak)
        optimizer.zero_grad(set_to_none=True)
        out = accumulate.backward(
            method, [{**given, **drawn}], t, count=1, images=case.batch, seed=0, autocast=autocast
        )
        gradient = optim.clip(method, recipe.optim)
        for parameter in method.frozen(t):
            parameter.grad = None
        assert torch.isfinite(out.loss + gradient)
        optimizer.step()
        method.after_step(t, out.carry)
        done += 1

    return step


def plain(case: Case) -> Step:
    return PLAIN[case.method](case.network, case.batch, case.sizes)


def lightly(case: Case) -> Step:
    return LIGHTLY[case.method](case.network, case.batch, case.sizes)


CONTESTANTS = {
    "selfsame": partial(ours, "auto"),
    "selfsame, float32": partial(ours, "fp32"),
    "plain": plain,
    "lightly": lightly,
}


def operations(case: Case) -> float:
    """Floating-point operations of a step's products and convolutions, forward and backward."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    step, counter = plain(case), FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # whose products are counted
        step()
    return float(counter.get_total_flops())


def ceiling(dtype: torch.dtype) -> float:
    """Operations a CPU second of one thread in a matrix product: the best of several."""
    side, best = 2048, float("inf")
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    for _ in range(4):
        begin = time.process_time()
        a @ b
        best = min(best, time.process_time() - begin)
    return 2 * side**3 / best


def resident() -> int:
    """Memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def most_resident() -> int:
    """The largest memory of this process, bytes; ``getrusage`` would begin with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def took(step: Step, count: int) -> Cost:
    """What ``count`` steps take."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        step()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def serve(name: str, case: Case, steps: int, threads: int, pipe: Connection) -> None:
    """The process of one contestant at one case: answer each request with a turn."""
    keep_memory()  # as the command line does; of all alike
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build = CONTESTANTS.get(name)
    before = resident()
    step = build(case) if build else None
    while pipe.recv():
        if step is None:
            pipe.send({"bf16": ceiling(torch.bfloat16), "fp32": ceiling(torch.float32)})
            continue
        torch.set_num_threads(1)
        wall, cpu = took(step, steps)
        if threads > 1:
            torch.set_num_threads(threads)
            wall = took(step, steps).wall
        peak = most_resident() - before
        images = steps * case.batch
        pipe.send({"cpu": images / cpu, "wall": images / wall, "peak": peak})


def compete(
    case: Case, names: Sequence[str], rounds: int, steps: int, threads: int
) -> list[dict[str, Any]]:
    """Rows of the table of a case: ``rounds`` turns of every contestant, after a first one."""
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # of the contestants, whose processes inherit it
    context = get_context("spawn")
    processes, pipes = [], {}
    turns: dict[str, list[dict[str, float]]] = {}
    for name in (*names, CEILING):
        pipes[name], theirs = context.Pipe()
        arguments = (name, case, steps, threads, theirs)
        processes.append(context.Process(target=serve, args=arguments))
        processes[-1].start()
        theirs.close()
    try:
        for turn in range(rounds + 1):
            for name, pipe in pipes.items():
                pipe.send(True)
                answer = pipe.recv()
                if turn:  # the first allocates, and imports what a step needs
                    turns.setdefault(name, []).append(answer)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    work = operations(case) / case.batch  # of an image
    native = bool(machine.native_bf16(torch.device("cpu")))
    base = "lightly" if "lightly" in names else "plain"
    rows = []
    for name in names:
        row: dict[str, Any] = {"case": case.title, "contestant": name, "batch": case.batch}
        for what in ("cpu", "wall"):
            own = [turn[what] for turn in turns[name]]
            row[f"{what}_rate"] = round(statistics.median(own), 2)
            for other in (base, "plain"):
                theirs = [turn[what] for turn in turns[other]]
                row[f"{what}_to_{other}"] = round(ratio(own, theirs), 2)
            row[f"{what}_rates"] = [round(rate, 2) for rate in own]
        row["peak_mib"] = round(turns[name][-1]["peak"] / 2**20)
        kind = "bf16" if native and name == "selfsame" else "fp32"
        most = [turn[kind] for turn in turns[CEILING]]
        speeds = [turn["cpu"] * work for turn in turns[name]]
        row |= {"precision": kind, "gflop_per_image": round(work / 1e9, 2)}
        row["gflop_per_cpu_s"] = round(statistics.median(speeds) / 1e9, 1)
        row["ceiling_gflop_per_cpu_s"] = round(statistics.median(most) / 1e9, 1)
        row["of_ceiling"] = round(ratio(speeds, most), 3)
        rows.append(row)
    return rows


def profile(case: Case) -> None:
    """Where the CPU time of our step goes, operator by operator."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    torch.set_num_threads(1)
    step = ours("auto", case)
    step()
    with profiler(activities=[ProfilerActivity.CPU]) as found:
        step()
    print(case.title)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table of a case, for people."""
    first = rows[0]
    base = "lightly" if "cpu_to_lightly" in first else "plain"
    title = f"{first['case']}, batch {first['batch']}, {first['gflop_per_image']:g} GFLOP an image"
    table = Table(title=title, title_justify="left")
    table.add_column("contestant")
    columns = ("per CPU s", f"to {base}", "to plain", "per s", f"to {base}", "peak, MiB")
    for column in (*columns, "GFLOP/s", "of ceiling"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row["contestant"],
            f"{row['cpu_rate']:,.2f}",
            f"{row[f'cpu_to_{base}']:.2f}",
            f"{row['cpu_to_plain']:.2f}",
            f"{row['wall_rate']:,.2f}",
            f"{row[f'wall_to_{base}']:.2f}",
            f"{row['peak_mib']:,}",
            f"{row['gflop_per_cpu_s']:,.0f}",
            f"{row['of_ceiling']:.0%} of {row['ceiling_gflop_per_cpu_s']:,.0f}",
        )
    Console(width=120).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds of one step; not kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="in a turn, of the slow cases")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, per s")
    parser.add_argument("--cases", default="", help="only those whose title contains this")
    parser.add_argument("--profile", action="store_true", help="where our step's time goes")
    parser.add_argument("--install", action="store_true", help="install peers that are missing")
    options = parser.parse_args()
    cases = [case for case in CASES if options.cases in case.title]
    if not options.cases:
        cases = [case for case in cases if not case.asked]
    if options.profile:
        for case in cases:
            profile(case)
        return
    here = {"lightly"} & set(peers(options.install))
    names = [name for name in CONTESTANTS if name not in {"lightly"} - here]
    rounds, steps = (2, 1) if options.quick else (options.rounds, options.steps)
    settings = {"rounds": rounds, "steps": steps, "threads": options.threads}
    result: dict[str, Any] = {"about": about() | settings, "rows": []}
    for case in cases:
        rows = compete(case, names, rounds, steps, options.threads)
        show(rows)
        result["rows"] += rows
    write("step", result, keep=not (options.quick or options.cases))


if __name__ == "__main__":
    main()
