"""Annotations of pages, read strictly by the schema in `deepseek_ocr/training/README.md`.

Types, ranges and sizes are checked, the model's special tokens are refused inside texts, and no
path leaves the data folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from deepseek_ocr import presets
from deepseek_ocr.errors import InputError
from deepseek_ocr.files import NOT_TEXT
from deepseek_ocr.grounding.parser import SCALE, Box

LONGEST_TEXT = 400_000
"""Characters of one text; the model's context of 8,192 tokens holds a tenth of that."""

LONGEST_LABEL = 100
MOST_REGIONS = 5_000
MOST_BOXES = 1_000
LARGEST_ANNOTATION = 16 * 2**20
"""Bytes of one annotation file."""

KEYS = ("text", "markdown", "regions", "reference", "figure")
"""What an annotation may hold; other keys are told and ignored."""

_SPECIAL = re.compile(r"<[|｜][^<>\n]{1,60}?[|｜]>|<image>")
"""Special tokens of the model that no page text may hold. Table tags are tokens too, but text."""


class AnnotationError(InputError):
    """An annotation that does not follow the schema."""


@dataclass(frozen=True)
class LabelledRegion:
    """One block of the page: label, boxes in 0–999 of the page, text as Markdown (may be empty)."""

    label: str
    boxes: tuple[Box, ...]
    text: str = ""


@dataclass(frozen=True)
class Reference:
    """Something that can be located: what it is called, and where it is (0–999 of the page)."""

    text: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Annotation:
    """What is known of one page; None or empty if nothing is.

    - `text`: plain text; `markdown`: Markdown without tags; `figure`: content of a figure
    - `regions`: in reading order; `reference`: what can be located
    """

    text: str | None = None
    markdown: str | None = None
    regions: tuple[LabelledRegion, ...] = ()
    reference: tuple[Reference, ...] = ()
    figure: str | None = None


def parse_annotation(raw: object) -> Annotation:
    """The annotation in parsed JSON `raw`. Raises `AnnotationError` saying what is wrong where."""
    values = object_in(raw, "the annotation")
    annotation = Annotation(
        text=_optional_text(values, "text"),
        markdown=_optional_text(values, "markdown"),
        regions=tuple(
            _region(value, f"regions[{at}]")
            for at, value in enumerate(_list(values.get("regions", []), "regions"))
        ),
        reference=_references(values.get("reference")),
        figure=_optional_text(values, "figure"),
    )
    if annotation == Annotation():
        raise AnnotationError(f"the annotation has none of {', '.join(KEYS)}; give at least one.")
    return annotation


def unknown_keys(raw: object) -> tuple[str, ...]:
    """Keys of the object `raw` that the schema does not know, sorted."""
    return tuple(sorted(set(raw) - {*KEYS, "image"})) if isinstance(raw, dict) else ()


def describe_unknown(counts: Mapping[str, int]) -> str:
    """One sentence on unknown keys and how often each was seen."""
    listed = ", ".join(f"{key!r} ({count})" for key, count in sorted(counts.items())[:20])
    return f"Keys nobody knows were ignored: {listed}; the schema has {', '.join(KEYS)}."


def annotation_to_json(annotation: Annotation) -> dict[str, Any]:
    """The object that `parse_annotation` reads back; what is not known is left out."""
    values = vars(annotation) | {
        "regions": [
            {"label": one.label, **_boxes_to_json(one.boxes), "text": one.text}
            for one in annotation.regions
        ],
        "reference": [
            {"text": one.text, **_boxes_to_json(one.boxes)} for one in annotation.reference
        ],
    }
    return {key: value for key, value in values.items() if value}


def image_path(value: object) -> PurePosixPath:
    """`value` as a path that stays below the data folder. Raises `AnnotationError`."""
    text = _text(value, "image", longest=1_000)
    path = PurePosixPath(text)
    outside = path.is_absolute() or ".." in path.parts or PureWindowsPath(text).drive
    if outside or not path.name:
        raise AnnotationError(f"the path {text!r} does not lead to a file below the data folder.")
    return path


