"""Which device and which number type to run on, decided in one place.

Nothing is probed at import; every function looks when it is called.
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import torch

from deepseek_ocr.errors import DeviceError

PREFERENCE = ("cuda", "npu", "mps", "cpu")
"""Order in which `auto` looks for a device."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def _npu_available() -> bool:
    """True where torch-npu is installed and sees an Ascend device."""
    if importlib.util.find_spec("torch_npu") is None:
        return False
    try:
        importlib.import_module("torch_npu")  # registers torch.npu
    except (ImportError, OSError):  # its toolkit is not set up; other devices still work
        return False
    return bool(_npu().is_available())


def _npu() -> Any:
    """`torch.npu`, which exists once torch-npu is imported."""
    return vars(torch)["npu"]


def _is_available(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available()
    if kind == "npu":
        return _npu_available()
    if kind == "mps":
        return torch.backends.mps.is_available()
    return kind == "cpu"


def available() -> list[str]:
    """Kinds of device that this machine has, in order of preference; "cpu" is always there."""
    return [kind for kind in PREFERENCE if _is_available(kind)]


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device called `name`: "auto", "cpu", "cuda", "cuda:1", "mps", "npu", "npu:0".

    Raises `DeviceError` where a device asked for by name is not there, saying what is.
    """
    name = str(name).strip().lower()
    present = available()
    if name == "auto":
        return torch.device(present[0])
    kind, _, index = name.partition(":")
    if not re.fullmatch(rf"({'|'.join(PREFERENCE)})(:(0|[1-9][0-9]{{0,2}}))?", name):
        raise DeviceError(
            f"There is no device called {name!r}; use auto, {', '.join(PREFERENCE)}, "
            "or a number behind one of them as in cuda:1."
        )
    if kind not in present:
        raise DeviceError(
            f"Device {name!r} is not available here; this machine has {', '.join(present)}. "
            "Choose one of these or auto."
        )
    if index and int(index) >= _count(kind):
        raise DeviceError(
            f"Device {name!r} is not available here; there are {_count(kind)} of kind {kind}, "
            "counted from 0."
        )
    return torch.device(name)


def _count(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.device_count()
    if kind == "npu":
        return int(_npu().device_count())
    return 1


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The number type called `name`; "auto" is what the device does well.

    Raises `DeviceError` for a name that is not auto, bfloat16, float16 or float32.
    """
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    if name == "auto":
        return _native_dtype(device)
    if name not in DTYPES:
        raise DeviceError(f"There is no type {name!r} here; use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def _native_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        # Ampere (compute capability 8) is the first with bfloat16 matrix units.
        modern = torch.cuda.get_device_capability(device)[0] >= 8
        return torch.bfloat16 if modern else torch.float16
    if device.type == "npu":
        return torch.float16
    if device.type == "mps":
        modern = torch.backends.mps.is_macos_or_newer(14, 0)
        return torch.bfloat16 if modern else torch.float16
    return torch.bfloat16 if _cpu_has_bfloat16() else torch.float32


def _cpu_has_bfloat16() -> bool:
    """True where the processor multiplies bfloat16 in hardware (AVX-512 BF16, AMX, Arm BF16)."""
    if not hasattr(torch.cpu, "get_capabilities"):  # torch before 2.10
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(flag) for flag in ("avx512_bf16", "amx_bf16", "bf16"))


def decoder_attention(device: torch.device, dtype: torch.dtype) -> str:
    """Name of the attention the decoder uses: flash-attn where it is installed and the card
    supports it (Ampere or later, 16-bit types), else the one built into torch ("sdpa")."""
    if device.type != "cuda" or dtype == torch.float32:
        return "sdpa"
    if importlib.util.find_spec("flash_attn") is None:
        return "sdpa"
    return "flash_attention_2" if torch.cuda.get_device_capability(device)[0] >= 8 else "sdpa"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given, so that timings by stage are true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "npu":
        _npu().synchronize()
