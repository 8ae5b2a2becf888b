"""Read an export as a user would: runs the lines that were printed, without selfsame.

``check`` runs the text of this file in a process of its own, with a folder as its argument:
``job.json`` and ``given.npz`` lie there, ``found.npz`` is written there.
"""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np


def main(place: Path) -> None:
    """Load, compute what was promised of each input, and preprocess the pictures."""
    job = json.loads((place / "job.json").read_text("utf-8"))
    names: dict[str, Any] = {}
    exec(job["load"], names)
    found: dict[str, Any] = {}
    if not job["use"]:
        np.savez(place / "found.npz", **digests(names), version=version(job["library"]))
        return
    still: Any = nullcontext()
    if job["arrays"] == "torch":
        import torch

        still = torch.no_grad()

    def compute(key: str, x: np.ndarray) -> None:
        names["x"] = torch.from_numpy(x) if job["arrays"] == "torch" else x
        exec(job["use"], names)
        for output in job["outputs"]:
            found[f"{key}.{output}"] = np.asarray(names[output])

    with still:
        with np.load(place / "given.npz") as given:
            for key in given.files:
                compute(key, given[key])
        if job["transform"] and job["pictures"]:
            from PIL import Image, ImageOps

            exec(job["transform"], names)
            pictures = [ImageOps.exif_transpose(Image.open(place / p)) for p in job["pictures"]]
            own = [np.asarray(names["transform"](picture), np.float32) for picture in pictures]
            found["own.x"] = np.stack(own)
            compute("own", found["own.x"])
    np.savez(place / "found.npz", **found, version=version(job["library"]))


def version(library: str) -> str:
    """The version of a library that has been imported."""
    return str(getattr(sys.modules[library], "__version__", "of an unknown version"))


def digests(names: dict[str, Any]) -> dict[str, Any]:
    """SHA-256 of each tensor in the state dicts that were loaded."""
    found: dict[str, Any] = {}
    for part in ("state", "head"):
        for key, value in names.get(part, {}).items():
            found[f"{part}.{key}"] = hashlib.sha256(value.numpy().tobytes()).hexdigest()
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    if "selfsame" in sys.modules:
        sys.exit("it imports selfsame")
