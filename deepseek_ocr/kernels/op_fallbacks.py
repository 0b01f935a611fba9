"""What a device cannot do: asked once at load, and watched while a first page goes through.

Two questions are asked. `lacking` tries the few operators for which this project has something to
put in their place, and compares their results with the CPU's. `watch` notices every operator of the
path that the device's plugin would hand to the CPU behind our back (copying both ways each time):
an error where that is wanted, a counted warning else.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations import moe

from deepseek_ocr.decoding.decoder import PlainDecoder
from deepseek_ocr.devices import memory
from deepseek_ocr.errors import DeviceError
from deepseek_ocr.images.views import Views
from deepseek_ocr.kernels import convolutions
from deepseek_ocr.model import network as model

# --- asked once ----------------------------------------------------------------------------------


def _convolution(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A stride-2 convolution of the kind the network has: `[1, 4, 8, 8]` to `[1, 8, 4, 4]`."""
    pixels = torch.linspace(-1, 1, 256).view(1, 4, 8, 8).to(device, dtype)
    weight = torch.linspace(1, -1, 288).view(8, 4, 3, 3).to(device, dtype)
    return functional.conv2d(pixels, weight, stride=2, padding=1)


def _grouped_product(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """The library's product of sorted rows with one matrix a group, and the count before it."""
    ids = torch.tensor([0, 0, 1, 1], device=device)
    ids = ids.float() if device.type in ("cpu", "mps") else ids.int()
    counts = torch.histc(ids, bins=2, min=0, max=1)
    offsets = counts.cumsum(0, dtype=torch.int32)
    rows = torch.linspace(-1, 1, 64).view(4, 16).to(device, dtype)
    weights = torch.linspace(1, -1, 512).view(2, 16, 16).to(device, dtype)
    product: torch.Tensor = moe._grouped_mm(rows, weights, offsets)
    return product


Trial = Callable[[torch.device, torch.dtype], torch.Tensor]

_TRIALS: dict[str, Trial] = {
    "convolution": _convolution,
    "grouped product": _grouped_product,
}
"""Operators that have a stand-in here."""


def lacking(device: torch.device, dtype: torch.dtype) -> frozenset[str]:
    """Names among `_TRIALS` of what the device refuses, or computes wrongly, in `dtype`.

    The CPU has them all and is not asked. A card may lack one: on Hopper the grouped product of
    torch 2.8 takes bfloat16 alone. Raises what a device without memory raises.
    """
    if device.type == "cpu":
        return frozenset()
    return frozenset(name for name, trial in _TRIALS.items() if not _works(trial, device, dtype))


def _works(trial: Trial, device: torch.device, dtype: torch.dtype) -> bool:
    expected = trial(torch.device("cpu"), torch.float32)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=f".*{_FALLS_BACK}")
            got = trial(device, dtype).cpu().float()  # waits for the device, where errors come late
    except (RuntimeError, UserWarning) as error:  # NotImplementedError is a RuntimeError
        if memory.is_out_of_memory(error):
            raise
        return False
    return bool(torch.allclose(got, expected, rtol=0.02, atol=0.05))


# --- watched while a page goes through -----------------------------------------------------------

_FALLS_BACK = "fall back to run on the CPU"
"""Words of the warning that torch (MPS) and torch-npu give when they do it."""

_DISPATCH_KEYS = {"npu": "PrivateUse1", "mps": "MPS"}


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts calls of operators that have no kernel for the device, as torch's own table of
    kernels says; with `strict` the first of them is a `DeviceError`."""

    def __init__(self, device: torch.device, strict: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.handed_over: Counter[str] = Counter()
        self._device, self._strict = device, strict
        self._falls: dict[str, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name not in self._falls:
            self._falls[name] = falls_back(name, self._device.type)
        if self._falls[name]:
            self.handed_over[name] += 1
            if self._strict:
                raise DeviceError(
                    f"Operator {name} has no kernel on {self._device} and would run on the CPU, "
                    "which strict mode forbids; update the device's software, or leave strict mode "
                    "(DEEPSEEK_OCR_STRICT=no)."
                )
        elif "[math kernel]" in _entry(name, self._device.type):  # made of others: look at those
            with self:
                parts = func.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        return func(*args, **(kwargs or {}))


def falls_back(operator: str, kind: str) -> bool:
    """Whether a device of this kind ("npu", "mps") has nothing but torch's general fallback for
    `operator` ("aten::histc"); False for other kinds, which have no such fallback."""
    entry = _entry(operator, kind)
    if "NonFunctional" in entry:  # torch's own: makes room for the result, then calls this one
        entry = _entry(f"{operator.split('.', maxsplit=1)[0]}.out", kind) or entry
    return "[backend fallback]" in entry


def _entry(operator: str, kind: str) -> str:
    """The line of torch's table of kernels for this operator and kind of device; may be empty."""
    key = _DISPATCH_KEYS.get(kind)
    if key is None:
        return ""
    try:
        table: str = torch._C._dispatch_dump_table(operator)
    except RuntimeError:  # there is no operator of this name
        return ""
    return next((line for line in table.splitlines() if line.startswith(f"{key}:")), "")


@contextmanager
def watch(device: torch.device, strict: bool) -> Iterator[Counter[str]]:
    """Notice operators that would run on the CPU although they were given to `device`; their names
    and calls are in the counter, and told in one warning at the end.

    With `strict` the first one raises `DeviceError`. What a kernel of torch calls inside itself is
    not seen here (torch-npu prints such cases on standard error). It slows every operator down, so
    use it for a first page, not for all.
    """
    mode = _Watch(device, strict)
    with mode:
        yield mode.handed_over
    if mode.handed_over:
        told = ", ".join(f"{name} ({count})" for name, count in mode.handed_over.most_common())
        warnings.warn(
            f"{sum(mode.handed_over.values())} calls of {len(mode.handed_over)} operators ran on "
            f"the CPU in place of {device}, which is slow: {told}.",
            RuntimeWarning,
            stacklevel=3,
        )


# --- at load -------------------------------------------------------------------------------------


def fit(network: model.Network, unfold: bool = False) -> frozenset[str]:
    """Put stand-ins where the network's devices lack an operator, and for convolutions also with
    `unfold`; names of what was replaced."""
    vision = network.model.vision_tower.sam_encoder.patch_embed.projection.weight
    text = network.get_input_embeddings().weight
    replaced = set()
    if unfold or "convolution" in lacking(vision.device, vision.dtype):
        convolutions.replace(network)
        replaced.add("convolution")
    if "grouped product" in lacking(text.device, text.dtype):
        network.set_experts_implementation("eager")  # a loop over the experts that are used
        replaced.add("grouped product")
    return frozenset(replaced)


def rehearse(network: model.Network, strict: bool) -> Counter[str]:
    """Send a small empty page with two tiles through the whole network, watched; what ran on the
    CPU although it was given to the device. Raises `DeviceError` with `strict` at the first such
    operator. Does nothing on the CPU and CUDA, which hand nothing over."""
    device: torch.device = network.get_input_embeddings().weight.device
    if device.type not in _DISPATCH_KEYS:
        return Counter()
    views = Views(torch.zeros(3, 512, 512), torch.zeros(2, 3, 640, 640), (2, 1))
    with watch(device, strict) as handed_over:
        rows = model.vision_tokens(network, views)
        ids = [0, *[network.config.image_token_id] * len(rows)]
        decoder = PlainDecoder(network)
        decoder.prefill(0, model.embed(network, ids, rows, 1))
        decoder.step([0], [0])
    return handed_over
