"""What is given out of a job: its status, its events, its document, its files, its pictures."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

from deepseek_ocr.documents.plan import Plan, settings_data
from deepseek_ocr.errors import DocumentError, OutputError
from deepseek_ocr.formats import export
from deepseek_ocr.formats.records import DocumentRecord
from deepseek_ocr.server.api_errors import ApiError
from deepseek_ocr.server.jobs import job_events
from deepseek_ocr.server.jobs.job_manager import JobManager
from deepseek_ocr.server.jobs.job_queue import JobEvent
from deepseek_ocr.server.jobs.job_store import OcrJob

_LONGEST_SIDE = 2000
"""Pixels of a page's picture as it is shown beside its text."""


def status_of(jobs: JobManager, job: OcrJob, pages: Mapping[str, int]) -> dict[str, Any]:
    """How a job stands, of which so many `pages` are read, as its client is told."""
    live = jobs.queue.jobs.get(job.id)
    begun = pages["read"] + pages["failed"] > 0 or (live is not None and live.reading)
    return {
        "id": job.id, "object": "ocr.job",
        "status": "running" if job.status == "queued" and begun else job.status,
        "name": job.file, "created_at": int(job.created),
        "expires_at": int(job.created + jobs.limits.hours * 3600),
        "pages": dict(pages), "error": job.error,
    }  # fmt: skip


async def events_of(jobs: JobManager, job: OcrJob) -> AsyncIterator[JobEvent]:
    """What happened to `job` so far and, while it is being read, what happens, to its end. Ends
    early if the server stops, or the events were not taken for long."""
    live = jobs.queue.jobs.get(job.id)
    heard: asyncio.Queue[JobEvent | None] = asyncio.Queue()
    missed = []
    if live is not None:
        live.listeners.add(heard)
        missed = [event for page in live.reading.values() for event in page.events]
    try:
        yield job_events.opened(job)
        before = set()
        for number in await jobs.database.ask(jobs.store.settled, job.id):
            record = await jobs.database.ask(jobs.store.page, job.id, number)
            before.add(number)
            if record is not None:
                yield job_events.done(record)
        for event in missed:
            if event["page"] not in before:
                yield event
        if live is None:
            if end := await _end_of_silent(jobs, job):
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


async def _end_of_silent(jobs: JobManager, job: OcrJob) -> JobEvent | None:
    """The last event of a job of which nothing more is told."""
    found = await jobs.database.find(job.id, job.client)
    if found is not None and found.status in ("done", "failed"):
        return job_events.ended(found.status, await jobs.counts(found), found.error)
    if found is not None and not jobs.state.serves(found.model):
        return job_events.not_served(found)
    return None


def result_of(jobs: JobManager, job: OcrJob, status: Mapping[str, Any]) -> Iterator[str]:
    """The `status` of a job that is done, with its document, as pieces of JSON. Raises
    `SettingsError` at once if its fields no longer make a plan."""
    document = _document(jobs, job, jobs.runner.plan(job))
    head = json.dumps(status, ensure_ascii=False)[:-1] + ', "result": '
    return chain([head], export.text_of(document, "json", jobs.store.outputs(job)), ["}\n"])


async def output_of(jobs: JobManager, job: OcrJob, output: str) -> Path:
    """A file of a finished document; made once. Raises `ApiError` if it cannot be."""
    async with jobs.threads.writing(job.id):
        return await jobs.threads.run(
            job.id, lambda: _write(jobs, job, output), jobs.threads.outputs
        )


async def picture_of(jobs: JobManager, job: OcrJob, number: int) -> bytes:
    """A page's picture as JPEG. Raises `ApiError` 404 if there is none."""
    plan = jobs.runner.plan(job)

    def make() -> bytes:
        image = jobs.runner.render(job, plan, number).image
        image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
        stream = BytesIO()
        image.save(stream, "JPEG", quality=85)
        return stream.getvalue()

    try:
        return await jobs.threads.run(job.id, make, jobs.threads.rendering)
    except DocumentError as error:
        raise ApiError(404, str(error), "no_picture") from error


def no_job() -> ApiError:
    """The answer to a name that is no job of this client's."""
    return ApiError(404, "There is no such job, or it has been forgotten.", "job_not_found")


def _write(jobs: JobManager, job: OcrJob, output: str) -> Path:
    """Make a file of a finished document. For a thread."""
    plan = jobs.runner.plan(job)
    if not jobs.store.has(job.id):  # nothing may be put where it was
        raise no_job()
    try:
        written = export.write(
            _document(jobs, job, plan), (output,), jobs.store.outputs(job),
            lambda number: jobs.runner.render(job, plan, number).image,
            plan.options, plan.password,
        )  # fmt: skip
    except OutputError as error:  # its cause says what the client may see
        raise error.__cause__ or error from None
    if not jobs.store.has(job.id):
        raise no_job()
    return written.files[0]


def _document(jobs: JobManager, job: OcrJob, plan: Plan) -> DocumentRecord:
    return DocumentRecord(
        name=Path(job.file).stem, source=jobs.store.upload(job), kind=job.kind,
        pages=jobs.store.pages(job), settings=settings_data(plan, plan.render),
    )  # fmt: skip
