"""What a user may ask for by name: four tasks and five presets, each in one table; and what is
tried when a page goes wrong.

The keys are the names of the Cog predictor; short names are for the command line. Importing this
file does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deepseek_ocr.errors import PromptError, SettingsError
from deepseek_ocr.settings import Attempt, CropSettings, DecodeSettings


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


@dataclass(frozen=True)
class Retry:
    """Another try at a page: its name, the outcomes that call for it, and what it changes.

    - `presets`: the page is cut by the first of them that is not how it was cut before
    - `decode`: fields of `DecodeSettings` and their values
    """

    name: str
    after: tuple[str, ...]
    presets: tuple[str, ...] = ()
    decode: Mapping[str, Any] = field(default_factory=dict)


RETRIES: tuple[Retry, ...] = (
    Retry(
        "closer guard",  # the numbers of the authors' vLLM recipe for PDFs; no help to empty pages
        ("loop", "length"),
        decode={"no_repeat_ngram_size": 20, "no_repeat_window": 50, "exempt_ngrams": False},
    ),
    Retry("another preset", ("loop", "length", "empty"), presets=("Base", "Large")),
    Retry(
        "light sampling",
        ("loop", "length", "empty"),
        decode={"temperature": 0.2, "top_p": 0.95, "seed": 1},
    ),
)
"""What is tried in turn with a page that loops, hits the length limit or comes out empty; each
changes the settings the user chose, not those of the try before."""

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


def attempts(
    crop: CropSettings, decode: DecodeSettings, retries: int = len(RETRIES)
) -> tuple[Attempt, ...]:
    """How to read a page: as asked, then by the first `retries` of `RETRIES`.

    Raises `SettingsError` where there are not as many.
    """
    if not 0 <= retries <= len(RETRIES):
        raise SettingsError(f"retries must lie between 0 and {len(RETRIES)}.")
    ladder = [Attempt("as asked", crop, decode)]
    for retry in RETRIES[:retries]:
        others = [RESOLUTIONS[preset] for preset in retry.presets if RESOLUTIONS[preset] != crop]
        cut = others[0] if others else crop
        ladder.append(Attempt(retry.name, cut, replace(decode, **retry.decode), retry.after))
    return tuple(ladder)


def _lookup(name: str, what: str, short_names: dict[str, str]) -> str:
    wanted = " ".join(name.split()).lower()
    for short, full in short_names.items():
        if wanted in (short, full.lower()):
            return full
    raise SettingsError(f"There is no {what} {name!r}; choose one of {', '.join(short_names)}.")
