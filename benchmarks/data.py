"""The data path beside its peers: images per CPU second and per second, from files to views.

    scripts/bench data [--quick] [--cases "two views"] [--rounds 5] [--workers 2] [--install]

Every contestant runs in a process of its own and takes its turn, so that what else the machine does
hits all alike; numbers are medians over rounds, ratios are taken within a round.

- per CPU s: images over the user and system time of the process and its workers, torch on one
  thread. This is what an image costs. Starting and ending the workers is not counted.
- per s: images a second with ``--workers`` decoding threads or processes, torch on as many threads
  (which sleep while they wait: on a busy machine, OpenMP's spinning makes noise of all that).

Contestants, each in the shape of a training loop that takes float batches and does nothing:

- selfsame: ``Images`` and ``make_views``, colours exact and fast; nothing is cached.
- torchvision: Pillow and ``transforms``, image by image, in a ``DataLoader``.
- torchvision v2: its own decoder and ``transforms.v2`` on uint8 tensors, as its pages recommend.
- lightly: its ``SimCLRTransform`` and ``DINOTransform`` in a ``DataLoader``.
- kornia: Pillow in a ``DataLoader``, then ``AugmentationSequential`` on float batches.

Distributions are those of selfsame's recipes. Where peers differ: lightly's SimCLR resizes with a
bilinear filter and blurs with Pillow's box approximation, kornia resizes without antialiasing.
selfsame alone works from a canvas (of 512 pixels, as in the recipes of the papers), so it decodes
pictures of 1600x1200 at half size; the peers crop the full picture.

The pictures are made here: tiles of the CIFAR-10 sample at four scales and noise, with about as
many bits a pixel as photographs have.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from multiprocessing import active_children, get_context
from multiprocessing.connection import Connection
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Cost, about, cpu_of, peers, ratio, write
from PIL import Image
from rich.console import Console
from rich.table import Table

import selfsame
from selfsame import demo, methods
from selfsame.cli import keep_memory
from selfsame.data import Images, Loader, open_source
from selfsame.methods.dino import crops
from selfsame.types import Batch, Norm
from selfsame.views import View, make_views
from selfsame.views.render import blur_side

NORM = Norm((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CANVAS = 512  # pixels, of pictures in files
SIMCLR = methods.recipe("simclr", "paper", 224).views
DINO = crops(224, 96, 8, (0.25, 1.0), (0.05, 0.25))
SMALL = methods.recipe("simclr", "paper", 32).views
PHOTO, LARGE, SQUARE, TINY = "500x375.jpg", "1600x1200.jpg", "256.npy", "32.npy"


@dataclass(frozen=True)
class Case:
    """Work for all contestants."""

    title: str
    pictures: str
    views: Sequence[View]  # none: decode only
    count: int  # images a run
    batch: int
    packed: bool = False  # selfsame reads them from one packed file
    later: bool = False  # which was read before: its checksums are known to be right


CASES = [
    Case("decode 500x375", PHOTO, (), 512, 32),
    Case("decode 1600x1200", LARGE, (), 96, 16),
    Case("two views at 224 of 500x375", PHOTO, SIMCLR, 192, 32),
    Case("two views at 224 of 1600x1200", LARGE, SIMCLR, 96, 16),
    Case("2x224 + 8x96 of 500x375", PHOTO, DINO, 96, 16),
    Case("two views at 224 of 256 in memory", SQUARE, SIMCLR, 192, 32),
    Case("two views at 32 in memory", TINY, SMALL, 4096, 256),
]
CASES += [
    Case("two views at 224 of 500x375, packed", PHOTO, SIMCLR, 192, 32, True),
    Case("two views at 224 of 500x375, packed, later epochs", PHOTO, SIMCLR, 192, 32, True, True),
    Case("two views at 224 of 1600x1200, packed", LARGE, SIMCLR, 96, 16, True),
]


def picture(rng: np.random.Generator, tiles: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """A picture with detail at every scale: (width, height) pixels."""
    width, height = size
    noise = 12.0 if width < 1000 else 5.0  # JPEGs of about 95 KB, and of half a megabyte
    total = 120 + noise * rng.standard_normal((height, width, 1), np.float32)
    for columns, weight in ((1, 0.5), (3, 0.5), (8, 0.4), (20, 0.3)):
        rows = max(1, round(columns * height / width))
        mosaic = tiles[rng.integers(len(tiles), size=(rows, columns))].swapaxes(1, 2)
        small = Image.fromarray(mosaic.reshape(rows * 32, columns * 32, 3))
        large = small.resize(size, Image.Resampling.BICUBIC)
        total = total + weight * (np.asarray(large, np.float32) - 120)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def make_data(folder: Path, quick: bool) -> None:
    """Write the pictures of all cases."""
    tiles = demo.sample().train.images  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    for name, size, count in ((PHOTO, (500, 375), 256), (LARGE, (1600, 1200), 64)):
        (folder / name).mkdir()
        for i in range(count // 4 if quick else count):
            picture(rng, tiles, size).save(folder / name / f"{i:04}.jpg", quality=90)
    np.save(folder / TINY, tiles)
    square = [np.asarray(picture(rng, tiles, (256, 256))) for _ in range(256)]
    np.save(folder / SQUARE, np.stack(square))
    for name in (PHOTO, LARGE):
        selfsame.pack(folder / name, folder / f"{name}.pack", canvas=CANVAS, quiet=True)


# The contestants: each takes (case, its pictures, workers), starts its workers, and gives batches.


def with_selfsame(color: str, case: Case, path: Path, workers: int) -> Iterator[Any]:
    source = open_source(path.with_name(f"{path.name}.pack") if case.packed else path)
    canvas = CANVAS if path.is_dir() else source.read(0).shape[0]
    images = Images(source, canvas=canvas, workers=workers, cache_bytes=0)
    if case.later:
        for index in torch.arange(len(images)).split(case.batch):
            images.batch(index)

    def work(item: tuple[int, Batch]) -> Any:
        epoch, batch = item
        views = case.views  # none: the pictures themselves
        return views and make_views(
            views, batch, seed=0, epoch=epoch, norm=NORM, device="cpu", color=color
        )

    return map(work, Loader(images, case.batch, seed=0, start=0, total=case.count // case.batch))


class Pictures(torch.utils.data.Dataset[Any]):
    """The peers' data set: files or pixels by index, loaded and transformed one by one."""

    def __init__(self, path: Path, count: int, load: Callable[..., Any], transform: Any) -> None:
        self.items = sorted(map(str, path.iterdir())) if path.is_dir() else np.load(path)
        self.count = count
        self.load = load
        self.transform = transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return self.transform(self.load(self.items[i % len(self.items)]))


