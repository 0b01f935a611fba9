"""What a user may ask for, by name or title in any case (outputs hold titles): four tasks and five
presets, each in one table; and what is tried when a page goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deepseek_ocr.errors import PromptError, SettingsError
from deepseek_ocr.settings import VIEW_SIDES, Attempt, CropSettings, DecodeSettings


@dataclass(frozen=True)
class Task:
    """A task's title, what it gives, and its prompt; `{reference}` stands for what to locate."""

    title: str
    purpose: str
    prompt: str


TASKS: dict[str, Task] = {
    "markdown": Task(
        "Convert to Markdown",
        "layout, headings, tables and formulas as Markdown, each block with its box",
        "<image>\n<|grounding|>Convert the document to markdown.",
    ),
    "ocr": Task("Free OCR", "the plain text, without boxes", "<image>\nFree OCR."),
    "figure": Task(
        "Parse Figure", "the content of a chart, diagram or formula", "<image>\nParse the figure."
    ),
    "locate": Task(
        "Locate Object by Reference",
        "where on the page the thing named by the reference is",
        "<image>\nLocate <|ref|>{reference}<|/ref|> in the image.",
    ),
}


@dataclass(frozen=True)
class Preset:
    """A preset's title, and how it cuts a page."""

    title: str
    crop: CropSettings


PRESETS: dict[str, Preset] = {
    "gundam": Preset("Gundam (Recommended)", CropSettings(1024, 640, crop_mode=True)),
} | {
    title.lower(): Preset(title, CropSettings(side, side, crop_mode=False))
    for title, side in VIEW_SIDES.items()
}

DEFAULT_TASK, DEFAULT_PRESET = "markdown", "gundam"


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
    Retry("another preset", ("loop", "length", "empty"), presets=("base", "large")),
    Retry(
        "light sampling",
        ("loop", "length", "empty"),
        decode={"temperature": 0.2, "top_p": 0.95, "seed": 1},
    ),
)
"""What is tried in turn with a page that loops, hits the length limit or comes out empty; each
changes the settings the user chose, not those of the try before."""

LONGEST_REFERENCE = 1000
"""Characters of a reference; more than a page says of one thing."""

_MARKUP = ("<|", "|>", "<｜", "｜>", "<image>", "<td>", "</td>", "<tr>", "</tr>")
"""What every special token of the model begins, ends with, or is."""


def task_name(word: str) -> str:
    """The key of `TASKS` that `word`, a name or a title in any case, stands for. Raises
    `SettingsError` listing the names."""
    return _lookup(word, "task", TASKS)


def task_title(word: str) -> str:
    """The title of the task that `word` stands for, as `task_name`."""
    return TASKS[task_name(word)].title


def preset_title(word: str) -> str:
    """The title of the preset that `word` stands for. Raises `SettingsError` listing the names."""
    return PRESETS[_lookup(word, "preset", PRESETS)].title


def crop_for(preset: str) -> CropSettings:
    """How `preset` (name or title) cuts a page. Raises `SettingsError` for no such preset."""
    return PRESETS[_lookup(preset, "preset", PRESETS)].crop


def prompt_for(task: str, reference: str = "") -> str:
    """The prompt of `task` (name or title); only locating uses `reference`. Raises `PromptError` if
    locating lacks a reference or is given one with special tokens in it, which would speak to the
    model in the program's name; `SettingsError` for no such task."""
    prompt = TASKS[task_name(task)].prompt
    if "{reference}" not in prompt:
        return prompt
    reference = reference.strip()
    if not reference:
        what = "the words or the thing to find on the page"
        raise PromptError(f'Locating needs a reference: {what}, for example "the total amount".')
    if len(reference) > LONGEST_REFERENCE:
        reason = f"The reference has {len(reference)} characters; {LONGEST_REFERENCE} are the most."
        raise PromptError(reason)
    if found := [mark for mark in _MARKUP if mark in reference]:
        what = f"The reference holds {found[0]!r}, which is part of the model's special tokens"
        raise PromptError(f"{what}; name what to find in plain words.")
    return prompt.replace("{reference}", reference)


def attempts(
    crop: CropSettings, decode: DecodeSettings, retries: int = len(RETRIES)
) -> tuple[Attempt, ...]:
    """How to read a page: as asked, then by the first `retries` of `RETRIES`. Raises
    `SettingsError` if there are not as many."""
    if not 0 <= retries <= len(RETRIES):
        raise SettingsError(f"retries must lie between 0 and {len(RETRIES)}.")
    ladder = [Attempt("as asked", crop, decode)]
    for retry in RETRIES[:retries]:
        others = (PRESETS[name].crop for name in retry.presets)
        cut = next((other for other in others if other != crop), crop)
        ladder.append(Attempt(retry.name, cut, replace(decode, **retry.decode), retry.after))
    return tuple(ladder)


def _lookup(word: str, what: str, table: Mapping[str, Task | Preset]) -> str:
    wanted = " ".join(word.split()).lower()
    for name, entry in table.items():
        if wanted in (name, entry.title.lower()):
            return name
    raise SettingsError(f"There is no {what} {word!r}; choose one of {', '.join(table)}.")
