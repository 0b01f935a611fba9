"""Documents that are being read: whose page comes next, who listens, what is kept.

A document waits with its pages; as many are taken up at once as the engines hold and one more, and
they go round the clients that have documents here, then round each client's documents. Every page
is kept as it ends, so a restart goes on with what was in flight.

Everything here belongs to the event loop, unless it says otherwise.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import weights
from deepseek_ocr.documents import record_of
from deepseek_ocr.errors import DocumentError
from deepseek_ocr.formats.data import page_data
from deepseek_ocr.records import PageRecord
from deepseek_ocr.rendering import OpenDocument, Rendered, Renderer
from serving import logs
from serving.document_fields import DocumentPlan, document_plan
from serving.errors import ClosingError, api_error
from serving.job_store import Job, JobStore, now
from serving.page_reader import Reader, Told
from serving.splitting import RegionFound, RegionText
from serving.state import State

T = TypeVar("T")
Event = dict[str, Any]

_LOOK_S = 0.2
"""Seconds between looks at whether the server is loading, or stopping."""

_MOST_UNHEARD = 20_000
"""Events that wait for somebody who does not listen; then they are cut off, and may come again."""


@dataclass(frozen=True)
class JobLimits:
    """What is too much.

    - `request_pages`, `request_seconds`: of a document read within one request
    - `pages`: of a job; `per_client`, `total`: documents kept here at once
    - `hours`: after which a job that ended is forgotten
    """

    request_pages: int = 100
    request_seconds: float = 1800.0
    pages: int = 2000
    per_client: int = 50
    total: int = 200
    hours: float = 24.0


@dataclass(eq=False)
class _Flight:
    """A page that is being read, and what was told of it since its last try began."""

    task: asyncio.Task[None] | None = None
    events: list[Event] = field(default_factory=list)


@dataclass(eq=False)
class _Live:
    """A job of which pages are still to be read."""

    job: Job
    todo: deque[int]
    flights: dict[int, _Flight] = field(default_factory=dict)
    listeners: set[asyncio.Queue[Event | None]] = field(default_factory=set)

    def tell(self, event: Event | None) -> None:
        """Tell everybody who listens; None is the end."""
        for listener in list(self.listeners):
            if event is not None and listener.qsize() >= _MOST_UNHEARD:
                self.listeners.discard(listener)
                event = None
            listener.put_nowait(event)


class Jobs:
    """The documents of a server."""

    def __init__(
        self, state: State, store: JobStore, renderer: Renderer, limits: JobLimits = JobLimits()
    ) -> None:
        self.state, self.store, self.renderer, self.limits = state, store, renderer, limits
        self._threads = ThreadPoolExecutor(renderer.workers + 4, "documents")
        self._live: dict[str, _Live] = {}
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
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What blocks: files, the database, rendering."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    # --- from start to stop ---------------------------------------------------------------------

    async def take_over(self) -> None:
        """Go on with what an earlier server left, before any request comes."""
        for gone in await self.in_thread(lambda: self.store.tidy(self._oldest())):
            logs.event("job forgotten", job=gone)
        for job in await self.in_thread(self.store.unfinished):
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
            if looks % 300 == 0:
                for gone in await self.in_thread(lambda: self.store.expired(self._oldest())):
                    await self.in_thread(partial(self.store.delete, gone))
            await asyncio.sleep(_LOOK_S)
        while self._tasks:
            await asyncio.wait(self._tasks)
        for live in self._live.values():
            live.tell(None)

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
        self._threads.shutdown()

    # --- jobs -----------------------------------------------------------------------------------

    async def begin(self, job: Job) -> None:
        """Read what is left of `job`, which is in the store, when its turn comes."""
        settled = await self.in_thread(lambda: self.store.settled(job.id))
        live = _Live(job, deque(number for number in job.numbers if number not in settled))
        self._live[job.id] = live
        if not live.todo:
            await self._finish(live)
            return
        self._clients.setdefault(job.client, deque()).append(job.id)
        self._take_up()

    async def forget(self, job: str) -> None:
        """Cancel a job if it is being read, and forget it."""
        live = self._live.pop(job, None)
        if live is not None:
            live.todo.clear()
            flights = [flight.task for flight in live.flights.values() if flight.task]
            for task in flights:
                task.cancel()
            if flights:
                await asyncio.wait(flights)
            live.tell(await self._end_of(live.job, "cancelled"))
        await self.in_thread(lambda: self.store.delete(job))

    async def counts(self, job: Job) -> dict[str, int]:
        """How far it is: pages in all, read, failed."""
        settled = await self.in_thread(lambda: self.store.settled(job.id))
        failed = sum(settled.values())
        return {"total": len(job.numbers), "read": len(settled) - failed, "failed": failed}

    async def _end_of(self, job: Job, status: str, error: str | None = None) -> Event:
        pages = await self.counts(job)
        return {"type": "document.done", "status": status, "pages": pages, "error": error}

    async def _finish(self, live: _Live) -> None:
        job = live.job
        await self.in_thread(lambda: self.store.set_status(job.id, "done"))
        if self._live.pop(job.id, None):
            live.tell(await self._end_of(job, "done"))

    async def _fail(self, live: _Live, error: BaseException) -> None:
        job, reason = live.job, str(api_error(error))
        if self._live.pop(job.id, None) is None:
            return
        live.todo.clear()
        await self.in_thread(lambda: self.store.set_status(job.id, "failed", reason))
        live.tell(await self._end_of(job, "failed", reason))

    # --- pages ----------------------------------------------------------------------------------

    def _take_up(self) -> None:
        """Begin as many pages as are to be read at once."""
        slots = [engine.slots for pool in self.state.pools.values() for engine in pool.engines]
        while self.state.ready and len(self._tasks) <= sum(slots):
            found = self._next()
            if found is None:
                return
            live, number = found
            flight = live.flights[number] = _Flight()
            flight.task = asyncio.create_task(self._page(live, number))
            self._tasks.add(flight.task)
            flight.task.add_done_callback(self._tasks.discard)

    def _next(self) -> tuple[_Live, int] | None:
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

    async def _page(self, live: _Live, number: int) -> None:
        """Read one page, keep it, and end its job if it was the last."""
        try:
            record = await self._record(live, number)
            await self.in_thread(lambda: self.store.keep(live.job.id, record))
            live.flights.pop(number)
            live.tell(_done(record))
            if not live.todo and not live.flights and self._live.get(live.job.id) is live:
                await self._finish(live)
        except (ClosingError, asyncio.CancelledError):  # it will be read after the restart
            live.flights.pop(number, None)
        except Exception as error:
            logs.failure("job failed", error, job=live.job.id)
            await self._fail(live, error)
        asyncio.get_running_loop().call_soon(self._take_up)

    async def _record(self, live: _Live, number: int) -> PageRecord:
        job = live.job
        pool, _ = self.state.pool_for(job.model)
        plan = self.plan(job)
        if job.deadline is not None and now() > job.deadline:
            return PageRecord(
                number, error="The time for the document was over; hand it in as a job instead."
            )
        try:
            rendered = await self.in_thread(lambda: self.render(job, plan, number))
        except DocumentError as error:
            return PageRecord(number, error=str(error))
        size = {"width": rendered.image.width, "height": rendered.image.height}
        self._tell(live, number, {"type": "page.started", "page": number, **size})
        page = await Reader(self.state, pool, job.client).read(
            number, rendered, plan.plan, lambda told: self._tell(live, number, _told(number, told))
        )
        return await self.in_thread(lambda: record_of(page, number, self.store.outputs(job)))

    def _tell(self, live: _Live, number: int, event: Event) -> None:
        flight = live.flights[number]
        if event["type"] == "page.retried":
            del flight.events[1:]
        flight.events.append(event)
        live.tell(event)

    def plan(self, job: Job) -> DocumentPlan:
        """How a job is read. Raises `ApiError` where its model is not served (any more)."""
        name, preset = self.state.check_name(job.model)
        fields = {**({"resolution": preset} if preset else {}), **job.fields, "model": job.model}
        known = weights.known_as(self.state.names[name])
        return document_plan(fields, known, self.state.server.page_timeout)

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
        told = []
        if live is not None:
            live.listeners.add(heard)
            told = [event for flight in live.flights.values() for event in flight.events]
        try:
            yield _opened(job)
            before = set()
            for number in await self.in_thread(lambda: self.store.settled(job.id)):
                record = await self.in_thread(partial(self.store.page, job.id, number))
                before.add(number)
                if record is not None:
                    yield _done(record)
            for event in told:
                if event["page"] not in before:
                    yield event
            if live is None:
                ended = await self.in_thread(lambda: self.store.get(job.id, job.client))
                if ended is not None and ended.ended:
                    yield await self._end_of(job, ended.status, ended.error)
                return
            while (next_event := await heard.get()) is not None:
                if next_event.get("page") not in before:
                    yield next_event
                if next_event["type"] == "document.done":
                    return
        finally:
            if live is not None:
                live.listeners.discard(heard)


def _opened(job: Job) -> Event:
    return {
        "type": "document.opened", "id": job.id, "name": job.file, "kind": job.kind,
        "pages": list(job.numbers),
    }  # fmt: skip


def _done(record: PageRecord) -> Event:
    return {"type": "page.done", "page": record.number, "result": page_data(record)}


def _told(number: int, told: Told) -> Event:
    if isinstance(told, RegionFound):
        boxes = [list(box) for box in told.boxes]
        return {
            "type": "page.region", "page": number, "order": told.order, "label": told.label,
            "boxes": boxes,
        }  # fmt: skip
    if isinstance(told, RegionText):
        return {"type": "page.delta", "page": number, "order": told.order, "text": told.text}
    return {"type": "page.retried", "page": number, "try": told}