def loader(
    case: Case, path: Path, workers: int, load: Callable[..., Any], transform: Any
) -> Iterator[Any]:
    pictures = Pictures(path, case.count, load, transform)
    return iter(
        torch.utils.data.DataLoader(
            pictures,
            case.batch,
            shuffle=True,
            num_workers=workers,
            drop_last=True,
            multiprocessing_context="fork",  # the quickest
            persistent_workers=True,  # they live until their time has been read
        )
    )


def pillow(item: str | np.ndarray) -> Image.Image:
    return Image.open(item).convert("RGB") if isinstance(item, str) else Image.fromarray(item)


def several(views: Sequence[View], transform: Callable[[View], Any]) -> Callable[[Any], list[Any]]:
    """Every view of one image."""
    each = [made for view in views for made in [transform(view)] * view.count]
    return lambda image: [made(image) for made in each]


def with_torchvision(version: int, case: Case, path: Path, workers: int) -> Iterator[Any]:
    from torchvision import transforms as v1
    from torchvision.io import ImageReadMode, decode_image, read_file
    from torchvision.transforms import v2

    tv = v1 if version == 1 else v2

    def to_tensor(item: str | np.ndarray) -> torch.Tensor:
        if isinstance(item, str):
            return decode_image(read_file(item), ImageReadMode.RGB)
        return torch.from_numpy(item).permute(2, 0, 1)

    def transform(view: View) -> Any:
        mode = {"bilinear": tv.InterpolationMode.BILINEAR, "bicubic": tv.InterpolationMode.BICUBIC}
        jitter = tv.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
        blur = tv.GaussianBlur(blur_side(view), view.blur_sigma)
        return tv.Compose(
            [
                tv.RandomResizedCrop(
                    view.size, view.scale, view.ratio, interpolation=mode[view.interpolation]
                ),
                tv.RandomHorizontalFlip(view.flip),
                tv.RandomApply([jitter], p=view.jitter),
                tv.RandomGrayscale(view.grayscale),
                *([tv.RandomApply([blur], p=view.blur)] if view.blur else []),
                *([tv.RandomSolarize(128, p=view.solarize)] if view.solarize else []),
                v1.ToTensor() if version == 1 else v2.ToDtype(torch.float32, scale=True),
                tv.Normalize(*NORM),
            ]
        )

    decoded = v1.PILToTensor() if version == 1 else torch.nn.Identity()
    load = pillow if version == 1 else to_tensor
    work = several(case.views, transform) if case.views else decoded
    return loader(case, path, workers, load, work)


