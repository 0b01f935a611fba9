"""The Cog names of tasks and resolutions."""

from deepseek_ocr.presets import *  # noqa: F403
