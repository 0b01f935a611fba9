"""What the choices of Cog's form mean."""

from __future__ import annotations

from deepseek_ocr import presets
from deepseek_ocr.settings import Attempt, DecodeSettings


def attempts_for(
    resolution_size: str, max_new_tokens: float, retries: float
) -> tuple[Attempt, ...]:
    """How to read a page, and how to try it again. Raises `SettingsError` for a number out of range
    and for no such choice. Cog lets a whole number through as it is in JSON, also as 1.0."""
    crop = presets.crop_for(resolution_size)
    decode = DecodeSettings(max_new_tokens=int(max_new_tokens))
    return presets.attempts(crop, decode, int(retries))
