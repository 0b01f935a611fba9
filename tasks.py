"""The choices of Cog's form, and what each is called in the package."""

from __future__ import annotations

from deepseek_ocr import presets
from deepseek_ocr.settings import Attempt, DecodeSettings

TASK_TYPES = {task.title: name for name, task in presets.TASKS.items()}
"""What `task_type` may be: markdown, ocr, figure, locate by their titles."""

RESOLUTION_SIZES = {preset.title: name for name, preset in presets.PRESETS.items()}
"""What `resolution_size` may be: gundam, tiny, small, base, large by their titles."""


def prompt_for(task_type: str, reference_text: str) -> str:
    """The prompt of a choice. Raises `SettingsError` for no such choice, and `PromptError` if
    locating lacks a proper reference."""
    return presets.prompt_for(TASK_TYPES.get(task_type, task_type), reference_text)


def attempts_for(
    resolution_size: str, max_new_tokens: float, retries: float
) -> tuple[Attempt, ...]:
    """How to read a page, and how to try it again. Raises `SettingsError` for a number out of range
    and for no such choice. Cog lets a whole number through as it is in JSON, also as 1.0."""
    crop = presets.crop_for(RESOLUTION_SIZES.get(resolution_size, resolution_size))
    decode = DecodeSettings(max_new_tokens=int(max_new_tokens))
    return presets.attempts(crop, decode, int(retries))
