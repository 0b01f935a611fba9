"""Warnings of the training programs."""

from __future__ import annotations

from deepseek_ocr import console


def warn(text: str) -> None:
    """Write `text` to standard error, as one line that is safe to print."""
    console.complain(console.one_line(text, most=1000), "deepseek-ocr")
