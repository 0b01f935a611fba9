"""Documents, pages and regions as JSON data: the shape of `document.schema.json` beside this."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from deepseek_ocr.engine.results import Timings
from deepseek_ocr.formats.markdown import figure_namer
from deepseek_ocr.formats.records import DocumentRecord, PageRecord
from deepseek_ocr.formats.writing import PdfPages, WriteContext
from deepseek_ocr.grounding import parser
from deepseek_ocr.grounding.geometry import to_displayed
from deepseek_ocr.grounding.parser import Confidence
from deepseek_ocr.markup import NameFigure, blocks_in, to_markdown

VERSION = 1
"""Of the shape; a change that readers would trip over makes it another."""


def page_data(record: PageRecord, name_figure: NameFigure | None = None) -> dict[str, Any]:
    """One page; one that could not be read has `error` and none of what reading gives.

    `name_figure` names the figures in its Markdown if not as those of a document.
    Timings are in seconds, boxes as `regions_data` says.
    """
    points = record.points
    data: dict[str, Any] = {
        "number": record.number, "width": record.width, "height": record.height,
        "points": None if points is None else [round(side, 3) for side in points],
        "rotation": record.rotation,
        "tries": [{**asdict(one), "seconds": round(one.seconds, 4)} for one in record.tries],
    }  # fmt: skip
    if record.error is not None:
        return {**data, "error": record.error}
    return {
        **data, "kept": record.kept, "text": record.text,
        "markdown": to_markdown(blocks_in(record.parts), name_figure or figure_namer(record)),
        "regions": regions_data(record, name_figure), "figures": list(record.figures),
        "finish_reason": record.finish_reason, "confidence": _rounded(record.confidence),
        "counts": None if record.counts is None else asdict(record.counts),
        "timings": _rounded(record.timings),
    }  # fmt: skip


def regions_data(record: PageRecord, name_figure: NameFigure | None = None) -> list[dict[str, Any]]:
    """The regions of a page in reading order, which counts from 1.

    `boxes` are in 0-999 and `boxes_pixels` in pixels of the picture that was read, `boxes_points`
    in 1/72 inch of the PDF page as displayed, from its top left corner (None without a PDF).
    """
    name_figure = name_figure or figure_namer(record)
    parts = [part for part in record.parts if part.region is not None]
    found: list[dict[str, Any]] = []
    for region, part in zip(record.regions, parts, strict=True):
        boxes_points = None
        if (points := record.points) is not None:
            displayed = (to_displayed(box, points, record.rotation) for box in region.boxes)
            boxes_points = [[round(value, 3) for value in box] for box in displayed]
        pixels = (parser.to_pixels(box, record.width, record.height) for box in region.boxes)
        found.append({
            "order": len(found) + 1, "label": region.label, "text": region.content,
            "markdown": to_markdown(part.blocks, name_figure),
            "boxes": [list(box) for box in region.boxes],
            "boxes_pixels": [list(box) for box in pixels], "boxes_points": boxes_points,
            "confidence": _rounded(region.confidence),
        })  # fmt: skip
    return found


def write_json(document: DocumentRecord, context: WriteContext) -> Iterator[str]:
    """The whole document as one JSON object, in pieces of a page. `pdfs` in it says what became of
    the pages of its PDFs, if there is anything to say."""
    head: dict[str, Any] = {
        "version": VERSION, "name": document.name, "source": document.source.name,
        "kind": document.kind, "settings": dict(document.settings),
    }  # fmt: skip
    pdfs = {name: asdict(pages) for name, pages in context.pdfs.items() if pages != PdfPages()}
    if pdfs:
        head["pdfs"] = pdfs
    yield dumps(head)[:-1] + ', "pages": ['
    for number, record in enumerate(document.pages):
        yield ("\n" if number == 0 else ",\n") + dumps(page_data(record))
    yield "\n]}\n"


def write_regions(document: DocumentRecord, context: WriteContext) -> Iterator[str]:
    """JSON Lines: every region of every page with document and page; failed pages have none."""
    for record in document.pages:
        for region in regions_data(record):
            yield dumps({"document": document.name, "page": record.number, **region}) + "\n"


def dumps(data: Any) -> str:
    """One line of JSON; raises `ValueError` for numbers that JSON has no word for."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def _rounded(values: Confidence | Timings | None) -> dict[str, float] | None:
    """The numbers in `values` by their names, as far as anybody reads them."""
    if values is None:
        return None
    return {name: round(value, 4) for name, value in asdict(values).items()}