def with_lightly(case: Case, path: Path, workers: int) -> Iterator[Any]:
    from lightly.transforms import DINOTransform, SimCLRTransform
    from torchvision.transforms import PILToTensor

    transform: Any = PILToTensor()
    if case.views == DINO:
        large, _, small = case.views
        transform = DINOTransform(
            global_crop_size=large.size,
            global_crop_scale=large.scale,
            local_crop_size=small.size,
            local_crop_scale=small.scale,
            n_local_views=small.count,
        )  # its colours, blur and solarisation are the paper's by default
    elif case.views:
        (view,) = case.views
        transform = SimCLRTransform(
            view.size,
            cj_strength=view.brightness / 0.8,
            min_scale=view.scale[0],
            gaussian_blur=view.blur,
        )
    return loader(case, path, workers, pillow, transform)


def with_kornia(case: Case, path: Path, workers: int) -> Iterator[Any]:
    from kornia import augmentation as K
    from torchvision.transforms import PILToTensor

    def pipeline(view: View) -> Any:
        side = blur_side(view)
        return K.AugmentationSequential(
            K.RandomResizedCrop(
                (view.size, view.size), view.scale, view.ratio, view.interpolation.upper()
            ),
            K.RandomHorizontalFlip(p=view.flip),
            K.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue, p=view.jitter),
            K.RandomGrayscale(p=view.grayscale),
            *([K.RandomGaussianBlur((side, side), view.blur_sigma, p=view.blur)] * (view.blur > 0)),
            *([K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=view.solarize)] * (view.solarize > 0)),
            K.Normalize(*NORM),
            data_keys=["input"],
        )

    views = several(case.views, pipeline)

    def work(images: torch.Tensor) -> Any:
        with torch.no_grad():
            return views(images.float() / 255)

    return map(work, loader(case, path, workers, pillow, PILToTensor()))


CONTESTANTS: dict[str, Callable[[Case, Path, int], Iterator[Any]]] = {
    "selfsame, exact": partial(with_selfsame, "exact"),
    "selfsame, fast": partial(with_selfsame, "fast"),
    "torchvision": partial(with_torchvision, 1),
    "torchvision v2": partial(with_torchvision, 2),
    "lightly": with_lightly,
    "kornia": with_kornia,
}
KEYS = ("rate", "ratio")
BASE = "lightly"  # ratios are to its rates; to torchvision's where it is not installed


IN_WORKERS = {"torchvision", "torchvision v2", "lightly"}  # torch's threads change nothing
SAME_DECODER = {"selfsame, fast", "kornia"}  # as "selfsame, exact" and torchvision


def serve(name: str, folder: Path, workers: int, pipe: Connection) -> None:
    """The process of one contestant: answer each case with images per CPU second and second."""
    keep_memory()  # as the command line does; of all alike
    while True:
        case = pipe.recv()
        start = partial(CONTESTANTS[name], case, folder / case.pictures, workers)
        torch.set_num_threads(1)
        wall, cpu = drain(start())
        if name not in IN_WORKERS:
            torch.set_num_threads(workers)
            wall = drain(start()).wall
        pipe.send((case.count / cpu, case.count / wall))


def drain(batches: Iterator[Any]) -> Cost:
    """Take all batches; the cost without that of starting and ending the workers."""

    def cpu() -> float:
        workers = (cpu_of(Path(f"/proc/{child.pid}/stat")) for child in active_children())
        return time.process_time() + sum(workers)

    wall, before = time.perf_counter(), cpu()
    for _ in batches:
        pass
    return Cost(time.perf_counter() - wall, cpu() - before)


def compete(
    cases: Sequence[Case], names: Sequence[str], folder: Path, workers: int, rounds: int
) -> list[dict[str, Any]]:
    """Rows of the table: ``rounds`` turns of every contestant at every case, after a first one."""
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # of the contestants, whose processes inherit it
    context = get_context("spawn")
    processes, pipes = [], {}
    for name in names:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(name, folder, workers, theirs)))
        processes[-1].start()
        theirs.close()
    rates: dict[tuple[str, str], list[tuple[float, float]]] = {}
    try:
        for turn in range(rounds + 1):
            for case in cases:
                for name in names:
                    if not case.views and name in SAME_DECODER:
                        continue
                    pipes[name].send(case)
                    answer = pipes[name].recv()
                    if turn:  # the first imports, and fills the caches of the system
                        rates.setdefault((case.title, name), []).append(answer)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    base = BASE if BASE in names else "torchvision"
    rows = []
    for (title, name), found in rates.items():
        row: dict[str, Any] = {"case": title, "contestant": name}
        for k, what in enumerate(("cpu", "wall")):
            own, other = ([pair[k] for pair in each] for each in (found, rates[title, base]))
            row[f"{what}_rate"] = round(statistics.median(own), 1)
            row[f"{what}_ratio"] = round(ratio(own, other), 2)
            row[f"{what}_rates"] = [round(rate, 1) for rate in own]
        rows.append(row)
    return rows


