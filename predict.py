"""The Cog predictor: weights at start, one page or document a prediction.

Cog reads the inputs off this file without running it, so choices and descriptions are literals
here; `tests/test_predict.py` holds them against `tasks.py`.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO

from cog import BasePredictor, Input, Path

import configuration
import tasks
import weights
from deepseek_ocr.engine import Failure, OcrEngine, Reading
from deepseek_ocr.errors import InputError, OcrError
from deepseek_ocr.exports import document_to_json, page_to_json
from deepseek_ocr.formats.markdown import PAGE_SPLIT
from deepseek_ocr.images import Source
from deepseek_ocr.processors import use_threads
from deepseek_ocr.rendering import Ahead, Rendered, Renderer
from deepseek_ocr.settings import CropSettings, DecodeSettings
from deepseek_ocr.sources import Pages, may_have_pages, parse_pages

TASK_TYPES = ["Convert to Markdown", "Free OCR", "Parse Figure", "Locate Object by Reference"]
RESOLUTION_SIZES = ["Gundam (Recommended)", "Tiny", "Small", "Base", "Large"]
OUTPUT_FORMATS = ["Text", "Markdown", "JSON"]


class Predictor(BasePredictor):
    """Loads the model once and answers predictions, one at a time."""

    def setup(self) -> None:
        """Fetch and verify the weights, load them, and read a blank page to warm up."""
        self.engine = load_engine()

    def predict(
        self,
        image: Path = Input(
            description="Picture of a page (JPEG, PNG, WebP, HEIC …), or a PDF or TIFF of pages"
        ),
        task_type: str = Input(
            description="What to do with the page",
            default="Convert to Markdown",
            choices=TASK_TYPES,
        ),
        resolution_size: str = Input(
            description="How closely to look: Gundam cuts large pages into tiles, Tiny is fastest",
            default="Gundam (Recommended)",
            choices=RESOLUTION_SIZES,
        ),
        reference_text: str = Input(
            description="What to find on the page; only for Locate Object by Reference",
            default="",
        ),
        output_format: str = Input(
            description="Text as the model writes it, cleaned Markdown, or JSON with boxes",
            default="Text",
            choices=OUTPUT_FORMATS,
        ),
        max_new_tokens: int = Input(
            description="Longest answer in tokens for a page", default=8192, ge=1, le=8192
        ),
        pages: str = Input(
            description="Pages of a PDF or TIFF, such as 1-3,7,-1 (-1 is the last); empty is all",
            default="",
        ),
    ) -> str:
        """Read one page, or the pages of a document."""
        if output_format not in OUTPUT_FORMATS:
            raise InputError(f"output_format must be one of {', '.join(OUTPUT_FORMATS)}.")
        prompt, crop, decode = values(task_type, resolution_size, reference_text, max_new_tokens)
        outcomes: list[tuple[int, Reading | Failure]] = []
        for page in page_sources(image, pages):
            try:
                outcomes.append(
                    (page.number, self.engine.read(page.picture(), prompt, crop, decode))
                )
            except OcrError as error:  # the other pages of a document are read all the same
                outcomes.append((page.number, Failure(error)))
        for name, value in metrics(outcomes).items():
            self.record_metric(name, value)
        return rendered(outcomes, output_format)


def load_engine() -> OcrEngine:
    """The engine of the configured checkpoint, fetched if it is not there, and warmed up."""
    settings = configuration.load()
    checkpoints = pathlib.Path(settings.checkpoints)
    folder = weights.ensure(settings.model, checkpoints, source=settings.source)
    use_threads(settings.threads)
    engine = OcrEngine.load(
        folder, settings.device, settings.dtype,
        quant=settings.quant, kernels=settings.kernels, slots=settings.slots,
        vision_device=settings.vision_device, strict=settings.strict,
    )  # fmt: skip
    warm_up(engine, settings.model)
    return engine


def warm_up(engine: OcrEngine, name: str) -> None:
    """Read a blank page, so that the first prediction does not pay for first-time work."""
    from PIL import Image

    best = weights.known_as(name)
    blank = Image.new("RGB", (1240, 1754), "white")  # A4 at 150 dpi
    prompt, crop = tasks.prompt_for(best.task), tasks.crop_for(best.resolution)
    engine.read(blank, prompt, crop, DecodeSettings(max_new_tokens=8))


def opened(image: Path) -> BinaryIO:
    """The file behind `image`, which Cog has fetched.

    Raises `InputError` for anything else: a plain string would be a path inside the container.
    """
    if image is None:
        raise InputError("image is missing; give a file, an http(s) URL or a data URI.")
    if not isinstance(image, pathlib.Path):
        raise InputError(
            "image must be a file, an http(s) URL or a data URI (put data:image/jpeg;base64, in "
            "front of base64); a path inside the container is refused."
        )
    return image.open("rb")


@dataclass(frozen=True)
class PageSource:
    """A page that is to be read; `source` is its picture, or why there is none."""

    number: int
    source: Source | OcrError

    def picture(self) -> Source:
        """The picture. Raises `OcrError` where there is none."""
        if isinstance(self.source, OcrError):
            raise self.source
        return self.source


def page_sources(image: Path, pages: str) -> Iterator[PageSource]:
    """The pages of the file `image`: those of a PDF or TIFF that `pages` names, or the picture.

    Raises `InputError` for what cannot be opened and for pages that are not there.
    """
    chosen = parse_pages(pages) if pages.strip() else Pages()
    with opened(image) as file:
        if not chosen.ranges and not may_have_pages(image):
            yield PageSource(1, file)
            return
    with Renderer() as renderer:
        document = renderer.open(image)
        numbers = chosen.of(document.pages)
        if not numbers:
            raise InputError(f"The document has {document.pages} pages, none of them {pages}.")
        requests = ((number, document, number) for number in numbers)
        with closing(Ahead(renderer, requests, 1)) as ahead:
            for number, picture in ahead:
                assert picture is not None
                yield PageSource(
                    number, picture.image if isinstance(picture, Rendered) else picture
                )


def values(
    task_type: str, resolution_size: str, reference_text: str, max_new_tokens: int
) -> tuple[str, CropSettings, DecodeSettings]:
    """Prompt, crop and decode settings for the inputs of a prediction.

    Raises `PromptError` where locating lacks a reference, `SettingsError` for unknown names.
    """
    return (
        tasks.prompt_for(task_type, reference_text),
        tasks.crop_for(resolution_size),
        DecodeSettings(max_new_tokens=max_new_tokens),
    )


_ENDINGS = ("stop", "length", "timeout", "loop")
"""Finish reasons, best first: the worst of its pages is a document's."""


