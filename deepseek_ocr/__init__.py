"""Read pages with DeepSeek-OCR.

Names are imported when first used, so that `from deepseek_ocr import CropSettings` does not
import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepseek_ocr.engine import (
        Counts,
        Delta,
        Failure,
        OcrEngine,
        Page,
        Reading,
        TextToken,
        Timings,
    )
    from deepseek_ocr.errors import (
        CheckpointError,
        DeviceError,
        GenerationError,
        ImageError,
        ImageTooLargeError,
        InputError,
        OcrError,
        PromptError,
        SettingsError,
    )
    from deepseek_ocr.grounding import Confidence, Region
    from deepseek_ocr.images import ImageLimits, Views
    from deepseek_ocr.settings import CropSettings, DecodeSettings

__version__ = "0.1.0"

_HOMES = {
    "engine": (
        "Counts", "Delta", "Failure", "OcrEngine", "Page", "Reading", "TextToken", "Timings",
    ),
    "errors": (
        "CheckpointError", "DeviceError", "GenerationError", "ImageError", "ImageTooLargeError",
        "InputError", "OcrError", "PromptError", "SettingsError",
    ),
    "grounding": ("Confidence", "Region"),
    "images": ("ImageLimits", "Views"),
    "settings": ("CropSettings", "DecodeSettings"),
}  # fmt: skip

_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: PLE0604 - the names of the table above, spelt out once
    *sorted(_HOME_OF),
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
