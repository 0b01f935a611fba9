"""Threads for what blocks: opening, rendering and writing the files of jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")

_OUTPUTS = 2
"""Outputs that are made at once."""


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
        nobody waits for it any more."""
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
