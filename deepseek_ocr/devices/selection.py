"""Which device and which number type to run on, decided in one place.

Nothing is probed at import; every function looks when it is called.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from deepseek_ocr.devices import ascend, cpu, memory, nvidia
from deepseek_ocr.devices.ascend import npu
from deepseek_ocr.errors import DeviceError

_LOG = logging.getLogger(__name__)

PREFERENCE = ("cuda", "npu", "mps", "cpu")
"""Order in which `auto` looks for a device."""

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

AMPERE = 8
"""Major compute capability of the first NVIDIA cards with bfloat16 matrix units."""


# --- which are here ------------------------------------------------------------------------------


def _npu_problem() -> str | None:
    """Why there is no Ascend device to use, and what to do; None where there is one."""
    if importlib.util.find_spec("torch_npu") is None:
        return (
            "torch-npu is not installed; on the machine with the NPU install cog-deepseek-ocr[npu] "
            "from where the package came, as in: pip install '.[npu]'"
        )
    try:
        importlib.import_module("torch_npu")  # registers torch.npu
    except (ImportError, OSError, RuntimeError) as error:  # other devices still work
        return ascend.advice(error) or f"torch-npu does not load: {error}"
    if npu().is_available():
        return None
    return (
        "torch-npu loads but sees no NPU; npu-smi info must list one, and a container needs "
        "--device /dev/davinci0, /dev/davinci_manager, /dev/devmm_svm and /dev/hisi_hdc."
    )


def _is_available(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available()
    if kind == "npu":
        return _npu_problem() is None
    if kind == "mps":
        return torch.backends.mps.is_available()
    return kind == "cpu"


def available() -> list[str]:
    """Kinds of device that this machine has, in order of preference; "cpu" is always there."""
    return [kind for kind in PREFERENCE if _is_available(kind)]


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device called `name`: "auto", "cpu", "cuda", "cuda:1", "mps", "npu", "npu:0".

    The log warns once of "auto" that takes the CPU although the machine has an NVIDIA driver.

    Raises `DeviceError` where a device asked for by name is not there, saying what is and why, and
    for a card for which this torch has no kernels.
    """
    name = str(name).strip().lower()
    present = available()
    if name == "auto":
        # With a driver and a torch for CUDA a machine was meant to compute on its card.
        if present[0] == "cpu" and torch.version.cuda and nvidia.driver_version() is not None:
            _warn_once(f"reading on the CPU: {nvidia.problem()}")
        return _usable(torch.device(present[0]))
    kind, _, index = name.partition(":")
    if not re.fullmatch(rf"({'|'.join(PREFERENCE)})(:(0|[1-9][0-9]{{0,2}}))?", name):
        raise DeviceError(
            f"There is no device called {name!r}; use auto, {', '.join(PREFERENCE)}, "
            "or a number behind one of them as in cuda:1."
        )
    if kind not in present:
        raise DeviceError(
            f"Device {name!r} is not available here; this machine has {', '.join(present)}. "
            f"Choose one of these or auto. Why it is not: {absent()[kind].rstrip('.')}."
        )
    if index and int(index) >= _count(kind):
        raise DeviceError(
            f"Device {name!r} is not available here; there are {_count(kind)} of kind {kind}, "
            "counted from 0."
        )
    return _usable(torch.device(name))


def _usable(device: torch.device) -> torch.device:
    """`device`, if this torch can compute on it. Raises `DeviceError`."""
    if device.type == "cuda" and (why := nvidia.card_problem(device)) is not None:
        raise DeviceError(f"Device {str(device)!r} cannot be used: {why}.")
    return device


@functools.cache
def _warn_once(text: str) -> None:
    _LOG.warning(text)


