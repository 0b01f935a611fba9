"""What an evaluation is told, as one value. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr.configuration import Settings
from deepseek_ocr.settings import DecodeSettings


@dataclass(frozen=True)
class EvaluationOptions:
    """One evaluation: what is read (by the model in `settings`, or from `predictions`) and what it
    is compared with (`test_file` or `facts`). Tasks and size by long name."""

    output_dir: Path
    data_root: Path
    tasks: tuple[str, ...]
    size: str
    settings: Settings
    test_file: Path | None = None
    facts: Path | None = None
    predictions: Path | None = None
    adapter: Path | None = None
    limit: int | None = None
    max_tokens: int = DecodeSettings().max_new_tokens
