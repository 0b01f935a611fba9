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
    "CancelledError",
    "CheckpointError",
    "Confidence",
    "Counts",
    "CropSettings",
    "DecodeSettings",
    "Delta",
    "DeviceError",
    "DocumentError",
    "EngineStatus",
    "Failure",
    "GenerationError",
    "Handle",
    "ImageError",
    "ImageLimits",
    "ImageTooLargeError",
    "InputError",
    "LoadOptions",
    "OcrEngine",
    "OcrError",
    "Page",
    "PromptError",
    "Reading",
    "Region",
    "SettingsError",
    "TextToken",
    "Timings",
    "Views",
]

_HOME_OF = {
    "CancelledError": "errors",
    "CheckpointError": "errors",
    "Confidence": "grounding.parser",
    "Counts": "engine.results",
    "CropSettings": "settings",
    "DecodeSettings": "settings",
    "Delta": "engine.results",
    "DeviceError": "errors",
    "DocumentError": "errors",
    "EngineStatus": "engine.scheduler",
    "Failure": "engine.results",
    "GenerationError": "errors",
    "Handle": "engine.request",
    "ImageError": "errors",
    "ImageLimits": "images.limits",
    "ImageTooLargeError": "errors",
    "InputError": "errors",
    "LoadOptions": "engine.load_options",
    "OcrEngine": "engine.ocr_engine",
    "OcrError": "errors",
    "Page": "engine.results",
    "PromptError": "errors",
    "Reading": "engine.results",
    "Region": "grounding.parser",
    "SettingsError": "errors",
    "TextToken": "engine.results",
    "Timings": "engine.results",
    "Views": "images.views",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