def object_in(raw: object, where: str) -> dict[str, Any]:
    """`raw` as a JSON object. Raises `AnnotationError` naming `where` if it is none."""
    if not isinstance(raw, dict):
        raise AnnotationError(f"{where} must be an object, not {_kind(raw)}.")
    return raw


def _list(raw: object, where: str, most: int = MOST_REGIONS) -> list[Any]:
    if not isinstance(raw, list):
        raise AnnotationError(f"{where} must be a list, not {_kind(raw)}.")
    if len(raw) > most:
        raise AnnotationError(f"{where} has {len(raw)} entries; {most} are the most.")
    return raw


def _text(raw: object, where: str, longest: int = LONGEST_TEXT, empty: bool = False) -> str:
    if not isinstance(raw, str):
        raise AnnotationError(f"{where} must be a string, not {_kind(raw)}.")
    if len(raw) > longest:
        raise AnnotationError(f"{where} has {len(raw)} characters; {longest} are the most.")
    if not empty and not raw.strip():
        raise AnnotationError(f"{where} is empty; leave it out or give the text.")
    if found := _SPECIAL.search(raw):
        raise AnnotationError(
            f"{where} holds {found[0]!r}, a special token of the model; write plain text."
        )
    if NOT_TEXT.search(raw):
        raise AnnotationError(f"{where} holds a null character or half a surrogate pair.")
    return raw


def _optional_text(values: dict[str, Any], key: str) -> str | None:
    return None if values.get(key) is None else _text(values[key], key)


def _region(raw: object, where: str) -> LabelledRegion:
    values = object_in(raw, where)
    label = _text(values.get("label"), f"{where}.label", LONGEST_LABEL).strip()
    text = _text(values.get("text", ""), f"{where}.text", empty=True)
    return LabelledRegion(label, _boxes(values, where), text.strip())


def _references(raw: object) -> tuple[Reference, ...]:
    if raw is None:
        return ()
    values = _list(raw if isinstance(raw, list) else [raw], "reference")
    return tuple(_reference(value, f"reference[{at}]") for at, value in enumerate(values))


def _reference(raw: object, where: str) -> Reference:
    values = object_in(raw, where)
    text = _text(values.get("text"), f"{where}.text", presets.LONGEST_REFERENCE).strip()
    try:
        presets.prompt_for("locate", text)
    except InputError as error:
        raise AnnotationError(f"{where}: {error}") from error
    return Reference(text, _boxes(values, where))


def _boxes(values: dict[str, Any], where: str) -> tuple[Box, ...]:
    if ("box" in values) == ("boxes" in values):
        raise AnnotationError(f"{where} needs either box or boxes.")
    raw = [values["box"]] if "box" in values else _list(values["boxes"], where, MOST_BOXES)
    if not raw:
        raise AnnotationError(f"{where}.boxes is empty; give at least one box.")
    return tuple(_box(value, where) for value in raw)


def _box(raw: object, where: str) -> Box:
    numbers = raw if isinstance(raw, list) else []
    whole = len(numbers) == 4 and all(type(number) is int for number in numbers)
    if not whole or not all(0 <= number <= SCALE for number in numbers):
        raise AnnotationError(
            f"{where}: a box is [x1, y1, x2, y2] in whole numbers from 0 to {SCALE} of the page."
        )
    x1, y1, x2, y2 = numbers
    if x1 > x2 or y1 > y2:
        raise AnnotationError(f"{where}: {numbers} has its corners reversed; x1 <= x2, y1 <= y2.")
    return x1, y1, x2, y2


def _boxes_to_json(boxes: tuple[Box, ...]) -> dict[str, Any]:
    return {"box": list(boxes[0])} if len(boxes) == 1 else {"boxes": [list(box) for box in boxes]}


def _kind(raw: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", type(None): "nothing"}
    return names.get(type(raw), f"{str(raw)[:40]!r}")
