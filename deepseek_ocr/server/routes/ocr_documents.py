"""`/v1/ocr`: documents, within a request or as jobs.

A document that comes with a request is a job too, which goes with the answer, or with the client.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi import Path as InPath
from platformdirs import user_state_path
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from deepseek_ocr.documents.pipeline import settings_data
from deepseek_ocr.documents.renderer import Renderer
from deepseek_ocr.errors import DocumentError, OutputError, SettingsError
from deepseek_ocr.formats import export
from deepseek_ocr.formats.records import DocumentRecord
from deepseek_ocr.server.api_errors import ApiError, ClosingError
from deepseek_ocr.server.jobs.document_options import DocumentPlan, flag, output_format
from deepseek_ocr.server.jobs.job_manager import Jobs
from deepseek_ocr.server.jobs.job_store import Job, JobStore, now
from deepseek_ocr.server.jobs.uploads import OPENAPI, Upload, received
from deepseek_ocr.server.observability import logs
from deepseek_ocr.server.security.api_keys import client_of
from deepseek_ocr.server.server_state import ServerState
from deepseek_ocr.server.web.page_nodes import page_blocks

router = APIRouter(prefix="/v1/ocr", dependencies=[Depends(client_of)])

NDJSON = "application/x-ndjson"

_MEDIA = {
    "md": "text/markdown", "html": "text/html", "json": "application/json", "txt": "text/plain",
    "mmd": "text/markdown", "pdf": "application/pdf", "searchable-pdf": "application/pdf",
    "regions": NDJSON,
}  # fmt: skip

_LONGEST_SIDE = 2000
"""Pixels of a page's picture as it is shown beside its text."""

_LEAVING_S = 5.0
"""Seconds for pages to end after the server has given them up."""

_HANG_UP_S = 0.25
"""Seconds between looks at whether the client is still there."""


# --- for the application ------------------------------------------------------------------------


