"""What devices are here, what would be chosen and why, and whether pages fit. Imports torch."""

from __future__ import annotations

from pathlib import Path

import torch

from deepseek_ocr import presets
from deepseek_ocr.cli.terminal import DONE, complain, write
from deepseek_ocr.configuration import Settings
from deepseek_ocr.devices import cpu, memory, selection
from deepseek_ocr.devices.selection import DeviceDescription
from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.kernels import choice
from deepseek_ocr.model import footprint
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.footprint import Footprint, MemoryLoad, in_gb
from deepseek_ocr.settings import CropSettings

_PRESETS = {name: preset.crop for name, preset in presets.PRESETS.items()}


def show(settings: Settings) -> int:
    """Print it; the exit status. Raises `DeviceError` if the device asked for is not here."""
    for device in selection.every():
        write(_described(selection.describe(device)))
    for kind, why in selection.absent().items():
        write(f"{kind}: not here; {why}\n")
    write(_chosen(settings))
    try:
        write(_fitting(settings, Footprint(read_config(settings.checkpoint_folder()))))
    except CheckpointError as error:
        write(f"memory by preset: not known before the model is here ({error})\n")
    return DONE


def _described(found: DeviceDescription) -> str:
    room = ""
    if found.memory:
        free, total = found.memory
        room = f", {in_gb(free)} of {in_gb(total)} free"
    lines = [
        f"{found.device}: {found.name}{room}",
        f"  types: {', '.join(found.types)}; auto takes {_name(found.dtype)}: {found.why}",
    ]
    if found.device.type == "cpu":
        lines.append(f"  threads: {cpu.threads()} (DEEPSEEK_OCR_THREADS changes it)")
    else:
        lines.append(f"  decoder attention: {found.attention}")
    return "\n".join(lines) + "\n"


def _chosen(settings: Settings) -> str:
    device = selection.choose_device(settings.device)
    dtype = selection.choose_dtype(settings.dtype, device)
    how = "as the settings say"
    if settings.device.strip().lower() == "auto":
        how = f"the first of {', '.join(selection.PREFERENCE)} that is here"
    paths = choice.parse(settings.kernels)
    named = choice.NAMES | choice.ON_REQUEST
    lines = [f"chosen: {device} ({how}) in {_name(dtype)}, quant {settings.quant}"]
    if settings.vision_device:
        vision = selection.choose_device(settings.vision_device)
        kind = selection.vision_dtype(dtype, vision, device)
        lines.append(f"  encoders: {vision} in {_name(kind)}")
    lines += [f"  fast path {name}: {named[name]}" for name in named if name in paths]
    return "\n".join(lines) + "\n"


def _fitting(settings: Settings, sizes: Footprint) -> str:
    """What each preset takes with `settings`, and whether it fits."""
    device = selection.choose_device(settings.device)
    free = memory.free_bytes(device)
    load = _load_of(settings, device)
    lines = [f"memory on {device} by preset, at most ({_name(load.dtype)}, {load.quant}):"]
    for name, crop in _PRESETS.items():
        estimate = sizes.estimate(crop, load)
        total = estimate.total
        verdict = "" if free is None else "  fits" if total <= free else "  does not fit now"
        lines.append(f"  {name:8}{in_gb(total):>9}{verdict}")
    lines.append(f"  and {in_gb(estimate.cache // load.slots)} for each further page "
                 "at once (--slots)")  # fmt: skip
    return "\n".join(lines) + "\n"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _load_of(settings: Settings, device: torch.device) -> MemoryLoad:
    """What `settings` put on `device`."""
    return footprint.load_for(
        device, settings.dtype, settings.quant, settings.slots, settings.vision_device or None
    )


def memory_advice(settings: Settings, crop: CropSettings, folder: Path, free: int) -> str | None:
    """What to do if pages cut by `crop` may need more than the `free` bytes of the device of
    `settings`; None if they fit. `folder` is the checkpoint's.

    The estimate is the most that they can take, so trying is allowed. Raises `CheckpointError` and
    `DeviceError`.
    """
    load = _load_of(settings, selection.choose_device(settings.device))
    return footprint.too_little(Footprint(read_config(folder)), crop, load, _PRESETS, free)


def warn_of_too_little(settings: Settings, crop: CropSettings, folder: Path) -> None:
    """Say, before the model is loaded, that it may not fit into the memory of an accelerator."""
    device = selection.choose_device(settings.device)
    known = memory.free_and_total(device)
    if known and (advice := memory_advice(settings, crop, folder, known[0])):
        complain(f"{device} may run out of memory. {advice}")
