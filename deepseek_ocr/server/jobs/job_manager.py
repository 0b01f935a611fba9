"""The jobs of a server, from the first page to the last: begun, followed, forgotten.

A job waits with its pages; as many are taken up at once as the engines hold and one more.
Everything here belongs to the event loop, unless it says otherwise.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from deepseek_ocr.documents.renderer import Renderer
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.server.api_errors import ClosingError
from deepseek_ocr.server.jobs import job_events
from deepseek_ocr.server.jobs.job_queue import JobQueue, LiveJob, PageTask
from deepseek_ocr.server.jobs.job_store import JobStore, OcrJob, counts_of
from deepseek_ocr.server.jobs.job_threads import JobDatabase, JobThreads
from deepseek_ocr.server.jobs.page_runner import PageRunner
from deepseek_ocr.server.observability import logs
from deepseek_ocr.server.server_state import ServerState

_LOOK_S = 0.2
"""Seconds between looks at whether the server is loading, or stopping."""

_LOOKS_A_TIDYING = 300
"""Looks after which what is old is forgotten: a minute."""

_LEAVING_S = 5.0
"""Seconds for pages to end after the server has given them up."""


@dataclass(frozen=True)
class JobLimits:
    """What is too much. As many documents that ended are kept as may wait or be read at once
    (`per_client`, `total`), the newest."""

    request_pages: int = 100  # of a document read within one request
    request_seconds: float = 1800.0
    pages: int = 2000  # of a job
    per_client: int = 50
    total: int = 200
    hours: float = 24.0  # after which a job that ended is forgotten

    def oldest(self) -> float:
        """Seconds since 1970: what ended and came before is forgotten."""
        return time.time() - self.hours * 3600


class JobManager:
    """The documents of a server."""

    def __init__(self, state: ServerState, store: JobStore, renderer: Renderer) -> None:
        self.state, self.store, self.limits = state, store, JobLimits()
        self.database = JobDatabase(store)
        self.threads = JobThreads(renderer.workers)
        self.queue = JobQueue()
        self.runner = PageRunner(state, store, renderer, self.threads)
        self._pages: set[asyncio.Task[None]] = set()
        self._errands: set[asyncio.Task[None]] = set()

    @property
    def in_flight(self) -> int:
        """Pages that are being read."""
        return len(self._pages)

    # --- from start to stop ---------------------------------------------------------------------

    async def take_over(self) -> None:
        """Go on with what an earlier server left, before any request comes."""
        for gone in await self.database.ask(self.store.tidy, self.limits.oldest()):
            logs.event("job forgotten", job=gone)
        for job in await self.database.ask(self.store.unfinished):
            if not self.state.serves(job.model):
                logs.event("job waits for a server with its model", job=job.id, model=job.model)
                continue
            logs.event("job goes on", job=job.id)
            await self.begin(job)

    async def run(self) -> None:
        """Read pages once the models are there, and forget what is old, until the server stops."""
        looks = 0
        try:
            while not self.state.closing:
                self._take_up()
                looks += 1
                if looks % _LOOKS_A_TIDYING == 0:
                    await self.tidy()
                await asyncio.sleep(_LOOK_S)
            while self._pages:
                await asyncio.wait(self._pages)
            self.queue.end_listening()
        except Exception as error:
            logs.failure("documents are no longer read; restart the server", error)

    async def tidy(self) -> None:
        """Forget what is old, and tell the database what it did not take before."""
        try:
            await self.database.tell_again()
            for gone in await self.database.ask(self.store.expired, self.limits.oldest()):
                await self.forget(gone)
        except Exception as error:  # reading goes on, and this is tried again
            logs.failure("old documents could not be forgotten", error)

    async def stop(self) -> None:
        """End the pages that are still being read; they will be read again by the next server."""
        for task in self._pages:
            task.cancel()
        if self._pages:
            await asyncio.wait(self._pages)
        self.queue.end_listening()
        if self._errands:
            await asyncio.wait(self._errands)
        self.runner.renderer.close()  # or threads wait for pages that are not wanted any more
        self.threads.close()
        self.database.close()

    # --- jobs -----------------------------------------------------------------------------------

    async def begin(self, job: OcrJob) -> None:
        """Read what is left of `job`, which is in the store, when its turn comes."""
        settled = await self.database.ask(self.store.settled, job.id)
        todo = deque(number for number in job.numbers if number not in settled)
        live = LiveJob(job, todo, settled)
        self.queue.add(live)
        if live.todo:
            self._take_up()
        else:
            await self._finish(live)

    async def counts(self, job: OcrJob) -> dict[str, int]:
        """How far it is: pages in all, read, failed."""
        if live := self.queue.jobs.get(job.id):
            return live.counts()
        settled = await self.database.ask(self.store.settled, job.id)
        return counts_of(job, len(settled), sum(settled.values()))

    async def forget(self, job: str) -> None:
        """Cancel a job if it is being read, and forget it with its files."""
        live = self.queue.jobs.pop(job, None)
        if live is not None:
            if tasks := live.cancel():
                await asyncio.wait(tasks)
            live.tell(job_events.ended("cancelled", live.counts()))
        await self.database.end(job, None)  # first: a thread at its outputs stops soon
        await self.threads.finish(job)  # it would put files where some were removed
        await self.threads.run(job, lambda: self.store.clear(job))

    def spawn(self, errand: Coroutine[Any, Any, None]) -> None:
        """Run something to its end without waiting for it."""
        task = asyncio.create_task(_logged(errand))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def _finish(self, live: LiveJob) -> None:
        await self.database.ask(self.store.set_status, live.job.id, "done")
        if self.queue.jobs.pop(live.job.id, None):
            live.tell(job_events.ended("done", live.counts()))
            self.spawn(self._forget_surplus())

    async def _fail(self, live: LiveJob, error: BaseException) -> None:
        """End a job of which nothing more can be read or kept; its listeners get the last event."""
        reason = job_events.reason_of(error)
        if self.queue.jobs.pop(live.job.id, None) is None:
            return
        live.cancel()
        await self.database.end(live.job.id, reason)
        live.tell(job_events.ended("failed", live.counts(), reason))
        self.spawn(self._forget_surplus())

    async def _forget_surplus(self) -> None:
        limits = self.limits
        for gone in await self.database.ask(self.store.surplus, limits.per_client, limits.total):
            logs.event("job forgotten", job=gone)
            await self.forget(gone)

    # --- pages ----------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Begin as many pages as are to be read at once."""
        slots = sum(engine.slots for engine in self.state.engines)
        while self.state.ready and len(self._pages) <= slots:
            found = self.queue.next_page()
            if found is None:
                return
            live, number = found
            task = asyncio.create_task(self._read(live, number))
            live.reading[number] = PageTask(task)
            self._pages.add(task)
            task.add_done_callback(self._pages.discard)

    async def _read(self, live: LiveJob, number: int) -> None:
        """Read one page, keep it, and end its job if it was the last."""
        began = time.monotonic()
        try:
            record = await self.runner.record(live, number)
            await self.database.ask(self.store.keep, live.job.id, record)
            self.queue.count_page(time.monotonic() - began)
            live.settled[number] = record.error is not None
            live.reading.pop(number)
            live.tell(job_events.done(record))
            unread = live.todo or live.reading
            if not unread and self.queue.jobs.get(live.job.id) is live:
                await self._finish(live)
        except (ClosingError, asyncio.CancelledError):  # it will be read after the restart
            live.reading.pop(number, None)
        except Exception as error:
            logs.failure("job failed", error, job=live.job.id)
            await self._fail(live, error)
        asyncio.get_running_loop().call_soon(self._take_up)


