"""What is told of a job: the events of its document and its pages."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping

from deepseek_ocr.formats.json_document import page_data
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.server.api_errors import ApiError, api_error
from deepseek_ocr.server.jobs.job_database import JobDatabase
from deepseek_ocr.server.jobs.job_queue import JobEvent, JobQueue
from deepseek_ocr.server.jobs.job_store import OcrJob
from deepseek_ocr.server.jobs.region_splitter import RegionFound, RegionText
from deepseek_ocr.server.server_state import ServerState

PageUpdate = RegionFound | RegionText | int
"""What is told of a page while it is read. A number says that the try of this number (from 2)
begins, which makes void what was told before."""


async def history(
    job: OcrJob, queue: JobQueue, database: JobDatabase, state: ServerState
) -> AsyncIterator[JobEvent]:
    """What happened to `job` so far and, while it is being read, what happens, to its end.

    Ends early if the server stops, or nobody took the events for long.
    """
    live = queue.jobs.get(job.id)
    heard: asyncio.Queue[JobEvent | None] = asyncio.Queue()
    missed = []
    if live is not None:
        live.listeners.add(heard)
        missed = [event for page in live.reading.values() for event in page.events]
    try:
        yield opened(job)
        before = set()
        for number in await database.ask(database.store.settled, job.id):
            record = await database.ask(database.store.page, job.id, number)
            before.add(number)
            if record is not None:
                yield done(record)
        for event in missed:
            if event["page"] not in before:
                yield event
        if live is None:
            if end := await _end_of_silent(job, database, state):
                yield end
            return
        while (next_event := await heard.get()) is not None:
            if next_event.get("page") not in before:
                yield next_event
            if next_event["type"] == "document.done":
                return
    finally:
        if live is not None:
            live.listeners.discard(heard)


async def _end_of_silent(job: OcrJob, database: JobDatabase, state: ServerState) -> JobEvent | None:
    """The last event of a job of which nothing more is told."""
    found = await database.find(job.id, job.client)
    if found is not None and found.ended:
        return ended(found.status, await database.counts(found), found.error)
    if found is not None and not state.serves(found.model):
        return not_served(found)
    return None


def reason_of(error: BaseException) -> str:
    """Why a job failed, as its client may see it."""
    if isinstance(error, (OSError, sqlite3.Error)):
        return (
            "What was read could not be kept; the server's disk may be full. Hand the document in "
            "again when there is room."
        )
    return str(api_error(error))


def not_served(job: OcrJob) -> JobEvent:
    """Why nothing more is told of a job whose model is not there."""
    error = ApiError(
        503,
        f"The model {job.model} is not served now; the document waits until it is. DELETE it, or "
        "hand it in for another model.",
        "model_not_served",
    )
    return {"type": "error", **error.body()}


def opened(job: OcrJob) -> JobEvent:
    """The first event of a job."""
    pages = list(job.numbers)
    return {
        "type": "document.opened", "id": job.id, "name": job.file, "kind": job.kind, "pages": pages,
    }  # fmt: skip


def ended(status: str, pages: Mapping[str, int], error: str | None = None) -> JobEvent:
    """The last event of a job, with its counts of pages."""
    return {"type": "document.done", "status": status, "pages": dict(pages), "error": error}


def started(number: int, size: tuple[int, int]) -> JobEvent:
    """Page `number` is being read; `size` are width and height of its picture in pixels."""
    return {"type": "page.started", "page": number, "width": size[0], "height": size[1]}


def update(number: int, found: PageUpdate) -> JobEvent:
    """What was found on page `number` while it is read."""
    if isinstance(found, RegionFound):
        boxes = [list(box) for box in found.boxes]
        return {
            "type": "page.region", "page": number, "order": found.order, "label": found.label,
            "boxes": boxes,
        }  # fmt: skip
    if isinstance(found, RegionText):
        return {"type": "page.delta", "page": number, "order": found.order, "text": found.text}
    return {"type": "page.retried", "page": number, "try": found}


def done(record: PageRecord) -> JobEvent:
    """A page has been read, or never will be."""
    return {"type": "page.done", "page": record.number, "result": page_data(record)}
