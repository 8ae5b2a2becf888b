"""Two SimCLR views of images in memory: selfsame against torchvision, images per CPU second.

python benchmarks/views.py [--threads 1] [--seconds 20]

CPU seconds of the process, not seconds on the clock, so that a busy machine disturbs little; with
several threads, divide nothing: the rate is for one second of one core. Rounds of the contestants
alternate, and each is given its best round. torchvision runs ``transforms.v2`` image by image on
uint8 and ends with float normalisation, as its documentation recommends.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable

import torch
from torchvision.transforms import v2

from selfsame.types import Batch, Norm
from selfsame.views import View, make_views

NORM = Norm((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def with_torchvision(view: View) -> Callable[[torch.Tensor], torch.Tensor]:
    jitter = v2.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    kernel = int(view.blur_kernel * view.size) | 1
    steps = [
        v2.RandomResizedCrop(view.size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(view.flip),
        v2.RandomApply([jitter], p=view.jitter),
        v2.RandomGrayscale(view.grayscale),
        v2.RandomApply([v2.GaussianBlur(kernel, view.blur_sigma)], p=view.blur),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(*NORM),
    ]
    return v2.Compose([step for step in steps if view.blur or step is not steps[4]])


def compare(view: View, canvas: int, count: int, few: int, seconds: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, canvas, canvas)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    batch = Batch(images, torch.full((count, 2), canvas), torch.arange(count))
    per_image = with_torchvision(view)

    def ours(color: str, epoch: int) -> int:
        make_views([view], batch, seed=0, epoch=epoch, norm=NORM, device="cpu", color=color)
        return count

    def theirs(epoch: int) -> int:
        torch.manual_seed(epoch)
        for _ in range(2):
            torch.stack([per_image(image) for image in images[:few]])
        return few

    contestants: dict[str, Callable[[int], int]] = {
        "exact": lambda epoch: ours("exact", epoch),
        "fast": lambda epoch: ours("fast", epoch),
        "torchvision": theirs,
    }
    best = dict.fromkeys(contestants, 0.0)
    start, rounds = time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - start < seconds:
        for name, run in contestants.items():
            before = time.process_time()
            done = run(rounds)
            best[name] = max(best[name], done / (time.process_time() - before))
        rounds += 1
    print(f"two views at {view.size} from {canvas}, batch {count}, best of {rounds} rounds")
    for name, rate in best.items():
        print(f"  {name:12} {rate:8.0f} images/CPU s  {rate / best['torchvision']:6.1f} x")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="for each size")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {platform.machine()}, {options.threads} threads")
    strength = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    compare(View(size=32, count=2, blur=0.0, **strength), 32, 256, 32, options.seconds)
    compare(View(size=224, count=2), 256, 32, 2, options.seconds)
