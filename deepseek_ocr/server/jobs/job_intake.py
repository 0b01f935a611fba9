"""A document that is handed in becomes a job, if there is room."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import replace

from deepseek_ocr.documents.plan import Plan
from deepseek_ocr.errors import DocumentError
from deepseek_ocr.server.api_errors import ApiError, ClosingError
from deepseek_ocr.server.jobs.document_options import with_defaults
from deepseek_ocr.server.jobs.job_manager import JobManager
from deepseek_ocr.server.jobs.job_store import OcrJob
from deepseek_ocr.server.jobs.uploads import Upload
from deepseek_ocr.server.observability import logs
from deepseek_ocr.server.server_state import ServerState
from deepseek_ocr.weights import catalog


async def take_in(jobs: JobManager, client: str, upload: Upload, kept: bool) -> OcrJob:
    """A job of what was handed in, which waits for its turn. Raises `ApiError` and `InputError`."""
    if jobs.state.closing:
        raise ClosingError
    await _check_room(jobs, client)
    began = time.time()
    model = upload.fields.get("model") or next(iter(jobs.state.names))
    job = OcrJob(
        id=f"ocr-{secrets.token_hex(16)}", client=client, created=began,
        deadline=None if kept else began + jobs.limits.request_seconds, kept=kept, status="queued",
        error=None, model=model, file=upload.name, kind="image", numbers=(),
        fields=_fields_for(jobs.state, model, upload.fields),
    )  # fmt: skip
    plan = jobs.runner.plan(job)  # before anything is written
    jobs.state.pool_for(model)
    try:
        job = await jobs.threads.run(
            job.id, lambda: _opened(jobs, job, upload, plan), jobs.threads.rendering
        )
        await jobs.database.ask(jobs.store.add, job)
        await jobs.begin(job)
        return job
    except BaseException as error:
        await asyncio.shield(jobs.forget(job.id))
        if isinstance(error, (OSError, sqlite3.Error)):
            logs.failure("a document could not be kept; look at the disk", error, job=job.id)
            full = "The document could not be kept; the server's disk may be full."
            raise ApiError(503, f"{full} Try again later.", "not_kept") from error
        raise


def _fields_for(state: ServerState, model: str, given: Mapping[str, str]) -> dict[str, str]:
    """All fields that decide how a document is read by `model`; a client gave some of them. Raises
    `ApiError` if the model is not served."""
    name, preset = state.check_name(model)
    own = {"existing_text": state.settings.existing_text, "formulas": state.settings.formulas}
    fields = {**own, **({"resolution": preset} if preset else {}), **given, "model": model}
    return with_defaults(fields, catalog.known_as(state.names[name]))


async def _check_room(jobs: JobManager, client: str) -> None:
    everybody, own = await jobs.database.ask(jobs.store.unread, client)
    too_many_own = own >= jobs.limits.per_client
    if not too_many_own and everybody < jobs.limits.total:
        return
    waiting = f"{own} of your documents" if too_many_own else f"{everybody} documents"
    error = ApiError(
        429, f"{waiting} wait here to be read, and no more may. Try again after the seconds in "
        "Retry-After, or DELETE one of yours.", "too_many_documents",
    )  # fmt: skip
    seconds = jobs.queue.seconds_to_room(client if too_many_own else None, jobs.in_flight)
    error.headers = {"retry-after": str(seconds)}
    raise error


def _opened(jobs: JobManager, job: OcrJob, upload: Upload, plan: Plan) -> OcrJob:
    """Write the upload, open it, choose its pages. For a thread."""
    path = jobs.store.upload(job)
    path.parent.mkdir(parents=True)
    upload.write(path)
    try:
        opened = jobs.runner.renderer.using(plan.render).open(path, plan.password, job.file)
    except DocumentError as error:
        raise ApiError(400, str(error), "bad_document", "file") from error
    numbers = plan.pages.of(opened.pages)
    most = jobs.limits.pages if job.kept else jobs.limits.request_pages
    if not numbers:
        message = f"The document has {opened.pages} pages and none of those."
        raise ApiError(400, message, "no_pages", "pages")
    if len(numbers) > most:
        advice = "choose some with pages." if job.kept else "use /v1/ocr/jobs, or choose some."
        message = f"These are {len(numbers)} pages and {most} are the most here; {advice}"
        raise ApiError(413, message, "too_many_pages", "pages")
    return replace(job, kind=opened.kind, numbers=tuple(numbers))
