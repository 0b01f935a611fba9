"""What is kept of each page and document that was read: plain values that survive on disk."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, overload

from deepseek_ocr.engine.results import Counts, FinishReason, Reading, Timings
from deepseek_ocr.errors import RecordError
from deepseek_ocr.grounding.parser import SCALE, Confidence, Region
from deepseek_ocr.markup import PagePart, page_parts

VERSION = 2
"""Of the shape that `record_to_json` writes. Version 1 had neither `own_text` nor `reference`
and is read too; another version is not."""

_LARGEST = 1e15
"""No number of a record comes near it; whole numbers below it are exact as floats."""

FIGURE_NAME = re.compile(r"[0-9]{1,9}_[0-9]{1,9}\.jpg")
"""Page and number of a figure, both from 0: no other name in a record is ever opened."""

SourceKind = Literal["pdf", "image"]
"""How a document's pages are had: rendered from a PDF, or frames of an image file."""

OwnText = Literal["none", "visible", "invisible"]
"""Text that a PDF page has of its own: what it draws, or mostly an invisible layer."""


@dataclass(frozen=True)
class Try:
    """One attempt at a page: what was asked (`settings`, as data), and how it ended. `outcome` is a
    finish reason, "empty", "timeout" or "failed". `seconds` is wall-clock time."""

    settings: Mapping[str, Any]
    outcome: str
    output_tokens: int
    seconds: float


@dataclass(frozen=True)
class PageRecord:
    """One page as it was read, or why it was not.

    - `number`: counts from 1 in the source file, whichever pages were asked for
    - `width`, `height`: pixels of the upright picture that was read (0 where none could be made)
    - `points`: width and height of a PDF page as displayed (1/72 inch); None for pictures
    - `rotation`: degrees clockwise by which the page was turned before reading, beyond the turn
      that the file itself asks for
    - `text`: what the model wrote, tags included; `regions` with boxes in 0-999 of the picture
    - `figures`: names of the files under `images/` that hold the page's regions labelled `image`,
      one a box, in their order; "" for a box without area, which has no file
    - `tries`: every attempt; `text` is of the one at `kept`. More than one means it was retried
    - `error`: None, or why the page has no text
    - `reference`: what the prompt asked to locate, None if nothing
    - `own_text`: what text the page had before it was read; None if unknown, or if the
      source is not a PDF
    """

    number: int
    width: int = 0
    height: int = 0
    points: tuple[float, float] | None = None
    rotation: int = 0
    text: str = ""
    regions: tuple[Region, ...] = ()
    figures: tuple[str, ...] = ()
    finish_reason: FinishReason | None = None
    confidence: Confidence | None = None
    counts: Counts | None = None
    timings: Timings | None = None
    tries: tuple[Try, ...] = ()
    kept: int = 0
    error: str | None = None
    reference: str | None = None
    own_text: OwnText | None = None

    @cached_property
    def parts(self) -> tuple[PagePart, ...]:
        """What the page holds, read from its text."""
        return tuple(page_parts(self.text, self.regions, self.reference))


@dataclass(frozen=True)
class DocumentRecord:
    """One input file and its pages in order.

    `pages` may load its records from disk one at a time (a document of 3,000 pages is never held
    whole). `source` is the file itself; `name` the folder of its outputs. `settings` says how it
    was read (model, task, preset, decoding) as data.
    """

    name: str
    source: Path
    kind: SourceKind
    pages: Sequence[PageRecord]
    settings: Mapping[str, Any]


class LazyRecords(Sequence[PageRecord]):
    """The records of the pages `numbers`, each loaded by `load` when it is looked at."""

    def __init__(self, numbers: Sequence[int], load: Callable[[int], PageRecord]) -> None:
        self._numbers, self._load = numbers, load

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> PageRecord: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[PageRecord]: ...
    def __getitem__(self, at: int | slice) -> PageRecord | Sequence[PageRecord]:
        if isinstance(at, slice):
            return LazyRecords(self._numbers[at], self._load)
        return self._load(self._numbers[at])


def page_record(number: int, reading: Reading) -> PageRecord:
    """The record of the page `number` (from 1) that was read."""
    return PageRecord(
        number, *reading.image_size, text=reading.text, regions=reading.regions,
        finish_reason=reading.finish_reason, confidence=reading.confidence, counts=reading.counts,
        timings=reading.timings, reference=reading.reference,
    )  # fmt: skip


