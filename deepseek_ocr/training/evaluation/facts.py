"""Facts about pages that a reading has to get right, in the style of olmOCR-bench.

One JSON object a line, as `deepseek_ocr/training/README.md` shows. The names are those of the
published benchmark, so its files can be used; its types that need a browser or look at formatting
(math, format, …) are told and not run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from rapidfuzz.distance import Levenshtein

from deepseek_ocr.errors import InputError
from deepseek_ocr.files import read_text
from deepseek_ocr.grounding.parser import to_markdown
from deepseek_ocr.training.data.annotations import AnnotationError, image_path
from deepseek_ocr.training.data.samples import Rejection
from deepseek_ocr.training.evaluation.teds import (
    Grid,
    GridCell,
    Rows,
    grid,
    html_tables,
    markdown_tables,
)
from deepseek_ocr.training.evaluation.text_metrics import composed

TYPES = ("present", "absent", "order", "table")

LONGEST = 2_000
"""Characters of one text of a fact."""

LAST_PAGE = 100_000
"""Of a document; a larger number is a mistake, and is no part of a file name."""

Place = tuple[int, int]
"""Row and column of a table, from 0; also a step."""

RELATIONS: dict[str, tuple[Place, bool]] = {
    "up": ((-1, 0), False),
    "down": ((1, 0), False),
    "left": ((0, -1), False),
    "right": ((0, 1), False),
    "top_heading": ((-1, 0), True),
    "left_heading": ((0, -1), True),
}
"""What a table fact may say of a cell: in which direction the other cell lies, and whether it is
the outermost one with text there or the next one."""

_ASCII = str.maketrans(
    {"‘": "'", "’": "'", "‚": "'", "“": '"', "”": '"', "„": '"', "＿": "_"}
    | dict.fromkeys("–—‑‒−", "-")
    | {"\u00b5": "\u03bc"}
)
_Rule = tuple[Callable[[Any], bool], str]
_COUNT: _Rule = (lambda one: type(one) is int and one >= 0, "a whole number, 0 or more")
_VALUES: dict[str, _Rule] = {
    **dict.fromkeys(("max_diffs", "first_n", "last_n"), _COUNT),
    "case_sensitive": (lambda one: type(one) is bool, "true or false"),
    "page": (
        lambda one: type(one) is int and 1 <= one <= LAST_PAGE,
        f"a whole number from 1 to {LAST_PAGE}",
    ),
}
"""What fits a key, and how that is said. Not by isinstance: True is an int."""

_TEXT: _Rule = (
    lambda one: isinstance(one, str) and len(one) <= LONGEST,
    f"a text of at most {LONGEST} characters",
)
"""The same of all other keys."""

_INLINE = re.compile(r"</?[bi]>|(\*\*|__)(.{1,300}?)\1|(?<!\w)([*_])(.{1,300}?)\3(?!\w)")
_BREAK = re.compile(r"<br ?/?>")


@dataclass(frozen=True)
class FactPage:
    """Where a fact's page is: a picture below the data folder, or a page (from 1) of a PDF."""

    file: str
    number: int | None = None

    def names(self) -> tuple[str, ...]:
        """What a text or a picture of this page may be called: paths without a suffix."""
        stem = PurePosixPath(self.file).with_suffix("").as_posix()
        if self.number is None:
            return (stem,)
        numbered = (f"{stem}_pg{self.number}_repeat1", f"{stem}_pg{self.number}")
        return (*numbered, stem) if self.number == 1 else numbered


@dataclass(frozen=True)
class Fact:
    """One fact: `texts` holds the strings of its type (text; before, after; cell, up, …). At most
    `max_diffs` characters may be inserted, missing or different."""

    id: str
    page: FactPage
    type: str
    texts: dict[str, str]
    max_diffs: int = 0
    case_sensitive: bool = True
    first_n: int | None = None
    last_n: int | None = None


