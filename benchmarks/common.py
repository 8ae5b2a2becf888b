"""What the benchmarks beside peers share: the peers, the machine, rounds, where results go."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any, NamedTuple

import torch

from selfsame import machine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
VERSIONS = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg", "lightly", "kornia")
TICKS = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """What something took, in seconds."""

    wall: float
    cpu: float  # of a process and its workers


def cpu_of(stat: Path) -> float:
    """CPU seconds of the process of a ``/proc/PID/stat`` and of the children it has waited for."""
    return sum(map(int, fields(stat)[11:15])) / TICKS


def fields(stat: Path) -> list[str]:
    """What follows the name in a ``/proc/PID/stat``: state, parent, group, session, ..."""
    return stat.read_text().rpartition(")")[2].split()


def peers(install: bool) -> list[str]:
    """The peers that are here. Those that are not are installed if asked, else named with how."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = {re.split(r"\W", line)[0]: line for line in project["optional-dependencies"]["bench"]}
    missing = [line for name, line in wanted.items() if util.find_spec(name) is None]
    if missing:
        command = [sys.executable, "-m", "pip", "install", *missing]
        if install:
            subprocess.run(command, check=True)
        else:
            words = " ".join(f"'{word}'" if ">" in word else word for word in command)
            print(f"left out, as not installed: {', '.join(missing)}; to have them: {words}")
    return [name for name in wanted if util.find_spec(name) is not None]


def about() -> dict[str, Any]:
    """The machine and the versions that a result holds for."""
    found = {}
    for package in VERSIONS:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "machine": machine.describe(torch.device("cpu")),
        "load": round(os.getloadavg()[0], 1),  # of other work, before the first round
        "versions": {"python": platform.python_version(), **found},
    }


def write(name: str, result: dict[str, Any], keep: bool) -> None:
    """Write a result under the name of the hardware, where it is to be kept."""
    if not keep:
        return
    hardware = machine.describe(torch.device("cpu")).partition(" cores")[0] + " cores"
    slug = re.sub(r"[^a-z0-9]+", "-", hardware.lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{name}-{slug}.json"
    parts = (
        f'"{key}": [\n{{}}\n]'.format(",\n".join(map(json.dumps, value)))
        if isinstance(value, list)  # of rows, one a line
        else f'"{key}": {json.dumps(value)}'
        for key, value in result.items()
    )
    file.write_text("{" + ",\n".join(parts) + "}\n", "utf-8")
    print(f"written to {file.relative_to(ROOT)}")


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round: what slows both down cancels."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
