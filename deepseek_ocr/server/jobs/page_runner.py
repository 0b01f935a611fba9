"""One page of a job: rendered, read by as many tries as it needs, its text told while it comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from deepseek_ocr.documents.page_retries import ReadPage, read_page, record_of
from deepseek_ocr.documents.plan import Plan
from deepseek_ocr.documents.renderer import OpenDocument, Rendered, Renderer
from deepseek_ocr.engine.results import Failure, Page, Reading
from deepseek_ocr.errors import DeviceError, DocumentError
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.server.api_errors import RETRY_AFTER, ClosingError, QueueFullError
from deepseek_ocr.server.jobs import job_events
from deepseek_ocr.server.jobs.document_options import document_plan
from deepseek_ocr.server.jobs.job_queue import LiveJob
from deepseek_ocr.server.jobs.job_store import JobStore, OcrJob
from deepseek_ocr.server.jobs.job_threads import JobThreads
from deepseek_ocr.server.jobs.region_splitter import Splitter
from deepseek_ocr.server.queueing.model_pools import ModelPool
from deepseek_ocr.server.queueing.page_streams import stream_pages
from deepseek_ocr.server.server_state import ServerState
from deepseek_ocr.settings import Attempt

Tell = Callable[[job_events.PageUpdate], None]


@dataclass(frozen=True)
class PageRunner:
    """Renders and reads the pages of the jobs in `store`; each try takes a turn in the queue."""

    state: ServerState
    store: JobStore
    renderer: Renderer
    threads: JobThreads

    def plan(self, job: OcrJob) -> Plan:
        """How a job is read, and written, also if its model is not served any more."""
        return document_plan(job.fields, self.state.server)

    def render(self, job: OcrJob, plan: Plan, number: int) -> Rendered:
        """The picture of a page; any thread may call. Raises `DocumentError`."""
        document = OpenDocument(
            self.store.upload(job), plan.password, job.kind, number, 0, job.file
        )
        return self.renderer.using(plan.render).render(document, number)

    async def record(self, live: LiveJob, number: int) -> PageRecord:
        """The record of page `number`, read or failed; its events are told to `live`.

        Cancelling the task ends it within a token. Raises `ClosingError` if the server stops before
        it is read. A page during which a device fails has failed: it may be what the device failed
        of, and must not end every server that is started for it.
        """
        job = live.job
        pool, _ = self.state.pool_for(job.model)
        plan = self.plan(job)
        if job.deadline is not None and time.time() > job.deadline:
            late = "The time for the document was over; hand it in as a job instead."
            return PageRecord(number, error=late)
        try:
            rendered = await self.threads.run(
                job.id, lambda: self.render(job, plan, number), self.threads.rendering
            )
        except DocumentError as error:
            return PageRecord(number, error=str(error))
        live.tell_of_page(job_events.started(number, rendered.image.size))
        page = ReadPage(number, rendered)

        def tell(update: job_events.PageUpdate) -> None:
            live.tell_of_page(job_events.update(number, update))

        async def read(attempt: Attempt) -> Reading | Failure:
            if page.tries:
                tell(len(page.tries) + 1)
            image = Page(rendered.image, plan.prompt, attempt.crop, attempt.decode)
            return await self._read(pool, job.client, image, tell)

        await read_page(page, plan.attempts, read)
        return await self.threads.run(
            job.id, lambda: record_of(page, number, self.store.outputs(job))
        )

    async def _read(
        self, pool: ModelPool, client: str, page: Page, tell: Tell
    ) -> Reading | Failure:
        while True:
            splitter = Splitter()
            try:
                with stream_pages(pool, client, [page]) as (stream,):
                    async for event in stream.events():
                        if isinstance(event, Reading):
                            for rest in splitter.finish():
                                tell(rest)
                            return event
                        for found in splitter.feed(event.text):
                            tell(found)
            except QueueFullError:  # others are to be told of that: this page was taken in already
                await asyncio.sleep(RETRY_AFTER)
            except ClosingError:
                raise
            except Exception as error:  # every page that goes in comes out
                if self.state.closing and not isinstance(error, DeviceError):  # stopped under it
                    raise ClosingError from error
                return Failure(error)
            else:
                raise AssertionError("an engine ends with a reading")