@dataclass(frozen=True)
class Verdict:
    """A fact, whether a reading got it right, and if not why."""

    fact: Fact
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class PageText:
    """The text of a page, as a model or a program wrote it, and what facts need of it. Each part is
    made when the first fact asks for it, and kept for the others."""

    text: str

    @cached_property
    def markdown(self) -> str:
        """The text without tags."""
        return to_markdown(self.text)

    @cached_property
    def plain(self) -> str:
        """The text as facts on texts see it."""
        return plain(self.markdown)

    @cached_property
    def grids(self) -> tuple[Grid, ...]:
        """The tables, HTML ones first, the text of their cells as facts see it."""
        tables = (*html_tables(self.markdown), *markdown_tables(self.markdown))
        return tuple(grid(_plain_rows(rows)) for rows in tables)


def load_facts(file: Path) -> tuple[list[Fact], list[Rejection]]:
    """The facts in `file`, and the lines that cannot be used, with reasons. Raises `InputError` if
    the file cannot be read."""
    facts: list[Fact] = []
    rejections: list[Rejection] = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            facts.append(parse_fact(json.loads(line)))
        except (ValueError, RecursionError) as error:  # InputError is a ValueError
            rejections.append(Rejection(f"line {number}", str(error)))
    return facts, rejections


def parse_fact(raw: object) -> Fact:
    """The fact in parsed JSON `raw`. Raises `InputError` saying what is wrong."""
    if not isinstance(raw, dict):
        raise InputError("a fact must be an object.")
    kind = raw.get("type")
    if kind not in TYPES:
        raise InputError(f"facts of type {str(kind)[:40]!r} are not run, only {', '.join(TYPES)}.")
    if raw.get("checked") == "rejected":
        raise InputError("the fact is marked as rejected by those who checked it.")
    fact = Fact(
        id=str(raw.get("id", ""))[:200],
        page=_page(raw),
        type=kind,
        texts=_texts(raw, kind),
        max_diffs=_optional(raw, "max_diffs") or 0,
        case_sensitive=_optional(raw, "case_sensitive") is not False,
        first_n=_optional(raw, "first_n"),
        last_n=_optional(raw, "last_n"),
    )
    if kind != "table" and fact.max_diffs >= min(len(text) for text in fact.texts.values()):
        raise InputError("max_diffs is no smaller than the text, which is then everywhere.")
    return fact


def check(fact: Fact, text: PageText) -> Verdict:
    """Whether `text` gets `fact` right."""
    if fact.type == "table":
        return _check_table(fact, text.grids)
    page = text.plain
    if fact.type == "order":
        return _check_order(fact, page)
    head = page[: fact.first_n] if fact.first_n else ""
    tail = page[-fact.last_n :] if fact.last_n else ""
    page = head + tail if fact.first_n or fact.last_n else page
    there = starts(_cased(fact, fact.texts["text"]), _cased(fact, page), fact.max_diffs)
    if bool(there) == (fact.type == "present"):
        return Verdict(fact, True)
    found = "is there" if there else "is not there"
    return Verdict(fact, False, f"{fact.texts['text'][:80]!r} {found}.")


def plain(text: str) -> str:
    """`text` without bold and italics, in composed Unicode, plain quotes and hyphens, one space
    for any white space."""
    text = composed(_BREAK.sub(" ", text)).translate(_ASCII)
    text = _INLINE.sub(lambda found: found[2] or found[4] or "", text)
    return " ".join(text.split())


def starts(pattern: str, text: str, most: int) -> list[int]:
    """Where in `text` something begins that is at most `most` edits away from `pattern`. Of
    neighbouring places the best one counts. Time is the product of both lengths, whatever they hold
    (libraries for this take minutes over text that goes in circles)."""
    if most == 0:
        return [match.start() for match in re.finditer(f"(?={re.escape(pattern)})", text)]
    distances = _distances_from(pattern, text)
    good = np.flatnonzero(distances <= most)
    runs = np.split(good, np.flatnonzero(np.diff(good) > 1) + 1) if len(good) else []
    return [int(run[distances[run].argmin()]) for run in runs]


