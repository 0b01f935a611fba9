"""Memory of a device: how much is free, and what running out of it looks like."""

from __future__ import annotations

import errno
import gc
import os
import re
from pathlib import Path

import torch

from deepseek_ocr.devices.ascend import npu


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free for a network on `device`, of the system's memory where the device shares
    it; None if unknown."""
    if device.type in ("cuda", "npu") and (found := free_and_total(device)) is not None:
        return found[0]
    known = [found for found in (_available(), _allowed()) if found is not None]
    return min(known, default=None)


def free_and_total(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes of the device; None where it has no memory of its own to ask for."""
    if device.type in ("cuda", "npu"):
        free, total = (torch.cuda if device.type == "cuda" else npu()).mem_get_info(device)
        return int(free), int(total)
    if device.type == "mps":
        total = int(torch.mps.recommended_max_memory())
        return max(0, total - int(torch.mps.driver_allocated_memory())), total
    return None


def _available() -> int | None:
    """What the system could give without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, OSError, ValueError):  # not Unix
        return None


def _allowed(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What a container's bound leaves; None where there is none."""
    try:
        names = ("memory.max", "memory.current")
        bound, used = ((folder / name).read_text().strip() for name in names)
        return None if bound == "max" else max(0, int(bound) - int(used))
    except (OSError, ValueError):
        return None


_REFUSED = re.compile(
    r"out of memory"  # "CUDA out of memory", "CUDA error: out of memory", MPS, NPU
    r"|\b[A-Z]+_(\w+_)?ALLOC(ATION)?_FAILED\b"  # CUBLAS_STATUS_ALLOC_FAILED, cuDNN, cuFFT …
    r"|DefaultCPUAllocator: (can't allocate memory|not enough memory)"  # Linux and macOS, Windows
    r"|std::bad_alloc"
)
"""What torch says in a `RuntimeError` if memory is refused."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if `error` is a device or the system refusing memory.

    Known by its type, by the system's error number (a failed `mmap`), or by torch's exact words:
    other errors speak of allocation too.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _REFUSED.search(str(error)) is not None


def is_of_the_system(error: BaseException) -> bool:
    """True if it was the system, not a device, that refused memory."""
    if isinstance(error, MemoryError | OSError):
        return True
    return "DefaultCPUAllocator" in str(error) or "std::bad_alloc" in str(error)


def give_back(device: torch.device) -> None:
    """Return what is no longer used to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif device.type == "npu":
        npu().empty_cache()
