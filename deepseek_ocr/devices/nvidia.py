"""NVIDIA's driver and cards against what this torch was built for: why no card can be used, and
what to do."""

from __future__ import annotations

import re
from pathlib import Path

import torch

DRIVER_FILE = Path("/proc/driver/nvidia/version")
"""Where the kernel's part of the driver says its version; containers see the host's."""

DEVICE_FOLDER = Path("/dev")
"""Where the files of the cards are: nvidia0, nvidia1, …"""

LEAST_DRIVER = {11: 450, 12: 525, 13: 580}
"""Major version of CUDA → the first branch of the driver that runs programs built for it.

Source: the table in NVIDIA's "CUDA Compatibility", chapter "Minor Version Compatibility"
(https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
"""

_BUILDS = "https://pytorch.org/get-started/previous-versions/"


def driver_version() -> str | None:
    """Version of the NVIDIA driver, such as "550.54.14"; None if there is none, or the system has
    no /proc/driver/nvidia/version (Windows and WSL)."""
    try:
        text = DRIVER_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"^NVRM version:.*?\s(\d{3,}(?:\.\d+)+)", text, re.MULTILINE)
    return found[1] if found else None


def problem() -> str:
    """Why torch sees no NVIDIA card, and what to do; for a machine on which it sees none."""
    driver, built = driver_version(), torch.version.cuda
    if built is None:
        there = f", although the NVIDIA driver {driver} is here" if driver else ""
        return f"this build of torch is without CUDA{there}"
    if driver is None:
        return f"torch sees no NVIDIA card, and {DRIVER_FILE} names no driver"
    least = LEAST_DRIVER.get(_major(built))
    if least is not None and _major(driver) < least:
        return (
            f"the NVIDIA driver {driver} is too old for this torch ({torch.__version__}, built for "
            f"CUDA {built}, which needs {least} or later); update the driver, or install torch "
            f"built for an older CUDA ({_BUILDS})"
        )
    if not any(DEVICE_FOLDER.glob("nvidia[0-9]*")):
        return (
            f"the NVIDIA driver {driver} is here, but no card is ({DEVICE_FOLDER}/nvidia0 is "
            "missing); start a container with --gpus all"
        )
    return (
        f"the NVIDIA driver {driver} is here, but torch sees no card; nvidia-smi must list one, "
        "and CUDA_VISIBLE_DEVICES must not hide it"
    )


def card_problem(device: torch.device) -> str | None:
    """Why this torch cannot compute on the card `device`, and what to do; None if it can.

    A build has kernels for some compute capabilities; others fail at their first operator with
    "no kernel image is available".
    """
    capability = torch.cuda.get_device_capability(device)
    architectures = torch.cuda.get_arch_list()
    if not architectures or any(_runs(name, capability) for name in architectures):
        return None
    major, minor = capability
    return (
        f"this torch ({torch.__version__}, built for CUDA {torch.version.cuda}) has no kernels for "
        f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}, only for "
        f"{', '.join(architectures)}; install torch built for another CUDA ({_BUILDS}), or use "
        "the device cpu"
    )


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for `architecture` ("sm_86", "compute_90", "sm_90a") runs on a card.

    Binary code (sm) runs within its major version from its minor on; PTX (compute) on all later
    cards; a letter behind the number ties code to one card (a) or its family (f). Source: NVIDIA's
    documentation of nvcc, chapter "GPU Compilation". What cannot be parsed counts as code that
    runs: the card has the last word.
    """
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if found is None:
        return True
    kind, major, minor, tied = found[1], int(found[2]), int(found[3]), found[4]
    if tied == "a":
        return capability == (major, minor)
    if kind == "compute" and not tied:
        return capability >= (major, minor)
    return capability[0] == major and capability[1] >= minor


def _major(version: str) -> int:
    return int(version.split(".", maxsplit=1)[0])
