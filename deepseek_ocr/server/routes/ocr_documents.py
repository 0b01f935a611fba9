"""`/v1/ocr`: documents, within a request or as jobs.

A document that comes with a request is a job too, which goes with the answer, or with the client.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi import Path as InPath
from starlette.background import BackgroundTask
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from deepseek_ocr.formats import FORMATS
from deepseek_ocr.server.api_errors import ApiError, ClosingError
from deepseek_ocr.server.jobs import job_outputs
from deepseek_ocr.server.jobs.document_options import flag, output_format
from deepseek_ocr.server.jobs.job_intake import take_in
from deepseek_ocr.server.jobs.job_manager import JobManager
from deepseek_ocr.server.jobs.job_store import OcrJob
from deepseek_ocr.server.jobs.uploads import OPENAPI, received
from deepseek_ocr.server.openai.event_streams import unless_hung_up
from deepseek_ocr.server.server_state import CurrentCaller
from deepseek_ocr.server.web.page_nodes import page_blocks

router = APIRouter(prefix="/v1/ocr")

NDJSON = "application/x-ndjson"


async def _jobs_of(request: Request) -> JobManager:
    """Dependency: the documents of this server."""
    found = request.app.state.documents
    if not isinstance(found, JobManager):
        raise ApiError(
            503, "Documents are not read here now. Send pictures to /v1/chat/completions, or ask "
            "whoever runs the server: its log says why.", "no_documents",
        )  # fmt: skip
    return found


Jobs = Annotated[JobManager, Depends(_jobs_of)]
PageNumber = Annotated[int, InPath(ge=1, le=1_000_000)]


async def _job(id: str, jobs: Jobs, caller: CurrentCaller) -> OcrJob:  # noqa: A002 - as in the path
    """Dependency: the job of the path, if it is this client's."""
    found = await jobs.database.find(id, caller.client)
    if found is None:
        raise job_outputs.no_job()
    return found


ClientJob = Annotated[OcrJob, Depends(_job)]


@router.post("", openapi_extra=OPENAPI, response_model=None)
async def read_document(request: Request, jobs: Jobs, caller: CurrentCaller) -> Response:
    """Read a document and answer with it: JSON, another `output_format`, or, with `stream` or
    `Accept: application/x-ndjson`, its events line by line as they happen."""
    async with received(request) as upload:
        accepted = request.headers.get("accept", "")
        streamed = flag(upload.fields, "stream") or NDJSON in accepted
        format_ = output_format(upload.fields)
        job = await take_in(jobs, caller.client, upload, kept=False)
    if streamed:
        return StreamingResponse(_lines(jobs, job), media_type=NDJSON)
    try:
        await unless_hung_up(request.receive, _until_read(jobs, job))
        path = await job_outputs.output_of(jobs, job, format_)
    except BaseException:
        jobs.spawn(jobs.forget(job.id))
        raise
    name = None if format_ == "json" else path.name
    kind = FORMATS[format_].media_type
    gone = BackgroundTask(jobs.forget, job.id)
    return FileResponse(path, media_type=kind, filename=name, background=gone)


@router.post("/jobs", status_code=202, openapi_extra=OPENAPI)
async def add_job(request: Request, jobs: Jobs, caller: CurrentCaller) -> dict[str, Any]:
    """Hand a document in, to be read while nobody waits."""
    async with received(request) as upload:
        job = await take_in(jobs, caller.client, upload, kept=True)
    return job_outputs.status_of(jobs, job, await jobs.counts(job))


@router.get("/jobs")
async def list_jobs(jobs: Jobs, caller: CurrentCaller) -> dict[str, Any]:
    """The client's own jobs, newest first, without their documents."""
    most = 2 * jobs.limits.per_client  # not many more are ever kept
    found = await jobs.database.newest(caller.client, most)
    listed = [job_outputs.status_of(jobs, job, pages) for job, pages in found]
    return {"object": "list", "data": listed}


@router.get("/jobs/{id}", response_model=None)
async def show_job(jobs: Jobs, job: ClientJob) -> Response:
    """How far a job is; with its document as `result` when it is done."""
    status = job_outputs.status_of(jobs, job, await jobs.counts(job))
    if job.status != "done":
        return JSONResponse({**status, "result": None})
    result = job_outputs.result_of(jobs, job, status)
    return StreamingResponse(result, media_type="application/json")


@router.delete("/jobs/{id}")
async def forget_job(jobs: Jobs, job: ClientJob) -> dict[str, Any]:
    """Cancel a job, and forget it with its document and all that was read."""
    await jobs.forget(job.id)
    return {"id": job.id, "object": "ocr.job", "deleted": True}


@router.get("/jobs/{id}/events", response_model=None)
async def follow_job(jobs: Jobs, job: ClientJob) -> Response:
    """What happened to a job from its beginning, and what happens, line by line."""
    return StreamingResponse(_as_lines(jobs, job), media_type=NDJSON)


@router.get("/jobs/{id}/pages/{number}/image", response_model=None)
async def show_picture(jobs: Jobs, job: ClientJob, number: PageNumber) -> Response:
    """A page's picture as JPEG, no side longer than 2000 px."""
    if number not in job.numbers:
        raise _no_page()
    return Response(await job_outputs.picture_of(jobs, job, number), media_type="image/jpeg")


@router.get("/jobs/{id}/pages/{number}/blocks")
async def show_blocks(jobs: Jobs, job: ClientJob, number: PageNumber) -> dict[str, Any]:
    """A finished page's text, formatted, region by region: nested lists, no HTML to be parsed."""
    record = await jobs.database.ask(jobs.store.page, job.id, number)
    if record is None or record.error is not None:
        raise _no_page()
    return {"blocks": await jobs.threads.run(job.id, lambda: page_blocks(record))}


@router.get("/jobs/{id}/output/{output}", response_model=None)
async def show_output(jobs: Jobs, job: ClientJob, output: str) -> Response:
    """A finished document in a format of `deepseek-ocr read --format`, as a file."""
    if output not in FORMATS:
        known = ", ".join(FORMATS)
        raise ApiError(404, f"There is no such format; choose among {known}.", "no_format")
    if job.status != "done":
        message = "The document is not read to its end; see its status."
        raise ApiError(409, message, "job_not_finished")
    path = await job_outputs.output_of(jobs, job, output)
    return FileResponse(path, media_type=FORMATS[output].media_type, filename=path.name)


async def _as_lines(jobs: JobManager, job: OcrJob) -> AsyncIterator[str]:
    async for event in job_outputs.events_of(jobs, job):
        yield json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n"


async def _lines(jobs: JobManager, job: OcrJob) -> AsyncIterator[str]:
    """The events of a document that goes with its request."""
    try:
        async for line in _as_lines(jobs, job):
            yield line
        if jobs.state.closing:
            yield json.dumps({"type": "error", **ClosingError().body()}) + "\n"
    finally:
        jobs.spawn(jobs.forget(job.id))


async def _until_read(jobs: JobManager, job: OcrJob) -> None:
    """Wait for the end of `job`. Raises `ApiError` if it failed, `ClosingError` if the server
    stops first."""
    end: dict[str, Any] = {}
    async for event in job_outputs.events_of(jobs, job):
        end = event
    if end.get("type") != "document.done":
        raise ClosingError
    if end["status"] != "done":
        raise ApiError(500, end["error"] or "The document was cancelled.", "job_failed")


def _no_page() -> ApiError:
    return ApiError(404, "There is no such page, or it has not been read.", "page_not_found")
