"""What a client may say of a document beside the file: fields of a form or of JSON → a plan.

The names are those of the command line's flags and of the chat routes' extra fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from deepseek_ocr import configuration, presets, settings
from deepseek_ocr.documents.inputs import PageSelection, parse_pages
from deepseek_ocr.documents.plan import Plan
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.files import NOT_TEXT
from deepseek_ocr.formats import find_format
from deepseek_ocr.formats.writing import WriteOptions
from deepseek_ocr.weights.catalog import Checkpoint

DECODE = {
    field.name: type(field.default)
    for field in fields(settings.DecodeSettings)
    if field.name != "exempt_tokens"
}
"""Guard and sampling settings, by the name of their field."""

KNOWN = (
    "model", "task", "resolution", "reference", "prompt", "pages", "dpi", "rotate", "password",
    "retries", "join_tables", "existing_text", "formulas", "output_format", "stream", *DECODE,
)  # fmt: skip
"""Every field there is."""

LONGEST_FIELD = 20_000
"""Characters of a field."""


def as_fields(data: Mapping[str, Any]) -> dict[str, str]:
    """Fields of a form or of JSON as text. Raises `SettingsError` for an unknown one."""
    found = {}
    for name, value in data.items():
        if name not in KNOWN:
            raise SettingsError(f"There is no field {name[:60]!r}; use {', '.join(KNOWN)}.")
        if value is None or value == "":
            continue
        if not isinstance(value, (str, int, float)):
            raise SettingsError(f"{name} must be text, a number, true or false.")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if len(text) > LONGEST_FIELD or NOT_TEXT.search(text):
            raise SettingsError(f"{name} is too long, or holds characters that are not text.")
        found[name] = text
    return found


def with_defaults(given: Mapping[str, str], known: Checkpoint) -> dict[str, str]:
    """The fields `given`, and the task and the preset that the model, which is `known`, is best at
    if they name none: what is kept with a document, so that nothing else decides later."""
    task = {} if "prompt" in given else {"task": presets.task_title(known.task)}
    return {**task, "resolution": presets.preset_title(known.preset), **given}


def document_plan(given: Mapping[str, str], server: configuration.ServerSettings) -> Plan:
    """The plan that the fields `given` ask for, within the bounds of `server`. Raises
    `SettingsError` and `PromptError`."""
    task = None
    if "prompt" not in given:
        task = presets.task_title(given.get("task", presets.DEFAULT_TASK))
    resolution = presets.preset_title(given.get("resolution", presets.DEFAULT_PRESET))
    rotate = given.get("rotate", "auto")
    prompt = _prompt(given, task)
    decode = _decode(given, server.page_timeout)
    retries = _whole(given, "retries", len(presets.RETRIES))
    options = WriteOptions(
        join_tables=flag(given, "join_tables", True),
        existing_text=_word(given, "existing_text", settings.ExistingText),
        formulas=_word(given, "formulas", settings.FormulaDelimiters),
    )
    return Plan(
        prompt=prompt, formats=(output_format(given),), options=options,
        attempts=presets.attempts(presets.crop_for(resolution), decode, retries),
        pages=parse_pages(given["pages"]) if "pages" in given else PageSelection(),
        password=given.get("password"),
        about={"model": given.get("model", ""), "task": task, "resolution": resolution},
        render=settings.RenderSettings(
            dpi=_whole(given, "dpi", settings.RenderSettings.dpi),
            rotate=None if rotate == "auto" else _whole(given, "rotate"),
            max_pixels=min(settings.RenderSettings.max_pixels, server.max_pixels),
            max_picture_pixels=server.max_pixels,
        ),
    )  # fmt: skip


def output_format(given: Mapping[str, str]) -> str:
    """What the document is to be written as. Raises `SettingsError`."""
    name = given.get("output_format", "json")
    name = {"markdown": "md", "text": "txt"}.get(name, name)  # as the chat routes call them
    return find_format(name).name


def flag(given: Mapping[str, str], name: str, default: bool = False) -> bool:
    """A field that is true or false. Raises `SettingsError`."""
    return settings.parse_switch(name, given.get(name, str(default)))


def _prompt(given: Mapping[str, str], task: str | None) -> str:
    if task is not None:
        if "reference" in given and presets.task_name(task) != "locate":
            raise SettingsError("reference is only used with the task locate.")
        return presets.prompt_for(task, given.get("reference", ""))
    for name in ("task", "reference"):
        if name in given:
            raise SettingsError(f"prompt replaces {name}; give one of them.")
    if not given["prompt"].strip():
        raise SettingsError("prompt is empty; say what the model should do.")
    if given["prompt"].count("<image>") > 1:
        raise SettingsError("prompt may hold <image> once; each page is read by itself.")
    return given["prompt"]


def _decode(given: Mapping[str, str], timeout: float) -> settings.DecodeSettings:
    parse: dict[type, Callable[..., Any]] = {bool: flag, int: _whole, float: _number}
    values = {name: parse[kind](given, name) for name, kind in DECODE.items() if name in given}
    decode = settings.DecodeSettings(**values)
    return replace(decode, timeout=min(decode.timeout or timeout, timeout))


def _word(given: Mapping[str, str], name: str, kind: Any) -> Any:
    return settings.one_of(kind, name, given.get(name, getattr(WriteOptions, name)))


def _whole(given: Mapping[str, str], name: str, default: int = 0) -> int:
    text = given.get(name, str(default)).strip()
    if not (text.removeprefix("-").isdecimal() and len(text) < 20):
        raise SettingsError(f"{name} must be a whole number, not {text[:60]!r}.")
    return int(text)


def _number(given: Mapping[str, str], name: str) -> float:
    try:
        value = float(given[name])
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise SettingsError(f"{name} must be a number, not {given[name][:60]!r}.")
    return value