@asynccontextmanager
async def documents_of(app: FastAPI, state: ServerState) -> AsyncIterator[None]:
    """Read documents while the application runs.

    Where their folder cannot be had the server runs without them, and its log says why.
    """
    folder = Path(state.server.jobs_folder or user_state_path("deepseek-ocr") / "jobs")
    try:
        store = await asyncio.to_thread(JobStore, folder.expanduser())
    except SettingsError as error:
        logs.event(f"no documents will be read: {error}")
        app.state.documents = None
        yield
        return
    workers = max(1, min(4, (os.cpu_count() or 1) // 2))
    with Renderer(workers=workers) as renderer:
        app.state.documents = jobs = Jobs(state, store, renderer)
        await jobs.take_over()
        running = asyncio.create_task(jobs.run())
        try:
            yield
            await _end_pages(jobs, running)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await jobs.stop()
            store.close()


async def _end_pages(jobs: Jobs, running: asyncio.Task[None]) -> None:
    """Let the pages that are being read come to their end; a second signal drops them.

    The server gives them up after its `shutdown_seconds`.
    """
    if jobs.in_flight:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError, ValueError):  # no signals in a thread
                loop.add_signal_handler(number, running.cancel)
        logs.event("ending pages of documents", pages=jobs.in_flight)
    await asyncio.wait({running}, timeout=jobs.state.server.shutdown_seconds + _LEAVING_S)


async def _jobs_of(request: Request) -> Jobs:
    """Dependency: the documents of this server."""
    found = request.app.state.documents
    if not isinstance(found, Jobs):
        raise ApiError(
            503,
            "Documents are not read here now. Send pictures to /v1/chat/completions, or ask "
            "whoever runs the server: its log says why.",
            "no_documents",
        )
    return found


JobsHere = Annotated[Jobs, Depends(_jobs_of)]
Client = Annotated[str, Depends(client_of)]
PageNumber = Annotated[int, InPath(ge=1, le=1_000_000)]


async def _job(id: str, jobs: JobsHere, client: Client) -> Job:  # noqa: A002 - as in the path
    """Dependency: the job of the path, if it is this client's."""
    found = await jobs.find(id, client)
    if found is None:
        raise _no_job()
    return found


JobHere = Annotated[Job, Depends(_job)]


# --- routes -------------------------------------------------------------------------------------


@router.post("", openapi_extra=OPENAPI, response_model=None)
async def read_document(request: Request, jobs: JobsHere, client: Client) -> Response:
    """Read a document and answer with it: JSON, another `output_format`, or, with `stream` or
    `Accept: application/x-ndjson`, its events line by line as they happen."""
    async with received(request) as upload:
        streamed = flag(upload.fields, "stream", False) or NDJSON in request.headers.get(
            "accept", ""
        )
        format_ = output_format(upload.fields)
        job = await _take_in(jobs, client, upload, kept=False)
    if streamed:
        return StreamingResponse(_lines(jobs, job), media_type=NDJSON)
    try:
        await _until_read(request, jobs, job)
        path = await _written(jobs, job, format_)
    except BaseException:
        _forget_soon(jobs, job)
        raise
    gone = BackgroundTask(jobs.forget, job.id)
    if format_ == "json":
        return FileResponse(path, media_type=_MEDIA[format_], background=gone)
    return FileResponse(path, media_type=_MEDIA[format_], filename=path.name, background=gone)


@router.post("/jobs", status_code=202, openapi_extra=OPENAPI)
async def add_job(request: Request, jobs: JobsHere, client: Client) -> dict[str, Any]:
    """Hand a document in, to be read while nobody waits."""
    async with received(request) as upload:
        job = await _take_in(jobs, client, upload, kept=True)
    return _status(jobs, job, await jobs.counts(job))


@router.get("/jobs")
async def list_jobs(jobs: JobsHere, client: Client) -> dict[str, Any]:
    """The client's own jobs, newest first, without their documents."""
    found = await jobs.newest(client)
    return {"object": "list", "data": [_status(jobs, job, pages) for job, pages in found]}


@router.get("/jobs/{id}", response_model=None)
async def show_job(jobs: JobsHere, job: JobHere) -> Response:
    """How far a job is; with its document as `result` when it is done."""
    status = _status(jobs, job, await jobs.counts(job))
    if job.status != "done":
        return JSONResponse({**status, "result": None})
    document, _ = _document(jobs, job)

    def pieces() -> Iterator[str]:
        yield json.dumps(status, ensure_ascii=False)[:-1] + ', "result": '
        yield from export.text_of(document, "json", jobs.store.outputs(job))
        yield "}\n"

    return StreamingResponse(pieces(), media_type="application/json")


@router.delete("/jobs/{id}")
async def forget_job(jobs: JobsHere, job: JobHere) -> dict[str, Any]:
    """Cancel a job, and forget it with its document and all that was read."""
    await jobs.forget(job.id)
    return {"id": job.id, "object": "ocr.job", "deleted": True}


@router.get("/jobs/{id}/events", response_model=None)
async def follow_job(jobs: JobsHere, job: JobHere) -> Response:
    """What happened to a job from its beginning, and what happens, line by line."""
    return StreamingResponse(_as_lines(jobs, job), media_type=NDJSON)


@router.get("/jobs/{id}/pages/{number}/image", response_model=None)
async def show_picture(jobs: JobsHere, job: JobHere, number: PageNumber) -> Response:
    """A page's picture as JPEG, no side longer than 2000 px."""
    if number not in job.numbers:
        raise _no_page()
    plan = jobs.plan(job)
    try:
        data = await jobs.in_thread(job.id, lambda: _jpeg(jobs, job, plan, number), jobs.rendering)
    except DocumentError as error:
        raise ApiError(404, str(error), "no_picture") from error
    return Response(data, media_type="image/jpeg")


@router.get("/jobs/{id}/pages/{number}/blocks")
async def show_blocks(jobs: JobsHere, job: JobHere, number: PageNumber) -> dict[str, Any]:
    """A finished page's text, formatted, region by region: nested lists, no HTML to be parsed."""
    record = await jobs.in_database(lambda: jobs.store.page(job.id, number))
    if record is None or record.error is not None:
        raise _no_page()
    return {"blocks": await jobs.in_thread(job.id, lambda: page_blocks(record))}


@router.get("/jobs/{id}/output/{output}", response_model=None)
async def show_output(jobs: JobsHere, job: JobHere, output: str) -> Response:
    """A finished document in a format of `deepseek-ocr read --format`, as a file."""
    if output not in _MEDIA:
        known = ", ".join(_MEDIA)
        raise ApiError(404, f"There is no such format; choose among {known}.", "no_format")
    if job.status != "done":
        raise ApiError(
            409, "The document is not read to its end; see its status.", "job_not_finished"
        )
    path = await _written(jobs, job, output)
    return FileResponse(path, media_type=_MEDIA[output], filename=path.name)


# --- taking in ----------------------------------------------------------------------------------


async def _take_in(jobs: Jobs, client: str, upload: Upload, kept: bool) -> Job:
    """A job of what was handed in, which waits for its turn. Raises `ApiError` and `InputError`."""
    if jobs.state.closing:
        raise ClosingError
    await _check_room(jobs, client)
    limits, began = jobs.limits, now()
    model = upload.fields.get("model") or next(iter(jobs.state.names))
    job = Job(
        id=f"ocr-{secrets.token_hex(16)}", client=client, created=began,
        deadline=None if kept else began + limits.request_seconds, kept=kept, status="queued",
        error=None, model=model, file=upload.name, kind="image", numbers=(),
        fields=jobs.fields_for(model, upload.fields),
    )  # fmt: skip
    plan = jobs.plan(job)  # before anything is written
    jobs.state.pool_for(model)
    try:
        return await _begun(jobs, job, upload, plan)
    except BaseException as error:
        await asyncio.shield(jobs.forget(job.id))
        if isinstance(error, (OSError, sqlite3.Error)):
            logs.failure("a document could not be kept; look at the disk", error, job=job.id)
            raise ApiError(
                503,
                "The document could not be kept; the server's disk may be full. Try again later.",
                "not_kept",
            ) from error
        raise


async def _begun(jobs: Jobs, job: Job, upload: Upload, plan: DocumentPlan) -> Job:
    job = await jobs.in_thread(job.id, lambda: _opened(jobs, job, upload, plan), jobs.rendering)
    await jobs.in_database(lambda: jobs.store.add(job))
    await jobs.begin(job)
    return job


async def _check_room(jobs: Jobs, client: str) -> None:
    everybody, own = await jobs.in_database(lambda: jobs.store.unread(client))
    if own >= jobs.limits.per_client:
        raise _no_room(
            f"{own} of your documents wait here to be read, and no more may.",
            jobs.seconds_to_room(client),
        )
    if everybody >= jobs.limits.total:
        raise _no_room(
            f"{everybody} documents wait here to be read, and no more may.",
            jobs.seconds_to_room(None),
        )


def _no_room(reason: str, seconds: int) -> ApiError:
    error = ApiError(
        429,
        f"{reason} Try again after the seconds in Retry-After, or DELETE one of yours.",
        "too_many_documents",
    )
    error.headers = {"retry-after": str(seconds)}
    return error


def _opened(jobs: Jobs, job: Job, upload: Upload, plan: DocumentPlan) -> Job:
    """Write the upload, open it, choose its pages. For a thread."""
    path = jobs.store.upload(job)
    path.parent.mkdir(parents=True)
    upload.write(path)
    try:
        opened = jobs.renderer.using(plan.render).open(path, plan.plan.password, job.file)
    except DocumentError as error:
        raise ApiError(400, str(error), "bad_document", "file") from error
    numbers = plan.plan.pages.of(opened.pages)
    most = jobs.limits.pages if job.kept else jobs.limits.request_pages
    if not numbers:
        raise ApiError(
            400, f"The document has {opened.pages} pages and none of those.", "no_pages", "pages"
        )
    if len(numbers) > most:
        raise ApiError(
            413,
            f"These are {len(numbers)} pages and {most} are the most here; "
            + ("choose some with pages." if job.kept else "use /v1/ocr/jobs, or choose some."),
            "too_many_pages",
            "pages",
        )
    return replace(job, kind=opened.kind, numbers=tuple(numbers))


# --- giving out ---------------------------------------------------------------------------------


def _status(jobs: Jobs, job: Job, pages: Mapping[str, int]) -> dict[str, Any]:
    begun = pages["read"] + pages["failed"] > 0 or jobs.is_being_read(job.id)
    return {
        "id": job.id,
        "object": "ocr.job",
        "status": "running" if job.status == "queued" and begun else job.status,
        "name": job.file,
        "created_at": int(job.created),
        "expires_at": int(job.created + jobs.limits.hours * 3600),
        "pages": dict(pages),
        "error": job.error,
    }


async def _as_lines(jobs: Jobs, job: Job) -> AsyncIterator[str]:
    async for event in jobs.events(job):
        yield json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"


async def _lines(jobs: Jobs, job: Job) -> AsyncIterator[str]:
    """The events of a document that goes with its request."""
    try:
        async for line in _as_lines(jobs, job):
            yield line
        if jobs.state.closing:
            yield json.dumps({"type": "error", **ClosingError().body()}) + "\n"
    finally:
        _forget_soon(jobs, job)


def _forget_soon(jobs: Jobs, job: Job) -> None:
    """Forget a job from where nothing can be waited for, because the client has left."""
    jobs.spawn(jobs.forget(job.id))


async def _until_read(request: Request, jobs: Jobs, job: Job) -> None:
    """Wait for the end of `job`. Raises `ApiError` where it failed, `ClosingError` where the server
    stops first; ends it where the client leaves."""
    end: dict[str, Any] = {}

    async def follow() -> None:
        async for event in jobs.events(job):
            end.update(event)

    following = asyncio.create_task(follow())
    try:
        while not following.done():
            await asyncio.wait({following}, timeout=_HANG_UP_S)
            if await request.is_disconnected():
                raise ApiError(499, "The client has left.", "client_left")
        await following
    finally:
        following.cancel()
    if end.get("type") != "document.done":
        raise ClosingError
    if end["status"] != "done":
        raise ApiError(500, end["error"] or "The document was cancelled.", "job_failed")


async def _written(jobs: Jobs, job: Job, output: str) -> Path:
    """A file of a finished document; made once. Raises `ApiError` where it cannot be."""
    async with jobs.writing(job.id):
        document, plan = _document(jobs, job)
        folder = jobs.store.outputs(job)

        def write() -> Path:
            if not jobs.store.has(job.id):  # nothing may be put where it was
                raise _no_job()
            try:
                written = export.write(
                    document, (output,), folder,
                    lambda number: jobs.render(job, plan, number).image,
                    join_tables=plan.plan.join_tables, password=plan.plan.password,
                    existing_text=plan.plan.existing_text, formulas=plan.plan.formulas,
                )  # fmt: skip
            except OutputError as error:  # its cause says what the client may see
                raise error.__cause__ or error from None
            if not jobs.store.has(job.id):
                raise _no_job()
            return written.files[0]

        return await jobs.in_thread(job.id, write, jobs.outputs)


def _document(jobs: Jobs, job: Job) -> tuple[DocumentRecord, DocumentPlan]:
    plan = jobs.plan(job)
    record = DocumentRecord(
        name=Path(job.file).stem,
        source=jobs.store.upload(job),
        kind=job.kind,
        pages=jobs.store.pages(job),
        settings=settings_data(plan.plan, plan.render),
    )
    return record, plan


def _jpeg(jobs: Jobs, job: Job, plan: DocumentPlan, number: int) -> bytes:
    image = jobs.render(job, plan, number).image
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    stream = BytesIO()
    image.save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _no_job() -> ApiError:
    return ApiError(404, "There is no such job, or it has been forgotten.", "job_not_found")


def _no_page() -> ApiError:
    return ApiError(404, "There is no such page, or it has not been read.", "page_not_found")
