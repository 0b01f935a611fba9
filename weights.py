"""The checkpoint of the container."""

from deepseek_ocr.weights.registry import *  # noqa: F403