def record_to_json(record: PageRecord) -> dict[str, Any]:
    """`record` as JSON data from which `record_from_json` makes the same record again. The settings
    of its tries must be JSON data: a tuple among them comes back as a list."""
    return {"version": VERSION, **asdict(record)}


def record_from_json(data: Any) -> PageRecord:
    """The record that `record_to_json` gave as `data`.

    Every field must be there, of its type and in its range, and no other.
    Raises `RecordError` naming the field otherwise: records lie on disk, where they can be edited
    or damaged, and half a page must not pass for a whole one.
    """
    version = data.get("version") if isinstance(data, dict) else None
    if not isinstance(data, dict) or version not in (1, VERSION):
        what = f"A page record must be an object of version {VERSION}; it is damaged or was written"
        advice = "Read the page again (--overwrite)."
        raise RecordError(f"{what} by another version of this program. {advice}")
    rest = {name: value for name, value in data.items() if name != "version"}
    if version == 1:
        rest = {"own_text": None, "reference": None, **rest}
    record: PageRecord = _decode(PageRecord, rest, "page")
    _check(record)
    return record


def _refuse(where: str, wanted: str) -> RecordError:
    what = f"The page record is damaged or was edited: {where} must be {wanted}."
    return RecordError(f"{what} Read the page again (--overwrite).")


def _check(record: PageRecord) -> None:
    """What types alone do not say."""
    if record.number < 1:
        raise _refuse("page.number", "1 or more")
    if record.width < 0 or record.height < 0:
        raise _refuse("page.width and page.height", "0 or more")
    if record.points is not None and min(record.points) <= 0:
        raise _refuse("page.points", "above 0")
    if record.rotation not in (0, 90, 180, 270):
        raise _refuse("page.rotation", "0, 90, 180 or 270")
    if not 0 <= record.kept < max(len(record.tries), 1):
        raise _refuse("page.kept", "the place of one of its tries")
    if not all(name == "" or FIGURE_NAME.fullmatch(name) for name in record.figures):
        raise _refuse("page.figures", "names such as 0_1.jpg")
    for at, region in enumerate(record.regions):
        if not 0 <= region.start <= region.text_start <= region.end <= len(record.text):
            raise _refuse(f"page.regions[{at}]", "within the page's text")
        if not region.boxes:
            raise _refuse(f"page.regions[{at}].boxes", "one box or more")
        for x1, y1, x2, y2 in region.boxes:
            if not (0 <= x1 <= x2 <= SCALE and 0 <= y1 <= y2 <= SCALE):
                raise _refuse(f"page.regions[{at}].boxes", f"ordered and in 0-{SCALE}")


_types_of = cache(get_type_hints)


def _decode(kind: Any, data: Any, where: str) -> Any:
    """`data` as a value of the annotation `kind`: what the records above are made of."""
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _decode_object(kind, data, where)
    if origin in (Union, types.UnionType):
        return None if data is None else _decode(arguments[0], data, where)
    if origin is tuple:
        return _decode_row(arguments, data, where)
    if origin is Literal:
        fits, wanted = data in arguments, f"one of {', '.join(arguments)}"
    elif origin is Mapping:
        fits, wanted = isinstance(data, dict), "an object"
    elif kind is float:
        fits, wanted = type(data) in (int, float) and abs(data) < _LARGEST, "a finite number"
        data = float(data) if fits else data
    else:
        fits, wanted = type(data) is kind, {int: "a whole number", str: "text"}[kind]
    if not fits:
        raise _refuse(where, wanted)
    return data


def _decode_row(kinds: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise _refuse(where, "a list")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(data)
    if len(kinds) != len(data):
        raise _refuse(where, f"a list of {len(kinds)}")
    pairs = zip(kinds, data, strict=True)
    return tuple(_decode(kind, one, f"{where}[{at}]") for at, (kind, one) in enumerate(pairs))


def _decode_object(kind: type, data: Any, where: str) -> Any:
    names = [field.name for field in fields(kind)]
    if not isinstance(data, dict) or data.keys() != set(names):
        raise _refuse(where, f"an object of exactly {', '.join(names)}")
    hints = _types_of(kind)
    return kind(**{name: _decode(hints[name], data[name], f"{where}.{name}") for name in names})
