"""The Cog predictors: weights at start, then pages and documents, many predictions at once.

`Predictor` answers with the whole output (`cog.yaml`, `cog.cpu.yaml`), `StreamPredictor` with text
as it is decoded (`cog.stream.yaml`).

Cog reads the inputs off this file without running it, so choices and descriptions are literals
here; `tests/test_predict.py` holds them against `presets.py`.
"""

from __future__ import annotations

import asyncio
import json
import math
import pathlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from cog import BasePredictor, ConcatenateIterator, Input, Path, Secret, streaming
from PIL import Image

import tasks
import weights
from deepseek_ocr import configuration, presets
from deepseek_ocr.documents.inputs import PageSelection, parse_pages
from deepseek_ocr.documents.page_retries import OUTCOMES
from deepseek_ocr.documents.renderer import OpenDocument
from deepseek_ocr.documents.shared_reader import DocumentReader
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Delta
from deepseek_ocr.errors import InputError, OcrError
from deepseek_ocr.formats.export import document_to_json
from deepseek_ocr.formats.json_document import page_data
from deepseek_ocr.formats.markdown import PAGE_SPLIT
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.grounding import parser
from deepseek_ocr.markup import blocks_in, to_markdown
from deepseek_ocr.settings import Attempt, DecodeSettings
from deepseek_ocr.weights import catalog

TASK_TYPES = ["Convert to Markdown", "Free OCR", "Parse Figure", "Locate Object by Reference"]
RESOLUTION_SIZES = ["Gundam (Recommended)", "Tiny", "Small", "Base", "Large"]
OUTPUT_FORMATS = ["Text", "Markdown", "JSON"]

NAME = "image"
"""What messages call the file: the input that it came in."""


class Inputs:
    """The fields of Cog's form."""

    image = Input(
        description="Picture of a page (JPEG, PNG, HEIC …), a PDF, a TIFF or a zip of pictures"
    )
    task_type = Input(
        description="What to do with the page", default="Convert to Markdown", choices=TASK_TYPES
    )
    resolution_size = Input(
        description="How closely to look: Gundam cuts large pages into tiles, Tiny is fastest",
        default="Gundam (Recommended)",
        choices=RESOLUTION_SIZES,
    )
    reference_text = Input(
        description="What to find on the page; only for Locate Object by Reference", default=""
    )
    output_format = Input(
        description="Text as the model writes it, cleaned Markdown, or JSON with boxes",
        default="Text",
        choices=OUTPUT_FORMATS,
    )
    max_new_tokens = Input(
        description="Longest answer in tokens for a page", default=8192, ge=1, le=8192
    )
    pages = Input(
        description="Pages of a document, such as 1-3,7,-1 (-1 is the last); empty is all",
        default="",
        max_length=1000,
    )
    retries = Input(
        description="How often a page is tried again that loops, is cut off or comes out empty",
        default=3,
        ge=0,
        le=3,
    )
    password = Input(description="Password of an encrypted PDF or zip", default=None)


class OcrPredictor(BasePredictor):
    """What both predictors share: the model, loaded once, and how a prediction begins and ends."""

    def setup(self) -> None:
        """Fetch and verify the weights, load them, and read a blank page to warm up."""
        self.reader = load_reader()

    def healthcheck(self) -> bool:
        """False when no page can be read any more, so that the platform restarts the container."""
        return self.reader.engine.is_running

    def report(self, records: Sequence[PageRecord]) -> None:
        """Hand the prediction's metrics to Cog. Raises `OcrError` if no page could be read."""
        for name, value in metrics(records).items():
            self.record_metric(name, value)


class Predictor(OcrPredictor):
    """Answers with the whole output; predictions in flight share the model's slots."""

    async def predict(
        self,
        image: Path = Inputs.image,
        task_type: str = Inputs.task_type,
        resolution_size: str = Inputs.resolution_size,
        reference_text: str = Inputs.reference_text,
        output_format: str = Inputs.output_format,
        max_new_tokens: int = Inputs.max_new_tokens,
        pages: str = Inputs.pages,
        retries: int = Inputs.retries,
        password: Secret = Inputs.password,
    ) -> str:
        """Read one page, or the pages of a document."""
        if output_format not in OUTPUT_FORMATS:
            raise InputError(f"output_format must be one of {', '.join(OUTPUT_FORMATS)}.")
        prompt = tasks.prompt_for(task_type, reference_text)
        attempts = tasks.attempts_for(resolution_size, max_new_tokens, retries)
        document, numbers = await self.reader.open_async(
            file_of(image), NAME, chosen_pages(pages), plain_text(password)
        )
        log_beginning(document, numbers)
        records = await self.reader.read(
            document, numbers, prompt, attempts, lambda page: log_page(page, document)
        )
        self.report(records)
        return await asyncio.to_thread(rendered, records, output_format)


class StreamPredictor(OcrPredictor):
    """Answers with a piece of text at a time, one prediction at a time.

    Cog 0.23.1 gathers what an asynchronous generator yields and sends it at the end, so this one
    is synchronous. A page is tried once: what was sent cannot be taken back.
    """

    @streaming
    def predict(
        self,
        image: Path = Inputs.image,
        task_type: str = Inputs.task_type,
        resolution_size: str = Inputs.resolution_size,
        reference_text: str = Inputs.reference_text,
        max_new_tokens: int = Inputs.max_new_tokens,
        pages: str = Inputs.pages,
        password: Secret = Inputs.password,
    ) -> ConcatenateIterator[str]:
        """Read a page, or the pages of a document, yielding text as the model writes it."""
        prompt = tasks.prompt_for(task_type, reference_text)
        (attempt,) = tasks.attempts_for(resolution_size, max_new_tokens, 0)
        document, numbers = self.reader.open(
            file_of(image), NAME, chosen_pages(pages), plain_text(password)
        )
        log_beginning(document, numbers)
        records: list[PageRecord] = []
        for event in self.reader.stream(document, numbers, prompt, attempt):
            if isinstance(event, Delta):
                yield event.text
                continue
            log_page(event, document)
            records.append(event)
            if len(records) < len(numbers):
                yield PAGE_SPLIT
        self.report(records)


