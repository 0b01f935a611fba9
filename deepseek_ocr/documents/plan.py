"""How documents are read and written: what to ask of each page, and of each document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from deepseek_ocr.documents.inputs import PageSelection
from deepseek_ocr.formats.writing import WriteOptions
from deepseek_ocr.settings import Attempt, RenderSettings


@dataclass(frozen=True)
class Plan:
    """How documents are read and written. `about` says the rest for outputs and hashes, as JSON
    data: the model, its task and preset. `render` is for who has no `Renderer` of its own."""

    prompt: str
    attempts: tuple[Attempt, ...]
    formats: tuple[str, ...] = ("md",)
    pages: PageSelection = PageSelection()
    password: str | None = None
    options: WriteOptions = WriteOptions()
    overwrite: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    render: RenderSettings = RenderSettings()


def attempt_data(attempt: Attempt) -> dict[str, Any]:
    """How an attempt cuts and decodes, as JSON data."""
    decode = {**asdict(attempt.decode), "exempt_tokens": [*attempt.decode.exempt_tokens]}
    return {"crop": asdict(attempt.crop), "decode": decode}


def settings_data(plan: Plan, render: RenderSettings) -> dict[str, Any]:
    """Everything that decides what a page is read as, as JSON data."""
    return {
        **plan.about, "prompt": plan.prompt, **attempt_data(plan.attempts[0]),
        "retries": [attempt.name for attempt in plan.attempts[1:]],
        "dpi": render.dpi, "rotate": render.rotate, "max_pixels": render.max_pixels,
    }  # fmt: skip
