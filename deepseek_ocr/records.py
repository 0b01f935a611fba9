"""What is kept of each page and document that was read: plain values that survive on disk.

A run writes one page record as soon as its page is read; every output format is made from the
records afterwards, so nothing is read twice and a run can stop anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deepseek_ocr.engine import Counts, FinishReason, Reading, Timings
from deepseek_ocr.grounding import Confidence, Region

SourceKind = Literal["pdf", "image"]
"""How a document's pages are had: rendered from a PDF, or frames of an image file."""


@dataclass(frozen=True)
class Try:
    """One attempt at a page: what was asked (`settings`, as data), and how it ended.

    `outcome` is a finish reason, "empty", "timeout" or "failed". `seconds` is wall-clock time.
    """

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
      in their order
    - `tries`: every attempt; `text` is of the one at `kept`. More than one means it was retried
    - `error`: None, or why the page has no text
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


def page_record(
    number: int,
    reading: Reading,
    points: tuple[float, float] | None = None,
    rotation: int = 0,
    figures: tuple[str, ...] = (),
    tries: tuple[Try, ...] = (),
    kept: int = 0,
) -> PageRecord:
    """The record of a page that was read."""
    return PageRecord(
        number=number,
        width=reading.image_size[0],
        height=reading.image_size[1],
        points=points,
        rotation=rotation,
        text=reading.text,
        regions=reading.regions,
        figures=figures,
        finish_reason=reading.finish_reason,
        confidence=reading.confidence,
        counts=reading.counts,
        timings=reading.timings,
        tries=tries,
        kept=kept,
    )
