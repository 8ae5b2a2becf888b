"""Images per second of the data path: JPEG files to canvases, from the cache, and from arrays.

The peers' shape of the same work, Pillow one image at a time in one thread, runs interleaved.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from selfsame import demo, machine
from selfsame.data import Images, Loader, open_source

COUNT, SIDE, CANVAS, ROUNDS = 400, 320, 256, 3


def main() -> None:
    print(machine.describe(torch.device("cpu")))
    data = demo.sample().train
    with tempfile.TemporaryDirectory() as folder:
        for i in range(COUNT):
            small = Image.fromarray(np.asarray(data.read(i)))
            small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(f"{folder}/{i:04d}.jpg")
        source = open_source(folder)
        rates: dict[str, list[float]] = {"Pillow, one thread": [], "decode": [], "cache": []}
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            for path in sorted(Path(folder).iterdir()):
                image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
                np.asarray(image.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC))
            rates["Pillow, one thread"].append(COUNT / (time.perf_counter() - begin))
            with Images(source, canvas=CANVAS) as images:
                for name in ("decode", "cache"):
                    with Loader(images, 50, seed=0, start=0, total=COUNT // 50) as loader:
                        begin = time.perf_counter()
                        for _ in loader:
                            pass
                        rates[name].append(COUNT / (time.perf_counter() - begin))
        base = sorted(rates["Pillow, one thread"])[ROUNDS // 2]
        for name, values in rates.items():
            rate = sorted(values)[ROUNDS // 2]
            title = f"{SIDE} px JPEG to {CANVAS} px: {name}"
            print(f"{title:45} {rate:10,.0f} images/s  {rate / base:6.1f}x")
    with Images(data, canvas=32) as images, Loader(images, 256, 0, 0, 200) as loader:
        begin = time.perf_counter()
        count = sum(len(batch.index) for _, batch in loader)
        print(
            f"{'32 px array, batch 256':45} {count / (time.perf_counter() - begin):10,.0f} images/s"
        )


if __name__ == "__main__":
    main()
