"""What the machine is and what it computes natively."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal

import torch

from selfsame.errors import UsageError


def device(name: str | None = None) -> torch.device:
    """The device to run on: the one named, else the first CUDA GPU, else the CPU.

    Where torchrun started several processes on the machine, "the first" and "cuda" are each one's
    own, by ``LOCAL_RANK``.

    Raises:
        UsageError: a device that PyTorch does not know or cannot use here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        chosen = torch.device(name)
        torch.empty(1, device=chosen)
        if chosen.type == "cuda" and chosen.index is not None:
            torch.cuda.set_device(chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"cannot use the device '{name}': {str(error).splitlines()[0]}",
            tip="leave --device out, or write cpu, cuda or cuda:1",
        ) from None
    return chosen


def native_bf16(chosen: torch.device) -> str | None:
    """What computes bfloat16 natively on the device, or None where it would be emulated.

    CUDA GPUs of compute capability 8.0 and later have bfloat16 tensor cores. CPUs have it with
    the AMX-BF16 or AVX512-BF16 instructions; on others PyTorch's bfloat16 is slower than float32.
    """
    if chosen.type == "cuda":
        major, minor = torch.cuda.get_device_capability(chosen)
        return f"compute capability {major}.{minor}" if major >= 8 else None
    if chosen.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return "AMX"
        if torch.cpu._is_avx512_bf16_supported():
            return "AVX512-BF16"
    return None


def precision(wanted: str, chosen: torch.device) -> tuple[Literal["bf16", "fp32"], str]:
    """Resolve ``auto``: the precision of the networks, and the reason in words."""
    if wanted in ("bf16", "fp32"):
        return wanted, "as asked"  # type: ignore[return-value]
    reason = native_bf16(chosen)
    if reason:
        return "bf16", f"native here: {reason}"
    return "fp32", "bfloat16 is not native here"


def autocast(chosen: torch.device, resolved: str) -> AbstractContextManager[object]:
    """The autocast region for the networks; losses leave it by computing in float32."""
    if resolved == "bf16":
        return torch.autocast(chosen.type, torch.bfloat16)
    return nullcontext()


def describe(chosen: torch.device) -> str:
    """One line: the GPU and its memory, or the CPU's name, cores and threads."""
    if chosen.type == "cuda":
        properties = torch.cuda.get_device_properties(chosen)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def processes() -> int:
    """Processes of torchrun's that share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def memory(chosen: torch.device) -> int:
    """Bytes that a run can take on the device, 0 where the system does not say.

    On a CPU: without swapping, and within the container's limit.
    """
    if chosen.type == "cuda":
        return int(torch.cuda.mem_get_info(chosen)[0])
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return 0
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields.get("MemAvailable", "0 kB").split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()) != "max":
        free = min(free, max(0, int(most) - int(used.read_text())))
    return free


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            for line in info:
                if line.startswith("model name"):
                    return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine()
