"""`ocr.py --devices`: what is here, what would be chosen and why, and what fits."""

from __future__ import annotations

from pathlib import Path

import torch

from deepseek_ocr import presets
from deepseek_ocr.cli.console import ALL_READ, complain, write
from deepseek_ocr.cli.read_arguments import Job
from deepseek_ocr.devices import cpu, memory, selection
from deepseek_ocr.devices.selection import DeviceDescription
from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.kernels import choice
from deepseek_ocr.model import footprint
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.footprint import Footprint, MemoryLoad, in_gb
from deepseek_ocr.weights import registry

PRESETS = {
    short: presets.RESOLUTIONS[name] for short, name in presets.RESOLUTION_SHORT_NAMES.items()
}


def show(job: Job) -> int:
    """Print it; the exit status. Raises `DeviceError` where the device asked for is not here."""
    for device in selection.every():
        write(_described(selection.describe(device)))
    for kind, why in selection.absent().items():
        write(f"{kind}: not here; {why}\n")
    write(_chosen(job))
    try:
        folder = registry.ensure(job.settings.model, Path(job.settings.checkpoints), fetch=False)
        write(_fitting(job, Footprint(read_config(folder))))
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


def _chosen(job: Job) -> str:
    settings = job.settings
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


def _fitting(job: Job, sizes: Footprint) -> str:
    """What each preset takes at the settings of this run, and whether it fits."""
    device = selection.choose_device(job.settings.device)
    free = memory.free_bytes(device)
    load = load_of(job, device)
    lines = [f"memory on {device} by preset, at most ({_name(load.dtype)}, {load.quant}):"]
    for name, crop in PRESETS.items():
        estimate = sizes.estimate(crop, load)
        total = estimate.total
        verdict = "" if free is None else "  fits" if total <= free else "  does not fit now"
        lines.append(f"  {name:8}{in_gb(total):>9}{verdict}")
    lines.append(f"  and {in_gb(estimate.cache // load.slots)} for each further page "
                 "at once (--slots)")  # fmt: skip
    return "\n".join(lines) + "\n"


def load_of(job: Job, device: torch.device) -> MemoryLoad:
    """What the job's settings put on `device`."""
    settings = job.settings
    return footprint.load_for(
        device, settings.dtype, settings.quant, settings.slots, settings.vision_device or None
    )


def warn_of_too_little(job: Job, folder: Path, name: str) -> None:
    """Tell, before it is loaded, where the job's preset may not fit into what is free, and what
    would. The estimate is the most it can take, so it is tried all the same."""
    device = selection.choose_device(name)
    known = memory.free_and_total(device)
    if known is None:
        return
    sizes = Footprint(read_config(folder))
    told = footprint.too_little(sizes, job.crop, load_of(job, device), PRESETS, known[0])
    if told:
        complain(f"{device} may run out of memory. {told}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
