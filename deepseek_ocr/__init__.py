"""Read pages with DeepSeek-OCR.

Names are imported when first used, so that `from deepseek_ocr import CropSettings` does not
import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepseek_ocr.engine.load_options import LoadOptions
    from deepseek_ocr.engine.ocr_engine import OcrEngine
    from deepseek_ocr.engine.request import Handle
    from deepseek_ocr.engine.results import (
        Counts,
        Delta,
        Failure,
        Page,
        Reading,
        TextToken,
        Timings,
    )
    from deepseek_ocr.engine.scheduler import EngineStatus
    from deepseek_ocr.errors import (
        CancelledError,
        CheckpointError,
        DeviceError,
        DocumentError,
        GenerationError,
        ImageError,
        ImageTooLargeError,
        InputError,
        OcrError,
        PromptError,
        SettingsError,
    )
    from deepseek_ocr.grounding.parser import Confidence, Region
    from deepseek_ocr.images.limits import ImageLimits
    from deepseek_ocr.images.views import Views
    from deepseek_ocr.settings import CropSettings, DecodeSettings

__version__ = "0.1.0"

__all__ = [
    "CancelledError", "CheckpointError", "Confidence", "Counts", "CropSettings", "DecodeSettings",
    "Delta", "DeviceError", "DocumentError", "EngineStatus", "Failure", "GenerationError", "Handle",
    "ImageError", "ImageLimits", "ImageTooLargeError", "InputError", "LoadOptions", "OcrEngine",
    "OcrError", "Page", "PromptError", "Reading", "Region", "SettingsError", "TextToken", "Timings",
    "Views",
]  # fmt: skip

_HOMES = {
    "engine.load_options": ("LoadOptions",),
    "engine.ocr_engine": ("OcrEngine",),
    "engine.request": ("Handle",),
    "engine.results": ("Counts", "Delta", "Failure", "Page", "Reading", "TextToken", "Timings"),
    "engine.scheduler": ("EngineStatus",),
    "grounding.parser": ("Confidence", "Region"),
    "images.limits": ("ImageLimits",),
    "images.views": ("Views",),
    "settings": ("CropSettings", "DecodeSettings"),
}
"""Modules and what they give; everything else is an error and comes from `errors`."""

_HOME_OF = dict.fromkeys(__all__, "errors") | {
    name: module for module, names in _HOMES.items() for name in names
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
