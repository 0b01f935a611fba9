"""Every output of a document, by the names users ask for; and readings as JSON data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from deepseek_ocr import grounding
from deepseek_ocr.engine import Failure, Reading
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.figures import figure_crops, save_figures
from deepseek_ocr.grounding import Confidence, Region
from deepseek_ocr.records import DocumentRecord

__all__ = ["FORMATS", "document_to_json", "figure_crops", "page_to_json", "save_figures", "write"]

FORMATS = {
    "md": "cleaned Markdown, figures as files under images/",
    "html": "one self-contained page with tables, figures and KaTeX-ready formulas",
    "json": "pages and regions with boxes, confidence, tries, counts, timings, settings",
    "txt": "plain text without markup, pages parted by form feeds",
    "mmd": "what the official PDF script writes: NAME.mmd and NAME_det.mmd",
    "pdf": "the pages with their regions drawn and labelled (NAME_layouts.pdf)",
    "searchable-pdf": "the pages with an invisible text layer, for searching and copying",
    "regions": "one region a line as JSON (NAME.regions.jsonl)",
}
"""What a document can be written as: name → what it is."""


def write(
    document: DocumentRecord,
    formats: Sequence[str],
    folder: Path,
    render: Callable[[int], Image.Image],
    *,
    join_tables: bool = True,
    password: str | None = None,
) -> list[Path]:
    """Write `document` in each of `formats` into `folder`; the files written.

    `render(number)` gives the upright picture of page `number` (from 1) as it was read. `password`
    opens an encrypted PDF. Pages are taken from `document.pages` one at a time; every file appears
    whole or not at all.

    Raises `SettingsError` for an unknown format, `OSError` where the disk takes no more.
    """
    for name in formats:
        if name not in FORMATS:
            raise SettingsError(f"There is no format {name!r}; choose among {', '.join(FORMATS)}.")
    raise NotImplementedError


def text_of(
    document: DocumentRecord, form: str, folder: Path, *, join_tables: bool = True
) -> Iterator[str]:
    """`document` in one of the text formats (md, html, json, txt, mmd, regions), piece by piece.

    For pipes, where no file is wanted; `folder` is where the figures lie (only html opens them).
    """
    raise NotImplementedError


def page_to_json(outcome: Reading | Failure, source: str) -> dict[str, Any]:
    """One page as JSON data; a page that failed has `error` in place of all it would have said.

    Boxes are in 0-999 (`boxes`) and in pixels (`boxes_pixels`), timings in seconds.
    """
    if isinstance(outcome, Failure):
        return {"source": source, "error": str(outcome)}
    width, height = outcome.image_size
    return {
        "source": source,
        "width": width,
        "height": height,
        "text": outcome.text,
        "markdown": outcome.markdown,
        "regions": [_region(region, width, height) for region in outcome.regions],
        "finish_reason": outcome.finish_reason,
        "more_pages": outcome.more_pages,
        "confidence": _confidence(outcome.confidence),
        "counts": asdict(outcome.counts),
        "timings": {stage: round(s, 4) for stage, s in asdict(outcome.timings).items()},
    }


def document_to_json(pages: list[dict[str, Any]]) -> dict[str, Any]:
    """Pages as one document."""
    return {"pages": pages}


def _region(region: Region, width: int, height: int) -> dict[str, Any]:
    return {
        "label": region.label,
        "text": region.text,
        "boxes": [list(box) for box in region.boxes],
        "boxes_pixels": [list(grounding.to_pixels(box, width, height)) for box in region.boxes],
        "confidence": _confidence(region.confidence),
    }


def _confidence(confidence: Confidence | None) -> dict[str, float] | None:
    if confidence is None:
        return None
    return {"mean": round(confidence.mean, 4), "lowest": round(confidence.lowest, 4)}