def resident() -> int:
    """Memory of this process, bytes."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def measure_memory(files: Path | None, count: int, pipe: Connection) -> None:
    """Resident memory over one epoch of ``count`` images of 96 pixels, nothing cached.

    Images come from ``count`` files, or (None) from an array; sampled every 5 ms.
    """
    side, size, prefetch = 96, 256, 2
    array = np.broadcast_to(np.uint8(7), (count, side, side, 3))  # takes no memory itself
    source = open_source(array if files is None else files)
    total = len(source) // size
    samples: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            samples.append(resident())

    with Images(source, canvas=side, cache_bytes=0) as images:
        images.batch(torch.arange(2))  # what is allocated once: the decoder, the threads
        before = resident()
        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in Loader(images, size, 0, 0, total, prefetch):
            pass
        stop.set()
        watcher.join()
    tenth = max(1, len(samples) // 10)
    second, last = (max(part) for part in (samples[tenth : 2 * tenth], samples[-tenth:]))
    pipe.send(
        {
            "images": total * size,
            "peak_of_second_tenth": second - before,
            "growth_to_last_tenth": last - second,
            "peak_above_start": max(samples) - before,
            # those ahead, the one that is next, and the one that the loop still holds
            "bound": (prefetch + 2) * size * 3 * side * side,
        }
    )


def memory(folder: Path, quick: bool) -> list[dict[str, Any]]:
    """Memory of an epoch, of files and of an array."""
    count = 20_000 if quick else 100_000
    files = folder / "many"
    files.mkdir()
    tiles = demo.sample().train.images  # type: ignore[attr-defined]
    rng = np.random.default_rng(1)
    for i in range(count):
        if i < 1000:
            picture(rng, tiles, (96, 96)).save(files / f"{i:06}.jpg", quality=90)
        else:
            os.link(files / f"{i % 1000:06}.jpg", files / f"{i:06}.jpg")
    rows = []
    for title, data in (("files", files), ("an array", None)):
        ours, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(target=measure_memory, args=(data, count, theirs))
        process.start()
        rows.append({"source": title, **ours.recv()})
        process.join()
    return rows


def show(result: dict[str, Any]) -> None:
    """The tables, for people."""
    console = Console()
    for title, rows in groupby(result["rows"], key=itemgetter("case")):
        table = Table(title=title, title_justify="left", min_width=64)
        table.add_column("contestant")
        for column in ("per CPU s", "ratio", "per s", "ratio"):
            table.add_column(column, justify="right")
        for row in rows:
            numbers = [row[f"{what}_{key}"] for what in ("cpu", "wall") for key in KEYS]
            cells = [f"{number:,.{2 * (k % 2)}f}" for k, number in enumerate(numbers)]
            table.add_row(row["contestant"], *cells)
        console.print(table)
    for row in result["memory"]:
        growth, peak, bound = (
            f"{row[key] / 2**20:.1f} MiB"
            for key in ("growth_to_last_tenth", "peak_above_start", "bound")
        )
        console.print(
            f"memory, an epoch of {row['images']:,} images of {row['source']}: {growth} more at "
            f"the end than after a tenth, at most {peak} above the start (batches in flight: "
            f"{bound})",
            soft_wrap=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two rounds of little; not kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="decoding threads or processes")
    parser.add_argument("--cases", default="", help="only those whose title contains this")
    parser.add_argument("--install", action="store_true", help="install peers that are missing")
    options = parser.parse_args()
    here = {"lightly", "kornia"} & set(peers(options.install))
    names = [name for name in CONTESTANTS if name not in {"lightly", "kornia"} - here]
    cases = [case for case in CASES if options.cases in case.title]
    if options.quick:
        cases = [replace(case, count=2 * case.batch) for case in cases]
    rounds = 2 if options.quick else options.rounds
    result: dict[str, Any] = {"about": about() | {"rounds": rounds, "workers": options.workers}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_data(folder, options.quick)
        result["rows"] = compete(cases, names, folder, options.workers, rounds)
        result["memory"] = [] if options.cases else memory(folder, options.quick)
    show(result)
    write("data", result, keep=not (options.quick or options.cases))


if __name__ == "__main__":
    main()
