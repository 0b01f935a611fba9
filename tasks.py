"""What a user may ask for by name: four tasks and five presets, each in one table.

The keys are the names of the Cog predictor; short names are for the command line. Importing this
file does not import torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ocr.errors import PromptError, SettingsError
from deepseek_ocr.settings import CropSettings


@dataclass(frozen=True)
class Task:
    """A short name, what it gives, and its prompt; `{reference}` stands for what to locate."""

    short: str
    purpose: str
    prompt: str


TASKS: dict[str, Task] = {
    "Convert to Markdown": Task(
        "markdown",
        "layout, headings, tables and formulas as Markdown, each block with its box",
        "<image>\n<|grounding|>Convert the document to markdown.",
    ),
    "Free OCR": Task("ocr", "the plain text, without boxes", "<image>\nFree OCR."),
    "Parse Figure": Task(
        "figure", "the content of a chart, diagram or formula", "<image>\nParse the figure."
    ),
    "Locate Object by Reference": Task(
        "locate",
        "where on the page the thing named by the reference is",
        "<image>\nLocate <|ref|>{reference}<|/ref|> in the image.",
    ),
}

RESOLUTIONS: dict[str, CropSettings] = {
    "Gundam (Recommended)": CropSettings(base_size=1024, image_size=640, crop_mode=True),
    "Tiny": CropSettings(base_size=512, image_size=512, crop_mode=False),
    "Small": CropSettings(base_size=640, image_size=640, crop_mode=False),
    "Base": CropSettings(base_size=1024, image_size=1024, crop_mode=False),
    "Large": CropSettings(base_size=1280, image_size=1280, crop_mode=False),
}

DEFAULT_TASK = "Convert to Markdown"
DEFAULT_RESOLUTION = "Gundam (Recommended)"

TASK_SHORT_NAMES = {task.short: name for name, task in TASKS.items()}
RESOLUTION_SHORT_NAMES = {name.split()[0].lower(): name for name in RESOLUTIONS}

LONGEST_REFERENCE = 1000
"""Characters of a reference; more than a page says of one thing."""

_MARKUP = ("<|", "|>", "<｜", "｜>", "<image>", "<td>", "</td>", "<tr>", "</tr>")
"""What every special token of the model begins, ends with, or is."""


def task_name(name: str) -> str:
    """The key of `TASKS` that `name`, long or short, in any case, stands for.

    Raises `SettingsError` listing the short names.
    """
    return _lookup(name, "task", TASK_SHORT_NAMES)


def resolution_name(name: str) -> str:
    """The key of `RESOLUTIONS` that `name`, long or short, in any case, stands for.

    Raises `SettingsError` listing the short names.
    """
    return _lookup(name, "preset", RESOLUTION_SHORT_NAMES)


def crop_for(resolution: str) -> CropSettings:
    """Crop settings of the preset `resolution`, by long or short name."""
    return RESOLUTIONS[resolution_name(resolution)]


def prompt_for(task: str, reference: str = "") -> str:
    """The prompt of `task` (long or short name); only locating uses `reference`.

    Raises `PromptError` where locating lacks a reference or is given one with special tokens in
    it, which would speak to the model in the program's name; `SettingsError` for no such task.
    """
    prompt = TASKS[task_name(task)].prompt
    if "{reference}" not in prompt:
        return prompt
    reference = reference.strip()
    if not reference:
        raise PromptError(
            "Locating needs a reference: the words or the thing to find on the page, "
            'for example "the total amount".'
        )
    if len(reference) > LONGEST_REFERENCE:
        raise PromptError(
            f"The reference has {len(reference)} characters; {LONGEST_REFERENCE} are the most."
        )
    if found := [mark for mark in _MARKUP if mark in reference]:
        raise PromptError(
            f"The reference holds {found[0]!r}, which is part of the model's special tokens; "
            "name what to find in plain words."
        )
    return prompt.replace("{reference}", reference)


def _lookup(name: str, what: str, short_names: dict[str, str]) -> str:
    wanted = " ".join(name.split()).lower()
    for short, full in short_names.items():
        if wanted in (short, full.lower()):
            return full
    raise SettingsError(f"There is no {what} {name!r}; choose one of {', '.join(short_names)}.")
