"""Readings as data: the JSON that every door gives out."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from deepseek_ocr import grounding
from deepseek_ocr.engine import Failure, Reading
from deepseek_ocr.grounding import Confidence, Region


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