async def _logged(errand: Coroutine[Any, Any, None]) -> None:
    try:
        await errand
    except Exception as error:
        logs.failure("something about documents could not be done", error)


@asynccontextmanager
async def running_jobs(state: ServerState) -> AsyncIterator[JobManager | None]:
    """The jobs of a server, which are read until the block ends. None if their folder cannot be
    had: the server then runs without them, and its log says why."""
    folder = Path(state.server.jobs_folder or user_state_path("deepseek-ocr") / "jobs")
    try:
        store = await asyncio.to_thread(JobStore, folder.expanduser())
    except SettingsError as error:
        logs.event(f"no documents will be read: {error}")
        yield None
        return
    workers = max(1, min(4, (os.cpu_count() or 1) // 2))
    with Renderer(workers=workers) as renderer:
        jobs = JobManager(state, store, renderer)
        await jobs.take_over()
        running = asyncio.create_task(jobs.run())
        try:
            yield jobs
            await _end_pages(jobs, running)
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await jobs.stop()
            store.close()


async def _end_pages(jobs: JobManager, running: asyncio.Task[None]) -> None:
    """Let the pages that are being read come to their end; a second signal drops them. The server
    gives them up after its `shutdown_seconds`."""
    if jobs.in_flight:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError, RuntimeError, ValueError):  # no signals in a thread
                loop.add_signal_handler(number, running.cancel)
        logs.event("ending pages of documents", pages=jobs.in_flight)
    await asyncio.wait({running}, timeout=jobs.state.server.shutdown_seconds + _LEAVING_S)
