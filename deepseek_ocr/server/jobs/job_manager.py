"""Documents that are being read: whose page comes next, who listens, what is kept.

A document waits with its pages; as many are taken up at once as the engines hold and one more, and
they go round the clients that have documents here, then round each client's documents. Every page
is kept as it ends, so a restart goes on with what was in flight. The database has a thread of its
own, which does one thing after the other; what blocks for longer has others.

Everything here belongs to the event loop, unless it says otherwise.
"""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from deepseek_ocr.documents.pipeline import record_of
from deepseek_ocr.documents.renderer import OpenDocument, Rendered, Renderer
from deepseek_ocr.errors import DocumentError
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.server.api_errors import ApiError, ClosingError
from deepseek_ocr.server.jobs.document_options import DocumentPlan, document_plan, with_defaults
from deepseek_ocr.server.jobs.job_store import Job, JobStore, counts_of, now
from deepseek_ocr.server.jobs.live_jobs import (
    Event,
    Flight,
    LiveJob,
    done,
    ended,
    not_served,
    opened,
    reason_of,
    told,
)
from deepseek_ocr.server.jobs.page_runner import Reader
from deepseek_ocr.server.observability import logs
from deepseek_ocr.server.server_state import ServerState
from deepseek_ocr.weights import registry

T = TypeVar("T")

_LOOK_S = 0.2
"""Seconds between looks at whether the server is loading, or stopping."""

_LOOKS_A_TIDYING = 300
"""Looks after which what is old is forgotten: a minute."""

_OUTPUTS = 2
"""Outputs that are made at once."""

_FIRST_PAGE_S, _LAST_PAGES = 10.0, 8
"""Seconds that a page is thought to take before any was read; pages over which it is averaged."""

_LONGEST_WAIT_S = 3600
"""Most seconds after which a client is told to try again."""


@dataclass(frozen=True)
class JobLimits:
    """What is too much.

    - `request_pages`, `request_seconds`: of a document read within one request
    - `pages`: of a job
    - `per_client`, `total`: documents that wait or are read at once; as many that ended are kept
      beside them, the newest
    - `hours`: after which a job that ended is forgotten
    """

    request_pages: int = 100
    request_seconds: float = 1800.0
    pages: int = 2000
    per_client: int = 50
    total: int = 200
    hours: float = 24.0