def metrics(outcomes: Sequence[tuple[int, Reading | Failure]]) -> dict[str, int | float | str]:
    """What a prediction reports besides its output: sums over its pages.

    `confidence` is the geometric mean over all tokens, `failed_pages` the numbers of the pages
    that could not be read. Raises the first page's error where no page could be read.
    """
    readings = [outcome for _, outcome in outcomes if isinstance(outcome, Reading)]
    failures = [(number, found) for number, found in outcomes if isinstance(found, Failure)]
    if failures and not readings:
        raise failures[0][1].error
    output = sum(reading.counts.output for reading in readings)
    seconds = sum(reading.timings.decode for reading in readings)
    values: dict[str, int | float | str] = {
        "pages": len(outcomes),
        "vision_tokens": sum(reading.counts.vision for reading in readings),
        "output_tokens": output,
        "tokens_per_second": round(output / max(seconds, 1e-6), 2),
        "finish_reason": max((one.finish_reason for one in readings), key=_ENDINGS.index),
    }
    logs = [
        (math.log(max(reading.confidence.mean, 1e-30)) * len(reading.tokens), len(reading.tokens))
        for reading in readings
        if reading.confidence is not None
    ]
    if tokens := sum(count for _, count in logs):
        values["confidence"] = round(math.exp(sum(log for log, _ in logs) / tokens), 4)
    if failures:
        values["failed_pages"] = ",".join(str(number) for number, _ in failures)
    return values


def rendered(outcomes: Sequence[tuple[int, Reading | Failure]], output_format: str) -> str:
    """The pages in one of `OUTPUT_FORMATS`; in text a page that failed leaves its place empty."""
    if output_format == "JSON":
        pages = [
            {**page_to_json(outcome, "image"), "number": number} for number, outcome in outcomes
        ]
        return json.dumps(document_to_json(pages), ensure_ascii=False)
    texts = []
    for _, outcome in outcomes:
        if isinstance(outcome, Failure):
            texts.append("")
        else:
            texts.append(outcome.markdown if output_format == "Markdown" else outcome.text)
    return PAGE_SPLIT.join(texts)
