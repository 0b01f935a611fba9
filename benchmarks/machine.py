"""What this machine can do at most, measured, and what it is."""

from __future__ import annotations

import gc
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from deepseek_ocr import devices

ROOT = Path(__file__).resolve().parent.parent

_PEAK_RESET = Path("/proc/self/clear_refs")


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


def bandwidth(device: torch.device, megabytes: int = 400) -> float:
    """Bytes a second that can be read: the best of several sums over more than the caches hold."""
    values = torch.ones(megabytes * 250_000, device=device)
    return values.nbytes / _fastest(device, values.sum)


def matrix_peak(device: torch.device, dtype: torch.dtype, side: int = 0) -> float:
    """Operations a second in a large matrix product, an addition and a multiplication each one.

    On the CPU the shape is that of the vision encoder's widest layer.
    """
    rows, inner, out = (side, side, side) if side else (4096, 768, 3072)
    if device.type != "cpu" and not side:
        rows, inner, out = 8192, 8192, 8192
    left = torch.randn(rows, inner, device=device).to(dtype)
    weight = torch.randn(out, inner, device=device).to(dtype)
    seconds = _fastest(device, lambda: torch.nn.functional.linear(left, weight))
    return 2 * rows * inner * out / seconds


@torch.inference_mode()
def _fastest(device: torch.device, call: Callable[[], object], turns: int = 7) -> float:
    best = float("inf")
    for _ in range(turns):
        devices.synchronize(device)
        start = time.perf_counter()
        call()
        devices.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


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