def load_reader() -> DocumentReader:
    """A reader with the configured checkpoint, fetched if it is not there, and warmed up."""
    settings = configuration.load()
    folder = weights.place_checkpoint(settings)
    reader = DocumentReader(OcrEngine.from_options(folder, settings.load_options()))
    warm_up(reader, settings.model)
    return reader


def warm_up(reader: DocumentReader, name: str) -> None:
    """Read a blank page, so that the first prediction does not pay for first-time work. Raises
    `OcrError` if that cannot be done here."""
    best = catalog.known_as(name)
    settings = DecodeSettings(max_new_tokens=8)
    attempt = Attempt("warm-up", presets.crop_for(best.preset), settings)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "blank.png"
        Image.new("RGB", (1240, 1754), "white").save(path)  # A4 at 150 dpi
        document, numbers = reader.open(path, "a blank page")
        *_, record = reader.stream(document, numbers, presets.prompt_for(best.task), attempt)
    if isinstance(record, PageRecord) and record.error is not None:
        raise OcrError(record.error)


def file_of(image: Path) -> pathlib.Path:
    """The file `image`, which Cog has fetched. Raises `InputError` for anything else: a plain
    string would be a path inside the container."""
    if image is None:
        raise InputError("image is missing; give a file, an http(s) URL or a data URI.")
    if not isinstance(image, pathlib.Path):
        what = (
            "a file, an http(s) URL or a data URI (put data:image/jpeg;base64, in front of base64)"
        )
        raise InputError(f"image must be {what}; a path inside the container is refused.")
    return image


def chosen_pages(pages: str) -> PageSelection:
    """`pages` as the user writes them; all if empty. Raises `SettingsError` for other words."""
    return parse_pages(pages) if pages.strip() else PageSelection()


def plain_text(password: Secret | None) -> str | None:
    """The password, or None if none was given."""
    return (password.get_secret_value() or None) if password else None


def log_beginning(document: OpenDocument, numbers: Sequence[int]) -> None:
    """Say how many pages are read, and what of an archive is not."""
    pages = f"{document.pages} page{'s' if document.pages > 1 else ''}"
    print(f"reading {len(numbers)} of {pages}", flush=True)
    if document.left_out:
        print(f"left out of the archive, not named like pictures: {document.left_out}", flush=True)


def log_page(record: PageRecord, document: OpenDocument) -> None:
    """One line for a page that is done."""
    place = f"page {record.number} of {document.pages}"
    if record.error is not None or record.counts is None:
        print(f"{place}: failed: {record.error}", flush=True)
        return
    timings = asdict(record.timings) if record.timings else {}
    seconds = sum(one.seconds for one in record.tries) or sum(timings.values())
    tries = f", {len(record.tries)} tries" if len(record.tries) > 1 else ""
    tokens = record.counts.output
    print(f"{place}: {record.finish_reason}, {tokens} tokens, {seconds:.1f} s{tries}", flush=True)


def metrics(records: Sequence[PageRecord]) -> dict[str, int | float | str]:
    """What a prediction reports besides its output: sums over its pages.

    `finish_reason` is the worst of its pages', `confidence` the geometric mean over all tokens,
    `failed_pages` the numbers of the pages that could not be read, `retried_pages` how many took
    more than one try. Raises `OcrError` with the first page's reason if no page could be read.
    """
    failed = [record for record in records if record.error is not None]
    if len(failed) == len(records):
        raise OcrError(failed[0].error)
    read = [record for record in records if record.error is None]
    output = sum(record.counts.output for record in read if record.counts)
    seconds = sum(record.timings.decode for record in read if record.timings)
    values: dict[str, int | float | str] = {
        "pages": len(records),
        "vision_tokens": sum(record.counts.vision for record in read if record.counts),
        "output_tokens": output,
        "tokens_per_second": round(output / max(seconds, 1e-6), 2),
        "finish_reason": max((str(one.finish_reason) for one in read), key=OUTCOMES.index),
    }
    logs = [
        (math.log(max(one.confidence.mean, 1e-30)) * one.counts.output, one.counts.output)
        for one in read
        if one.confidence is not None and one.counts is not None
    ]
    if tokens := sum(count for _, count in logs):
        values["confidence"] = round(math.exp(sum(log for log, _ in logs) / tokens), 4)
    if failed:
        values["failed_pages"] = ",".join(str(record.number) for record in failed)
    if retried := sum(len(record.tries) > 1 for record in read):
        values["retried_pages"] = retried
    return values


def rendered(records: Sequence[PageRecord], output_format: str) -> str:
    """The pages in one of `OUTPUT_FORMATS`; in text a page that failed leaves its place empty."""
    if output_format == "JSON":
        pages: list[dict[str, Any]] = [
            {"source": NAME, **page_data(record, parser.figure_name)} for record in records
        ]
        return json.dumps(document_to_json(pages), ensure_ascii=False)
    if output_format == "Markdown":
        parts = (blocks_in(record.parts) for record in records)
        return PAGE_SPLIT.join(to_markdown(blocks, parser.figure_name) for blocks in parts)
    return PAGE_SPLIT.join(record.text for record in records)