def _count(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.device_count()
    if kind == "npu":
        return int(npu().device_count())
    return 1


# --- types and attention -------------------------------------------------------------------------


def choose_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The number type called `name`; "auto" is what the device does well.

    The log warns of bfloat16 on an NVIDIA card before Ampere, which emulates it.
    Raises `DeviceError` for a name that is not auto, bfloat16, float16 or float32.
    """
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    if name == "auto":
        return _native_dtype(device)[0]
    if name not in DTYPES:
        raise DeviceError(f"There is no type {name!r} here; use auto, {', '.join(DTYPES)}.")
    if name == "bfloat16" and device.type == "cuda" and not _is_ampere(device):
        _LOG.warning(
            "bfloat16 will be slow on %s: a card before Ampere has no units for it. Use auto or "
            "float16 (--dtype, DEEPSEEK_OCR_DTYPE).",
            device,
        )
    return DTYPES[name]


def _is_ampere(device: torch.device) -> bool:
    """True for an NVIDIA card with bfloat16 matrix units: Ampere or later."""
    return torch.cuda.get_device_capability(device)[0] >= AMPERE


def vision_dtype(decoder: torch.dtype, vision: torch.device, text: torch.device) -> torch.dtype:
    """The type of the vision part when it runs on a device of its own: the decoder's where it is
    float32 or both are of one kind, else what that device does well."""
    if decoder == torch.float32 or vision.type == text.type:
        return decoder
    return _native_dtype(vision)[0]


def _native_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The type that a device does well, and why."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        if _is_ampere(device):
            return torch.bfloat16, f"compute capability {major}.{minor} has bfloat16 matrix units"
        return torch.float16, f"compute capability {major}.{minor} is before Ampere: no bfloat16"
    if device.type == "npu":
        return torch.float16, "every Ascend has float16 units; bfloat16 by choice on a 910B"
    if device.type == "mps":
        modern = torch.backends.mps.is_macos_or_newer(14, 0)
        return (torch.bfloat16 if modern else torch.float16), "bfloat16 from macOS 14 on"
    if cpu.has_bfloat16():
        return torch.bfloat16, "the processor has bfloat16 instructions"
    return torch.float32, "the processor has no bfloat16 instructions"


def prompt_attention(device: torch.device, dtype: torch.dtype) -> tuple[str, ...]:
    """Names that transformers gives to the attention for prompts, the fastest first: flash-attn if
    it is installed, for 16-bit types on Ampere or later; then the one built into torch ("sdpa").

    Whether an installed flash-attn loads and runs here is found by the rehearsal at load.
    """
    wanted = device.type == "cuda" and dtype != torch.float32 and _is_ampere(device)
    if wanted and importlib.util.find_spec("flash_attn") is not None:
        return ("flash_attention_2", "sdpa")
    return ("sdpa",)


# --- what is done with a device ------------------------------------------------------------------


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given, so that timings by stage are true."""
    if device.type == "cuda":
        # Not the whole device: that would void a capture under way in another thread.
        torch.cuda.current_stream(device).synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "npu":
        npu().synchronize()


def current(device: torch.device) -> AbstractContextManager[object]:
    """Within, `device` is the card of this thread, if it is one: libraries and captures of graphs
    go by that and not by their tensors."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def failure(device: torch.device) -> DeviceError | None:
    """What to say if `device` does nothing more in this process; None if it goes on working.

    After some errors (an illegal memory access, a device-side assertion, an unspecified launch
    failure) CUDA refuses everything that it is asked until the process ends, so it is asked. A lack
    of memory passes, and so does what is forbidden while a CUDA graph is being captured
    (cudaErrorStreamCapture…). Source: the notes on each value of cudaError_t in NVIDIA's
    documentation of the CUDA runtime.
    """
    try:
        synchronize(device)
    except Exception as problem:
        text = str(problem)
        passes = isinstance(problem, torch.OutOfMemoryError) or "out of memory" in text
        if passes or "captur" in text.lower():
            return None
        what = (text.strip() or type(problem).__name__).splitlines()[0].rstrip(".")
        return DeviceError(f"Device {str(device)!r} failed ({what}); restart the program.")
    return None


def configure(device: torch.device) -> None:
    """Set what torch decides once for the whole process, if `device` is an NVIDIA card.

    Sums of 16-bit products are kept in float32 (torch's default lets cuBLAS add partial sums in 16
    bits, where float16 overflows sooner), and attention never goes through cuDNN, which makes a
    plan for each new shape, such as each new length of a prompt, and was not measured here. float32
    is float32: TF32 (10 bits) stays off for matrix products and is switched off for convolutions.
    Other programs in this process see these settings too.
    """
    if device.type != "cuda":
        return
    matmul = torch.backends.cuda.matmul
    matmul.allow_fp16_reduced_precision_reduction = False
    matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cudnn.allow_tf32 = False


def release(device: torch.device) -> None:
    """Give back what the allocator keeps between pages, where other programs live off the same
    memory (Apple). Elsewhere it stays, because the next page wants it again."""
    if device.type == "mps":
        torch.mps.synchronize()  # what the device still uses cannot be given back
        torch.mps.empty_cache()


# --- what people read ----------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceDescription:
    """A device as `deepseek-ocr devices` shows it.

    - `memory`: free and total bytes, None where it shares the system's
    - `dtype`, `why`: the type that "auto" takes and the reason; `types` all that it computes in
    - `attention`: of the decoder, for prompts
    """

    device: torch.device
    name: str
    memory: tuple[int, int] | None
    dtype: torch.dtype
    why: str
    types: tuple[str, ...]
    attention: str


def describe(device: torch.device) -> DeviceDescription:
    """What is known of a device that is here."""
    dtype, why = _native_dtype(device)
    return DeviceDescription(
        device, _name(device), memory.free_and_total(device), dtype, why, _types(device),
        prompt_attention(device, dtype)[0],
    )  # fmt: skip


def every() -> list[torch.device]:
    """All devices that are here, each by its number, in order of preference."""
    return [
        torch.device(kind, number) if kind in ("cuda", "npu") else torch.device(kind)
        for kind in available()
        for number in range(_count(kind))
    ]


def absent() -> dict[str, str]:
    """Kinds of device that are not here, and why."""
    reasons = {
        "cuda": nvidia.problem(),
        "npu": _npu_problem() or "",
        "mps": "torch sees no Apple GPU"
        if torch.backends.mps.is_built()
        else "this build of torch is not for a Mac",
    }
    present = available()
    return {kind: why for kind, why in reasons.items() if kind not in present}


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        lacking = ", for which this torch has no kernels" if nvidia.card_problem(device) else ""
        return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}{lacking}"
    if device.type == "npu":
        return str(npu().get_device_name(device.index or 0))
    if device.type == "mps":
        return "Apple GPU"
    return ", ".join(cpu.instructions()) or "no instructions beyond the basic ones"


def _types(device: torch.device) -> tuple[str, ...]:
    lacking = (device.type == "cuda" and not _is_ampere(device)) or (
        device.type == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0)
    )
    return ("float16", "float32") if lacking else ("bfloat16", "float16", "float32")
