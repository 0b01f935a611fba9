"""What the CPU does fast, and how many threads are worth starting on it.

Nothing is set at import: programs call `use_threads` once, when they start.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

INSTRUCTIONS = {
    "AMX": ("amx_bf16",),
    "AVX-512 BF16": ("avx512_bf16",),
    "AVX-512": ("avx512_f", "avx512_bw"),
    "AVX2": ("avx2",),
    "Arm BF16": ("bf16",),
    "SVE": ("sve",),
}
"""Names for people, fastest first, and the flags of `torch.cpu.get_capabilities` they stand for."""

_BFLOAT16 = ("AMX", "AVX-512 BF16", "Arm BF16")


def instructions() -> list[str]:
    """Which of `INSTRUCTIONS` this processor has, as torch sees it."""
    if hasattr(torch.cpu, "get_capabilities"):
        flags = torch.cpu.get_capabilities()
    else:  # torch before 2.10
        flags = _older_flags()
    return [name for name, needed in INSTRUCTIONS.items() if all(map(flags.get, needed))]


def _older_flags() -> dict[str, bool]:
    avx512 = torch.cpu._is_avx512_supported()
    return {
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "avx512_f": avx512,
        "avx512_bw": avx512,
        "avx2": torch.cpu._is_avx2_supported(),
    }


def has_bfloat16() -> bool:
    """True where the processor multiplies bfloat16 in hardware; elsewhere it is slower than
    float32."""
    return any(name in _BFLOAT16 for name in instructions())


def threads(root: Path = Path("/")) -> int:
    """How many threads the CPU part is given: physical cores that this process may run on, and no
    more than the container's share of time allows; at least 1.

    Two threads on one core wait for each other in matrix products, and a thread beyond the
    container's share is stopped in the middle of work that the others wait for. `root` is where
    `/sys` and `/proc` are.
    """
    shares = [share for folder in _groups(root) if (share := _share_of(folder)) is not None]
    return max(1, min([_physical_cores(root), *map(int, shares)]))


def use_threads(count: int = 0) -> int:
    """Give torch `count` threads (0: what `threads` says); how many it has now."""
    torch.set_num_threads(count or threads())
    return torch.get_num_threads()


def _allowed() -> set[int]:
    """Logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _physical_cores(root: Path) -> int:
    """Cores behind the logical processors; where the system does not tell, torch's own guess."""
    cores = set()
    for number in _allowed():
        siblings = root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list"
        try:
            cores.add(siblings.read_text(encoding="ascii").strip())
        except OSError:
            return min(len(_allowed()), torch.get_num_threads())
    return len(cores)


def _groups(root: Path) -> list[Path]:
    """Folders of the control groups (version 2 and 1) that this process is in, and above."""
    top = root / "sys/fs/cgroup"
    places = {top, top / "cpu", top / "cpu,cpuacct"}
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = top / controllers
        places.add(folder)
        for part in Path(path).parts[1:]:
            folder /= part
            places.add(folder)
    return sorted(places)


def _share_of(folder: Path) -> float | None:
    """Processors' worth of time that a control group may use; None where it is not limited."""
    try:
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        try:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except OSError:
            return None
    return int(quota) / int(period) if quota.isdigit() and int(period) > 0 else None
