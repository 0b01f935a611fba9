"""Threads for what blocks: the database of jobs, and opening, rendering and writing their files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

from deepseek_ocr.server.jobs.job_store import JobStore, OcrJob
from deepseek_ocr.server.observability import logs

P = ParamSpec("P")
T = TypeVar("T")

_OUTPUTS = 2
"""Outputs that are made at once."""


class JobDatabase:
    """Asks `store` in one thread, one thing after the other, and remembers the ends of jobs that it
    could not be told, as on a full disk.

    Nobody who asks for a job notices the difference. Belongs to the event loop.
    """

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self._thread = ThreadPoolExecutor(1, "database")
        self._untold: dict[str, str | None] = {}

    async def ask(self, question: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """What `question`, a method of the store, gives; asked in the order of the calls."""
        asked = partial(question, *args, **named)
        return await asyncio.get_running_loop().run_in_executor(self._thread, asked)

    async def find(self, job: str, client: str) -> OcrJob | None:
        """A job of this client's as it stands; None if it has none of that name."""
        found = await self.ask(self.store.get, job, client)
        return found and self._as_it_stands(found)

    async def newest(self, client: str, most: int) -> list[tuple[OcrJob, dict[str, int]]]:
        """This client's newest `most` jobs, and how far each is, newest first."""
        found = await self.ask(self.store.newest, client, most)
        return [(now, counts) for job, counts in found if (now := self._as_it_stands(job))]

    async def end(self, job: str, reason: str | None) -> None:
        """Write down why a job failed, or, without a `reason`, that it was deleted: now, or when
        the store can take that again."""
        self._untold[job] = reason
        await self._tell(job)

    async def tell_again(self) -> None:
        """Tell the store what it did not take before."""
        for job in list(self._untold):
            if job in self._untold:  # it may have been told meanwhile
                await self._tell(job)

    def close(self) -> None:
        """End the thread, after what it was asked."""
        self._thread.shutdown()

    async def _tell(self, job: str) -> None:
        reason = self._untold[job]
        try:
            if reason is None:
                await self.ask(self.store.drop, job)
            else:
                await self.ask(self.store.set_status, job, "failed", reason)
        except Exception as error:
            logs.failure("the database of jobs takes nothing; look at its disk", error, job=job)
            return
        if self._untold.get(job) == reason:
            self._untold.pop(job, None)

    def _as_it_stands(self, job: OcrJob) -> OcrJob | None:
        if job.id not in self._untold:
            return job
        reason = self._untold[job.id]
        return None if reason is None else replace(job, status="failed", error=reason)


class JobThreads:
    """Threads that work on the files of jobs; belongs to the event loop.

    - `rendering`, `outputs`: held by what renders, in `workers` processes, and what makes outputs
    """

    def __init__(self, workers: int) -> None:
        self.rendering = asyncio.Semaphore(workers)
        self.outputs = asyncio.Semaphore(_OUTPUTS)
        self._pool = ThreadPoolExecutor(workers + _OUTPUTS + 2, "documents")
        self._work: dict[str, set[Future[Any]]] = {}
        self._writing: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def writing(self, job: str) -> asyncio.Lock:
        """Held while an output of a job is made."""
        return self._writing.setdefault(job, asyncio.Lock())

    async def run(
        self, job: str, work: Callable[[], T], turns: asyncio.Semaphore | None = None
    ) -> T:
        """What `work` over files of `job` gives. One of `turns` is held until `work` ends, also if
        no request waits for it any more."""
        if turns is not None:
            await turns.acquire()
        loop = asyncio.get_running_loop()
        begun = self._pool.submit(work)
        self._work.setdefault(job, set()).add(begun)

        def release() -> None:
            if turns is not None:
                turns.release()
            self._work[job].discard(begun)
            if not self._work[job]:
                del self._work[job]

        begun.add_done_callback(lambda _: loop.call_soon_threadsafe(release))
        return await asyncio.wrap_future(begun)

    async def finish(self, job: str) -> None:
        """Wait until nothing works on files of `job`."""
        while work := self._work.get(job):
            begun = [asyncio.wrap_future(one) for one in work]
            await asyncio.gather(*begun, return_exceptions=True)

    def close(self) -> None:
        """Wait for what was begun; what was not never is."""
        self._pool.shutdown(cancel_futures=True)
