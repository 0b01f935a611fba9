"""What is told of a job: the events of its document and its pages."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import asdict

from deepseek_ocr.formats.json_document import page_data
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.server.api_errors import ApiError, api_error
from deepseek_ocr.server.jobs.job_queue import JobEvent
from deepseek_ocr.server.jobs.job_store import OcrJob
from deepseek_ocr.server.jobs.region_splitter import RegionFound, RegionText

PageUpdate = RegionFound | RegionText | int
"""What is told of a page while it is read. A number says that the try of this number (from 2)
begins, which makes void what was told before."""


def reason_of(error: BaseException) -> str:
    """Why a job failed, as its client may see it."""
    if isinstance(error, (OSError, sqlite3.Error)):
        full = "What was read could not be kept; the server's disk may be full."
        return f"{full} Hand the document in again when there is room."
    return str(api_error(error))


def not_served(job: OcrJob) -> JobEvent:
    """Why nothing more is told of a job whose model is not there."""
    error = ApiError(
        503, f"The model {job.model} is not served now; the document waits until it is. DELETE "
        "it, or hand it in for another model.", "model_not_served",
    )  # fmt: skip
    return {"type": "error", **error.body()}


def opened(job: OcrJob) -> JobEvent:
    """The first event of a job."""
    said = {"id": job.id, "name": job.file, "kind": job.kind, "pages": [*job.numbers]}
    return {"type": "document.opened", **said}


def ended(status: str, pages: Mapping[str, int], error: str | None = None) -> JobEvent:
    """The last event of a job, with its counts of pages."""
    return {"type": "document.done", "status": status, "pages": dict(pages), "error": error}


def started(number: int, size: tuple[int, int]) -> JobEvent:
    """Page `number` is being read; `size` are width and height of its picture in pixels."""
    return {"type": "page.started", "page": number, "width": size[0], "height": size[1]}


def update(number: int, found: PageUpdate) -> JobEvent:
    """What was found on page `number` while it is read."""
    if isinstance(found, int):
        return {"type": "page.retried", "page": number, "try": found}
    kind = "page.region" if isinstance(found, RegionFound) else "page.delta"
    return {"type": kind, "page": number, **asdict(found)}


def done(record: PageRecord) -> JobEvent:
    """A page has been read, or never will be."""
    return {"type": "page.done", "page": record.number, "result": page_data(record)}
