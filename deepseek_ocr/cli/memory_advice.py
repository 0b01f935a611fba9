"""Whether pages fit into the memory of a device, and what would. Imports torch."""

from __future__ import annotations

from pathlib import Path

import torch

from deepseek_ocr import presets
from deepseek_ocr.cli.terminal import complain
from deepseek_ocr.configuration import Settings
from deepseek_ocr.devices import memory, selection
from deepseek_ocr.model import footprint
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.footprint import Footprint, MemoryLoad
from deepseek_ocr.settings import CropSettings

PRESETS = {name: preset.crop for name, preset in presets.PRESETS.items()}


def load_of(settings: Settings, device: torch.device) -> MemoryLoad:
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
    load = load_of(settings, selection.choose_device(settings.device))
    return footprint.too_little(Footprint(read_config(folder)), crop, load, PRESETS, free)


def warn_of_too_little(settings: Settings, crop: CropSettings, folder: Path) -> None:
    """Say, before the model is loaded, that it may not fit into the memory of an accelerator."""
    device = selection.choose_device(settings.device)
    known = memory.free_and_total(device)
    if known and (advice := memory_advice(settings, crop, folder, known[0])):
        complain(f"{device} may run out of memory. {advice}")
