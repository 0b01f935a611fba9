"""What this machine can do at most, measured, and what it is."""

from __future__ import annotations

import gc
import importlib.metadata
import platform
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import ROOT
from benchmarks.timing import seconds_of
from deepseek_ocr.devices import nvidia
from deepseek_ocr.images.views import Views
from deepseek_ocr.model.network import Network, vision_tokens

_PEAK_RESET = Path("/proc/self/clear_refs")

_PACKAGES = (
    "torch", "torch-npu", "transformers", "tokenizers", "safetensors", "flash-attn", "triton",
)  # fmt: skip


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions and revision, for the figures to be told apart by."""
    versions = packages()
    return {
        "processor": _linux_says("cpuinfo", "model name")
        or platform.processor()
        or platform.machine(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "python": platform.python_version(),
        "torch": versions["torch"],
        "transformers": versions["transformers"],
        "threads": torch.get_num_threads(),
        "revision": _revision(),
    }


def packages() -> dict[str, str | None]:
    """Versions of the packages that decide what runs on a device; None: not installed."""
    found: dict[str, str | None] = dict.fromkeys(_PACKAGES)
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


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


def _linux_says(file: str, name: str) -> str:
    """The first value behind `name` in `file` of `/proc`; empty on systems other than Linux."""
    path = Path("/proc", file)
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _revision() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return "unknown"


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
    before = resident("VmRSS")
    call()
    return max(0, resident("VmHWM") - before)


def vision_peak(network: Network, views: Views) -> int:
    """Bytes that `views` take at most beside the weights, by `peak_memory`."""
    vision_tokens(network, views)  # what is kept for good is not counted
    return peak_memory(network.device, lambda: vision_tokens(network, views))


@contextmanager
def highest(read: Callable[[], float], every: float) -> Iterator[list[float]]:
    """Within, `read` is called again and again, `every` so many seconds, and at the end; the one
    number in the list that is given is the highest so far."""
    found, done = [0.0], threading.Event()

    def watch() -> None:
        ended = False
        while not ended:
            ended = done.wait(every)
            found[0] = max(found[0], read())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()


def family_memory(parent: Any) -> int:
    """Bytes resident in a process (a `psutil.Process`) and in all that it has started; 0 if one
    ends meanwhile.

    A child that has been forked and has not started its program yet shows the whole of its
    parent's memory again, and is left out.
    """
    import psutil  # only tests and the benchmark of documents have it

    try:
        children = parent.children(recursive=True)
        started = (one for one in children if one.cmdline() != parent.cmdline())
        return int(sum(one.memory_info().rss for one in (parent, *started)))
    except psutil.NoSuchProcess:
        return 0


def resident(name: str) -> int:
    """Bytes of this process by the name that Linux gives them, such as VmRSS; 0 elsewhere."""
    return int(_linux_says("self/status", f"{name}:").removesuffix(" kB") or 0) * 1024
