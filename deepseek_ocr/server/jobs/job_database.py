"""The store of jobs, asked from the event loop: in one thread, one thing after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import ParamSpec, TypeVar

from deepseek_ocr.server.jobs.job_store import JobStore, OcrJob
from deepseek_ocr.server.observability import logs

P = ParamSpec("P")
T = TypeVar("T")


class JobDatabase:
    """Asks `store`, and remembers the ends of jobs that it could not be told, as on a full disk.

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
        """Write down why a job failed, or, without a `reason`, that it is no more: now, or when the
        store can take that again."""
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
