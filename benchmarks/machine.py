"""What this machine can do at most, measured, and what it is."""

from __future__ import annotations

import gc
import importlib.metadata
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from deepseek_ocr.devices import nvidia, selection

ROOT = Path(__file__).resolve().parent.parent

_PEAK_RESET = Path("/proc/self/clear_refs")

WARM_UP, TIMED, CHUNK = 0.3, 0.5, 0.03
"""Seconds for which a card repeats a call before it is timed, and while it is; and of one chunk."""

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "flash-attn", "triton")


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions and revision, for the figures to be told apart by."""
    return {
        "processor": _processor(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "revision": _revision(),
    }


def packages() -> dict[str, str | None]:
    """Versions of the packages that decide what runs on a card; None: not installed."""
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def card(device: torch.device) -> dict[str, Any] | None:
    """An NVIDIA card: name, compute capability, memory in bytes, and the versions of its driver,
    of CUDA and of cuDNN; None for any other device."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    major, minor = torch.cuda.get_device_capability(device)
    return {
        "name": torch.cuda.get_device_name(device),
        "capability": f"{major}.{minor}",
        "total_bytes": total,
        "free_bytes": free,
        "driver": nvidia.driver_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def bandwidth(device: torch.device) -> float:
    """Bytes a second between the device and its memory.

    On an NVIDIA card: a copy of 4 GB, or of a third of what is free if that is less, read and
    written bytes both counted. Elsewhere: a sum over 400 MB, more than the caches hold.
    """
    if device.type == "cuda":
        size = min(4 * 10**9, torch.cuda.mem_get_info(device)[0] // 3)
        source = torch.zeros(size, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        return 2 * size / seconds_of(device, lambda: target.copy_(source))
    values = torch.ones(100_000_000, device=device)
    return values.nbytes / seconds_of(device, values.sum)


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second in a large matrix product, an addition and a multiplication each one.

    On the CPU the shape is that of the vision encoder's widest layer, elsewhere 8192 each way.
    """
    rows, inner, out = (4096, 768, 3072) if device.type == "cpu" else (8192, 8192, 8192)
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    weight = torch.randn(out, inner, device=device, dtype=dtype)
    seconds = seconds_of(device, lambda: torch.nn.functional.linear(left, weight))
    return 2 * rows * inner * out / seconds


@torch.inference_mode()
def seconds_of(device: torch.device, call: Callable[[], object]) -> float:
    """Seconds of one short `call`.

    On an NVIDIA card: the median over chunks of calls, each between two events of the card's own
    clock, for `TIMED` seconds after `WARM_UP` seconds that do not count: its clock rate rises with
    work. Elsewhere: the least of seven.
    """
    if device.type == "cuda":
        return _by_events(device, call)
    best = float("inf")
    for _ in range(7):
        selection.synchronize(device)
        start = time.perf_counter()
        call()
        selection.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


def _by_events(device: torch.device, call: Callable[[], object]) -> float:
    with torch.cuda.device(device):
        count, spent = 1, 0.0
        while spent < WARM_UP:
            seconds = _chunk(call, count)
            spent += seconds
            if seconds < CHUNK:
                count *= 2
        chunks: list[float] = []
        while sum(chunks) < TIMED:
            chunks.append(_chunk(call, count))
    return statistics.median(chunks) / count


def _chunk(call: Callable[[], object], count: int) -> float:
    """Seconds that the current card takes for so many calls."""
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def peak_memory(device: torch.device, call: Callable[[], object]) -> int:
    """Bytes that `call` takes at most on top of what was there before (0 where unknown).

    On the CPU this is resident memory, whose peak Linux keeps (proc(5), `clear_refs`): looking at
    it now and then would miss what comes and goes while the looking thread has no processor. What
    other threads take or give back meanwhile is counted too.
    """
    gc.collect()  # what nobody holds would otherwise be given back during the call
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        _PEAK_RESET.write_text("5")
    except OSError:  # not Linux, or not ours to write
        call()
        return 0
    before = _resident("VmRSS")
    call()
    return max(0, _resident("VmHWM") - before)


def family_memory(parent: Any) -> int:
    """Bytes resident in a process (a `psutil.Process`) and in all that it has started.

    A child that has been forked and has not started its program yet shows the whole of its
    parent's memory again, and is left out. Raises `psutil.NoSuchProcess` if one ends meanwhile.
    """
    started = (one for one in parent.children(recursive=True) if one.cmdline() != parent.cmdline())
    return int(sum(one.memory_info().rss for one in (parent, *started)))


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
