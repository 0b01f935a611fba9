"""What devices are here, what would be chosen and why, and what fits. Imports torch."""

from __future__ import annotations

import torch

from deepseek_ocr.cli.loading import checkpoint_folder
from deepseek_ocr.cli.memory_advice import PRESETS, load_of
from deepseek_ocr.cli.terminal import ALL_READ, write
from deepseek_ocr.configuration import Settings
from deepseek_ocr.devices import cpu, memory, selection
from deepseek_ocr.devices.selection import DeviceDescription
from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.kernels import choice
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.footprint import Footprint, in_gb


def show(settings: Settings) -> int:
    """Print it; the exit status. Raises `DeviceError` if the device asked for is not here."""
    for device in selection.every():
        write(_described(selection.describe(device)))
    for kind, why in selection.absent().items():
        write(f"{kind}: not here; {why}\n")
    write(_chosen(settings))
    try:
        write(_fitting(settings, Footprint(read_config(checkpoint_folder(settings)))))
    except CheckpointError as error:
        write(f"memory by preset: not known before the model is here ({error})\n")
    return ALL_READ


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
    how = (
        f"the first of {', '.join(selection.PREFERENCE)} that is here"
        if settings.device.strip().lower() == "auto"
        else "as the settings say"
    )
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
    load = load_of(settings, device)
    lines = [f"memory on {device} by preset, at most ({_name(load.dtype)}, {load.quant}):"]
    for name, crop in PRESETS.items():
        estimate = sizes.estimate(crop, load)
        total = estimate.total
        verdict = "" if free is None else "  fits" if total <= free else "  does not fit now"
        lines.append(f"  {name:8}{in_gb(total):>9}{verdict}")
    lines.append(f"  and {in_gb(estimate.cache // load.slots)} for each further page "
                 "at once (--slots)")  # fmt: skip
    return "\n".join(lines) + "\n"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