class Jobs:
    """The documents of a server."""

    def __init__(
        self,
        state: ServerState,
        store: JobStore,
        renderer: Renderer,
        limits: JobLimits = JobLimits(),
    ) -> None:
        self.state, self.store, self.renderer, self.limits = state, store, renderer, limits
        self.rendering = asyncio.Semaphore(renderer.workers)
        self.outputs = asyncio.Semaphore(_OUTPUTS)
        self._database = ThreadPoolExecutor(1, "database")
        self._threads = ThreadPoolExecutor(renderer.workers + _OUTPUTS + 2, "documents")
        self._work: dict[str, set[Future[Any]]] = {}
        self._owed: dict[str, str | None] = {}
        self._page_seconds = _FIRST_PAGE_S
        self._live: dict[str, LiveJob] = {}
        self._clients: OrderedDict[str, deque[str]] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._errands: set[asyncio.Task[None]] = set()
        self._writing: weakref.WeakValueDictionary[str, asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )

    def is_being_read(self, job: str) -> bool:
        """True while a page of it is."""
        live = self._live.get(job)
        return live is not None and bool(live.flights)

    def writing(self, job: str) -> asyncio.Lock:
        """Held while an output of a job is made."""
        return self._writing.setdefault(job, asyncio.Lock())

    def spawn(self, errand: Coroutine[Any, Any, None]) -> None:
        """Run something to its end while nobody waits for it."""
        task = asyncio.create_task(_logged(errand))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def in_database(self, work: Callable[[], T]) -> T:
        """What asks the store, in the order in which it is called."""
        return await asyncio.get_running_loop().run_in_executor(self._database, work)

    async def in_thread(
        self, job: str, work: Callable[[], T], turns: asyncio.Semaphore | None = None
    ) -> T:
        """What blocks for longer, over files of `job`. One of `turns` (`rendering`, `outputs`) is
        held until `work` ends, also where nobody waits for it any more."""
        if turns is not None:
            await turns.acquire()
        loop = asyncio.get_running_loop()
        begun = self._threads.submit(work)
        self._work.setdefault(job, set()).add(begun)

        def release() -> None:
            if turns is not None:
                turns.release()
            self._work[job].discard(begun)
            if not self._work[job]:
                del self._work[job]

        begun.add_done_callback(lambda _: loop.call_soon_threadsafe(release))
        return await asyncio.wrap_future(begun)

    # --- from start to stop ---------------------------------------------------------------------

    async def take_over(self) -> None:
        """Go on with what an earlier server left, before any request comes."""
        for gone in await self.in_database(lambda: self.store.tidy(self._oldest())):
            logs.event("job forgotten", job=gone)
        for job in await self.in_database(self.store.unfinished):
            if not self._is_served(job):
                logs.event("job waits for a server with its model", job=job.id, model=job.model)
                continue
            logs.event("job goes on", job=job.id)
            await self.begin(job)

    async def run(self) -> None:
        """Read pages once the models are there, and forget what is old, until the server stops."""
        try:
            await self._keep_house()
        except Exception as error:
            logs.failure("documents are no longer read; restart the server", error)

    async def _keep_house(self) -> None:
        looks = 0
        while not self.state.closing:
            self._take_up()
            looks += 1
            if looks % _LOOKS_A_TIDYING == 0:
                await self.tidy()
            await asyncio.sleep(_LOOK_S)
        while self._tasks:
            await asyncio.wait(self._tasks)
        for live in self._live.values():
            live.tell(None)

    async def tidy(self) -> None:
        """Forget what is old, and tell the database what it did not take before."""
        try:
            for job in list(self._owed):
                if job in self._owed:  # it may have been paid meanwhile
                    await self._pay(job)
            for gone in await self.in_database(lambda: self.store.expired(self._oldest())):
                await self.forget(gone)
        except Exception as error:  # reading goes on, and this is tried again
            logs.failure("old documents could not be forgotten", error)

    def _oldest(self) -> float:
        return now() - self.limits.hours * 3600

    async def stop(self) -> None:
        """End the pages that are still being read; they will be read again by the next server."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for live in self._live.values():
            live.tell(None)
        if self._errands:
            await asyncio.wait(self._errands)
        self.renderer.close()  # or threads wait for pages that nobody wants any more
        self._threads.shutdown(cancel_futures=True)
        self._database.shutdown()

    @property
    def in_flight(self) -> int:
        """Pages that are being read."""
        return len(self._tasks)

    # --- jobs -----------------------------------------------------------------------------------

    async def begin(self, job: Job) -> None:
        """Read what is left of `job`, which is in the store, when its turn comes."""
        settled = await self.in_database(lambda: self.store.settled(job.id))
        todo = deque(number for number in job.numbers if number not in settled)
        live = LiveJob(job, todo, settled)
        self._live[job.id] = live
        if not live.todo:
            await self._finish(live)
            return
        self._clients.setdefault(job.client, deque()).append(job.id)
        self._take_up()

    async def find(self, job: str, client: str) -> Job | None:
        """A job of this client's as it stands; None where it has none of that name."""
        found = await self.in_database(lambda: self.store.get(job, client))
        return found and self._as_it_stands(found)

    async def newest(self, client: str) -> list[tuple[Job, dict[str, int]]]:
        """This client's jobs, and how far each is, newest first; not many more are ever kept."""
        most = 2 * self.limits.per_client
        found = await self.in_database(lambda: self.store.newest(client, most))
        stand = ((self._as_it_stands(job), counts) for job, counts in found)
        return [(job, counts) for job, counts in stand if job is not None]

    async def forget(self, job: str) -> None:
        """Cancel a job if it is being read, and forget it with its files."""
        live = self._live.pop(job, None)
        if live is not None:
            if flights := live.cancel():
                await asyncio.wait(flights)
            live.tell(ended("cancelled", live.counts()))
        await self._write_down(job, None)  # first: whoever makes an output of it then stops soon
        while work := self._work.get(job):  # it would put files where some were removed
            begun = [asyncio.wrap_future(one) for one in work]
            await asyncio.gather(*begun, return_exceptions=True)
        await self.in_thread(job, lambda: self.store.clear(job))

    async def counts(self, job: Job) -> dict[str, int]:
        """How far it is: pages in all, read, failed."""
        if live := self._live.get(job.id):
            return live.counts()
        settled = await self.in_database(lambda: self.store.settled(job.id))
        return counts_of(job, len(settled), sum(settled.values()))

    def seconds_to_room(self, client: str | None) -> int:
        """About how long until a document (of `client`, unless that is None) has been read: its
        pages and those whose turns come between, at the pace of the last ones."""
        left = [(len(live.todo), live.job.client) for live in self._live.values()]
        least = min((pages for pages, owner in left if client in (None, owner)), default=None)
        if least is None:  # they wait for a model
            return _LONGEST_WAIT_S
        before = sum(min(pages, least) for pages, _ in left)
        seconds = self._page_seconds * (1 + before / max(1, len(self._tasks)))
        return min(max(1, math.ceil(seconds)), _LONGEST_WAIT_S)

    async def _finish(self, live: LiveJob) -> None:
        job = live.job
        await self.in_database(lambda: self.store.set_status(job.id, "done"))
        if self._live.pop(job.id, None):
            live.tell(ended("done", live.counts()))
            self.spawn(self._forget_surplus())

    async def _fail(self, live: LiveJob, error: BaseException) -> None:
        """End a job of which nothing more can be read or kept; whoever listens is told."""
        job, reason = live.job, reason_of(error)
        if self._live.pop(job.id, None) is None:
            return
        live.cancel()
        await self._write_down(job.id, reason)
        live.tell(ended("failed", live.counts(), reason))
        self.spawn(self._forget_surplus())

    async def _forget_surplus(self) -> None:
        limits = self.limits
        for gone in await self.in_database(
            lambda: self.store.surplus(limits.per_client, limits.total)
        ):
            logs.event("job forgotten", job=gone)
            await self.forget(gone)

    async def _write_down(self, job: str, reason: str | None) -> None:
        """Tell the database why a job failed, or, without a `reason`, that it is no more: now, or
        when it can take that again. Nobody who asks for the job notices the difference."""
        self._owed[job] = reason
        await self._pay(job)

    async def _pay(self, job: str) -> None:
        reason = self._owed[job]
        try:
            if reason is None:
                await self.in_database(lambda: self.store.drop(job))
            else:
                await self.in_database(lambda: self.store.set_status(job, "failed", reason))
        except Exception as error:
            logs.failure("the database of jobs takes nothing; look at its disk", error, job=job)
            return
        if self._owed.get(job) == reason:
            self._owed.pop(job, None)

    def _as_it_stands(self, job: Job) -> Job | None:
        if job.id not in self._owed:
            return job
        reason = self._owed[job.id]
        return None if reason is None else replace(job, status="failed", error=reason)

    # --- pages ----------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Begin as many pages as are to be read at once."""
        slots = [engine.slots for pool in self.state.pools.values() for engine in pool.engines]
        while self.state.ready and len(self._tasks) <= sum(slots):
            found = self._next()
            if found is None:
                return
            live, number = found
            flight = live.flights[number] = Flight()
            flight.task = asyncio.create_task(self._page(live, number))
            self._tasks.add(flight.task)
            flight.task.add_done_callback(self._tasks.discard)

    def _next(self) -> tuple[LiveJob, int] | None:
        """The page whose turn it is; its client, and its document among theirs, come last then."""
        while self._clients:
            client, jobs = self._clients.popitem(last=False)
            while jobs:
                live = self._live.get(jobs.popleft())
                if live is None or not live.todo:
                    continue
                number = live.todo.popleft()
                if live.todo:
                    jobs.append(live.job.id)
                if jobs:
                    self._clients[client] = jobs
                return live, number
        return None

    async def _page(self, live: LiveJob, number: int) -> None:
        """Read one page, keep it, and end its job if it was the last."""
        began = time.monotonic()
        try:
            record = await self._record(live, number)
            await self.in_database(lambda: self.store.keep(live.job.id, record))
            self._page_seconds += (time.monotonic() - began - self._page_seconds) / _LAST_PAGES
            live.settled[number] = record.error is not None
            live.flights.pop(number)
            live.tell(done(record))
            if not live.todo and not live.flights and self._live.get(live.job.id) is live:
                await self._finish(live)
        except (ClosingError, asyncio.CancelledError):  # it will be read after the restart
            live.flights.pop(number, None)
        except Exception as error:
            logs.failure("job failed", error, job=live.job.id)
            await self._fail(live, error)
        asyncio.get_running_loop().call_soon(self._take_up)

    async def _record(self, live: LiveJob, number: int) -> PageRecord:
        job = live.job
        pool, _ = self.state.pool_for(job.model)
        plan = self.plan(job)
        if job.deadline is not None and now() > job.deadline:
            return PageRecord(
                number, error="The time for the document was over; hand it in as a job instead."
            )
        try:
            rendered = await self.in_thread(
                job.id, lambda: self.render(job, plan, number), self.rendering
            )
        except DocumentError as error:
            return PageRecord(number, error=str(error))
        size = {"width": rendered.image.width, "height": rendered.image.height}
        self._tell(live, number, {"type": "page.started", "page": number, **size})
        page = await Reader(self.state, pool, job.client).read(
            number, rendered, plan.plan, lambda one: self._tell(live, number, told(number, one))
        )
        return await self.in_thread(
            job.id, lambda: record_of(page, number, self.store.outputs(job))
        )

    def _tell(self, live: LiveJob, number: int, event: Event) -> None:
        flight = live.flights[number]
        if event["type"] == "page.retried":
            del flight.events[1:]
        flight.events.append(event)
        live.tell(event)

    def fields_for(self, model: str, given: Mapping[str, str]) -> dict[str, str]:
        """All fields that decide how a document is read by `model`; a client gave some of them.

        Raises `ApiError` where the model is not served.
        """
        name, preset = self.state.check_name(model)
        settings = self.state.settings
        own = {"existing_text": settings.existing_text, "formulas": settings.formulas}
        fields = {**own, **({"resolution": preset} if preset else {}), **given, "model": model}
        return with_defaults(fields, registry.known_as(self.state.names[name]))

    def plan(self, job: Job) -> DocumentPlan:
        """How a job is read, and written, also where its model is not served any more."""
        return document_plan(job.fields, self.state.server)

    def _is_served(self, job: Job) -> bool:
        try:
            self.state.check_name(job.model)
        except ApiError:
            return False
        return True

    def render(self, job: Job, plan: DocumentPlan, number: int) -> Rendered:
        """The picture of a page; any thread may call. Raises `DocumentError`."""
        document = OpenDocument(
            self.store.upload(job), plan.plan.password, job.kind, number, 0, job.file
        )
        return self.renderer.using(plan.render).render(document, number)

    # --- listening ------------------------------------------------------------------------------

    async def events(self, job: Job) -> AsyncIterator[Event]:
        """What happened to `job` so far, then what happens, to its end. Ends early where the server
        stops, or nobody took the events for long."""
        live = self._live.get(job.id)
        heard: asyncio.Queue[Event | None] = asyncio.Queue()
        missed = []
        if live is not None:
            live.listeners.add(heard)
            missed = [event for flight in live.flights.values() for event in flight.events]
        try:
            yield opened(job)
            before = set()
            for number in await self.in_database(lambda: self.store.settled(job.id)):
                record = await self.in_database(partial(self.store.page, job.id, number))
                before.add(number)
                if record is not None:
                    yield done(record)
            for event in missed:
                if event["page"] not in before:
                    yield event
            if live is None:
                if end := await self._end_of_silent(job):
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

    async def _end_of_silent(self, job: Job) -> Event | None:
        """The last event of a job of which nothing more is told."""
        found = await self.find(job.id, job.client)
        if found is not None and found.ended:
            return ended(found.status, await self.counts(found), found.error)
        if found is not None and not self._is_served(found):
            return {"type": "error", **not_served(found).body()}
        return None


async def _logged(errand: Coroutine[Any, Any, None]) -> None:
    try:
        await errand
    except Exception as error:
        logs.failure("something about documents could not be done", error)