def _distances_from(pattern: str, text: str) -> np.ndarray:
    """`[len(text) + 1]` edits between `pattern` and the best stretch that begins at each place.
    Sellers' algorithm from the back, a row of the table at a time."""
    signs = np.frombuffer(text[::-1].encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    places = np.arange(len(text) + 1, dtype=np.int32)
    row = np.zeros(len(text) + 1, dtype=np.int32)
    for sign in reversed(pattern):
        above = row + 1
        above[1:] = np.minimum(above[1:], row[:-1] + (signs != ord(sign)))
        row = np.minimum.accumulate(above - places) + places
    return row[::-1]


def _check_order(fact: Fact, page: str) -> Verdict:
    places = {}
    for name in ("before", "after"):
        wanted = _cased(fact, fact.texts[name])
        places[name] = starts(wanted, _cased(fact, page), fact.max_diffs)
        if not places[name]:
            return Verdict(fact, False, f"{fact.texts[name][:80]!r} is not there.")
    if min(places["before"]) < max(places["after"]):
        return Verdict(fact, True)
    return Verdict(fact, False, "both are there, but in the other order.")


def _plain_rows(rows: Rows) -> Rows:
    return tuple(tuple(replace(cell, text=plain(cell.text)) for cell in row) for row in rows)


def _check_table(fact: Fact, grids: Sequence[Grid]) -> Verdict:
    if not any(grids):
        return Verdict(fact, False, "there is no table.")
    reason = f"no cell says {fact.texts['cell'][:80]!r}."
    for one in grids:
        places: dict[int, list[Place]] = {}
        for at, cell in one.items():
            if _alike(fact, fact.texts["cell"], cell):
                places.setdefault(id(cell), []).append(at)
        for spots in places.values():
            said = [name for name in fact.texts if name in RELATIONS]
            wrong = [name for name in said if not _related(fact, one, spots, name)]
            if not wrong:
                return Verdict(fact, True)
            reason = f"the cell is there, but not what is to be {', '.join(wrong)}."
    return Verdict(fact, False, reason)


def _related(fact: Fact, table: Grid, spots: list[Place], name: str) -> bool:
    """Whether what fact says of relation `name` holds from one of the places of a cell."""
    step, outermost = RELATIONS[name]
    for others in (_others(table, spot, step) for spot in spots):
        chosen = [one for one in others if one.text][-1:] if outermost else islice(others, 1)
        if any(_alike(fact, fact.texts[name], one) for one in chosen):
            return True
    return False


def _others(table: Grid, at: Place, step: Place) -> Iterator[GridCell]:
    """The other cells from `at` in direction `step`."""
    row, column = at
    while found := table.get((row, column)):
        if found is not table[at]:
            yield found
        row, column = row + step[0], column + step[1]


def _alike(fact: Fact, wanted: str, cell: GridCell) -> bool:
    most = min(fact.max_diffs, len(wanted) // 2)
    text = _cased(fact, cell.text)
    distance = Levenshtein.distance(_cased(fact, wanted), text, score_cutoff=most)
    return bool(distance <= most)


def _cased(fact: Fact, text: str) -> str:
    return text if fact.case_sensitive else text.lower()


def _page(raw: dict[str, Any]) -> FactPage:
    key = "image" if "image" in raw else "pdf"
    try:
        file = image_path(raw.get(key)).as_posix()
    except AnnotationError as error:
        raise InputError(f"{key}: {error}") from error
    if key == "image":
        return FactPage(file)
    number = _optional(raw, "page")
    return FactPage(file, 1 if number is None else number)


def _texts(raw: dict[str, Any], kind: str) -> dict[str, str]:
    needed = {"order": ("before", "after"), "table": ("cell",)}.get(kind, ("text",))
    names = (*needed, *RELATIONS) if kind == "table" else needed
    given = {name: plain(_optional(raw, name) or "") for name in names}
    texts = {name: text for name, text in given.items() if text}
    for name in needed:
        if name not in texts:
            raise InputError(f"a fact of type {kind} needs {name}, a text that is not empty.")
    if kind == "table" and len(texts) == 1:
        raise InputError(f"a fact on a table needs one of {', '.join(RELATIONS)}.")
    return texts


def _optional(raw: dict[str, Any], name: str) -> Any:
    """The value of `name`, None if there is none. Raises `InputError` if it does not fit."""
    value = raw.get(name)
    fits, wanted = _VALUES.get(name, _TEXT)
    if value is not None and not fits(value):
        raise InputError(f"{name} must be {wanted}.")
    return value
