"""The one place that knows devices, precisions and threads."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import get_args

import torch

from bench.bfloat16 import computes_bf16
from bench.errors import UsageError
from bench.network import Precision


def choose_device(name: str) -> torch.device:
    """The device for `--device`: `auto` takes a CUDA device if there is one.

    Raises:
        UsageError: for a name PyTorch does not know, or a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("not a device to train on")
        if device.type == "mps" and not torch.backends.mps.is_available():
            raise RuntimeError("this machine has none")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        # PyTorch goes on for a screenful; what is wrong stands in its first sentence.
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise UsageError(
            f"device '{name}' cannot be used ({reason}); write auto, cpu, cuda or cuda:N"
        ) from None
    return device


def choose_precision(name: str, wish: str, device: torch.device) -> Precision:
    """The arithmetic that a cell is computed in; it is part of the cell's identity.

    Args:
        name: `auto`, `fp32`, `tf32` or `bf16`, as given with `--precision`.
        wish: the recipe's, `exact` or `fast`; it decides when the name is `auto`.
        device: where the cell will run.
    """
    if name == "auto":
        if wish == "fast" and computes_bf16(device):
            return "bf16"
        return "tf32" if device.type == "cuda" else "fp32"
    if name == "tf32" and device.type != "cuda":
        raise UsageError(f"precision tf32 needs a CUDA device, not {device}; write fp32 or bf16")
    for known in get_args(Precision):
        if name == known:
            return known
    raise UsageError(f"unknown precision '{name}'; there are: auto, fp32, tf32, bf16")


def configure(
    precision: Precision, threads: int, device: torch.device, memory: int | None = None
) -> None:
    """Set what PyTorch keeps globally: threads, the arithmetic behind float32, a GPU's share.

    Args:
        precision: of the run.
        threads: of this process.
        device: where it computes.
        memory: bytes of a GPU's memory that this process may take, or None for all.
    """
    torch.set_num_threads(threads)
    if device.type == "cuda":
        index = device.index or 0
        torch.cuda.set_device(index)  # streams and graphs belong to the current device
        if memory is not None:
            share = min(memory / total_memory(device), 1.0)
            torch.cuda.set_per_process_memory_fraction(share, index)
    _keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = precision != "fp32"
    torch.backends.cudnn.allow_tf32 = precision != "fp32"


def _keep_freed_memory() -> None:
    """Let the C library reuse large freed blocks instead of returning them to the system.

    Activations are freed and allocated again in every pass. By default glibc unmaps large ones,
    and the system then clears each page anew: a sixth of the time on a processor.
    """
    if sys.platform == "linux":
        mmap_threshold, trim_threshold, largest = -3, -1, 2**31 - 1
        with suppress(AttributeError, OSError):  # another C library than glibc
            libc = ctypes.CDLL(None)
            for threshold in (2**25, 2**30):  # older versions refuse the second
                libc.mallopt(mmap_threshold, threshold)
            libc.mallopt(trim_threshold, largest)


def describe(device: torch.device) -> dict[str, str | int]:
    """What a record says of the machine."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "type": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
    }


def total_memory(device: torch.device) -> int:
    """Bytes of a GPU, or of this machine or container: what it has, not what is free now.

    Sizes that are derived from it are then the same in every run, and results round alike.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # "max" where a container has no limit
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def gpus(device: torch.device) -> list[str]:
    """Names by which `CUDA_VISIBLE_DEVICES` selects the GPUs that a run may use."""
    if device.type != "cuda":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    names = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    return names if device.index is None else [names[device.index]]


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` begin anew, where that is possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device's allocator, or of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
