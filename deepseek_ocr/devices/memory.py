"""Memory: how much is free, how many pages fit at once, and what running out of it looks like."""

from __future__ import annotations

import errno
import gc
import os
import re
from pathlib import Path

import torch

from deepseek_ocr.model.network import Network

MOST_SLOTS = {"cuda": 64, "npu": 16, "mps": 4, "cpu": 4}
"""Pages at once where memory allows: a processor gains from reading each weight once for a few
tokens and is then busy computing; a graphics card goes on gaining."""

RESERVE = 4 * 2**30
"""Bytes on an accelerator left to vision and prefill: the plain attention of one 1280 px view
holds about 3 GB at its peak."""

CACHE_SHARE = {"cuda": 0.8, "npu": 0.8, "mps": 0.25, "cpu": 0.25}
"""Share of what is free (beyond the reserve) that caches may take; less where other programs live
in the same memory."""


def cache_bytes(network: Network) -> int:
    """Bytes that the cache of one page takes when its context is full: keys and values of every
    layer."""
    text = network.config.text_config
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * head * network.dtype.itemsize
    return int(token * text.max_position_embeddings)


def slots_for(kind: str, free: int | None, per_slot: int) -> int:
    """How many pages to hold at once on a device of `kind` with `free` bytes (None: unknown), each
    with a cache of `per_slot` bytes.

    On an accelerator: as many full contexts as fit into four fifths of what is free beyond 4 GiB,
    64 at most. On a processor: into a quarter of what is free, 4 at most. Always at least one.
    """
    if free is None:
        return 1
    usable = (free - (RESERVE if kind in ("cuda", "npu") else 0)) * CACHE_SHARE[kind]
    return max(1, min(MOST_SLOTS[kind], int(usable // per_slot)))


def choose_slots(network: Network) -> int:
    """How many pages `network` may hold at once where it is; see `slots_for`."""
    device: torch.device = network.device
    return slots_for(device.type, free_bytes(device), cache_bytes(network))


def free_bytes(device: torch.device) -> int | None:
    """Bytes that are free on `device`; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type == "npu":
        return int(vars(torch)["npu"].mem_get_info(device)[0])
    known = [found for found in (_available(), _allowed()) if found is not None]
    return min(known, default=None)


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
        bound, used = (
            (folder / name).read_text().strip() for name in ("memory.max", "memory.current")
        )
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
        vars(torch)["npu"].empty_cache()
