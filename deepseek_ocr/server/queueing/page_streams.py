"""Pages through the queue and an engine, their events on the event loop.

    with stream_pages(pool, client, pages) as streams:
        for stream in streams:
            async for event in stream.events():
                …

All pages wait for their turns at once and may be read at once; leaving the block, in whatever way,
gives up those that are not read and frees their slots within a token.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress

from deepseek_ocr.engine.request import Handle
from deepseek_ocr.engine.results import Delta, Failure, Page, Reading
from deepseek_ocr.errors import DeviceError
from deepseek_ocr.server.api_errors import EngineFailedError
from deepseek_ocr.server.queueing.admission import Visit
from deepseek_ocr.server.queueing.model_pools import ModelPool

Event = Delta | Reading | Failure

GATHERING = 0.05
"""Seconds for which text is gathered after some was handed on, so that it comes in twenty pieces a
second at most; the first of a page never waits."""


class PageStream:
    """One page on its way; belongs to the event loop it was made on."""

    def __init__(self, pool: ModelPool, visit: Visit, number: int, page: Page) -> None:
        self._pool = pool
        self._visit = visit
        self._number = number
        self._page = page
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Event] = asyncio.Queue()
        self._handle: Handle | None = None
        self._letters: deque[Event] = deque()
        self._asleep = True
        self._ended = False
        self._entered = time.perf_counter()
        visit.turn(number).add_done_callback(self._begin)

    async def events(self) -> AsyncIterator[Delta | Reading]:
        """Each `Delta` (those that arrived meanwhile as one), and at the end the `Reading`. Raises
        what reading raised, and `ApiError` where the page's turn never comes."""
        while True:
            event = await self._arrived.get()
            if isinstance(event, Failure):
                raise event.error
            yield event
            if isinstance(event, Reading):
                return

    def stop(self) -> None:
        """Give the page up, if it is not read yet."""
        if self._ended:
            return
        self._ended = True
        if self._handle is not None:
            self._handle.cancel()
            self._pool.metrics.page_ended(self._pool.name, "cancelled")

    def _begin(self, turn: asyncio.Future[int]) -> None:
        if self._ended:
            return
        if error := turn.exception():
            assert isinstance(error, Exception)
            self._ended = True
            self._arrived.put_nowait(Failure(error))
            return
        self._pool.metrics.waited(self._pool.name, time.perf_counter() - self._entered)
        engine = self._pool.engines[turn.result()]
        try:
            self._handle = engine.submit(self._page, self._from_worker)
        except DeviceError:  # which failed before this page was begun
            self._receive(Failure(EngineFailedError()))
        except Exception as error:
            self._receive(Failure(error))

    def _from_worker(self, event: Event) -> None:
        """Take an event from the thread that computes, and wake the loop if it would not look."""
        self._letters.append(event)
        if self._asleep or not isinstance(event, Delta):
            self._asleep = False
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._collect)

    def _collect(self) -> None:
        """Hand on what has come, text in one piece, and look again after a moment; a loop that
        wakes for every token may take time from the thread that computes the next."""
        texts: list[Delta] = []
        last: Reading | Failure | None = None
        while self._letters:
            event = self._letters.popleft()
            if isinstance(event, Delta):
                texts.append(event)
            else:
                last = event
        if texts and not self._ended:
            self._arrived.put_nowait(_joined(texts))
        if last is not None:
            self._receive(last)
        if self._ended:
            return
        if texts:
            self._loop.call_later(GATHERING, self._collect)
            return
        self._asleep = True
        if self._letters:  # it came while we fell asleep
            self._asleep = False
            self._loop.call_soon(self._collect)

    def _receive(self, event: Reading | Failure) -> None:
        """The page has ended."""
        if self._ended:
            return
        self._ended = True
        self._visit.release(self._number)
        if isinstance(event, Reading):
            self._pool.metrics.page(self._pool.name, event)
        else:
            self._pool.metrics.page_ended(self._pool.name, "failed")
        self._arrived.put_nowait(event)


def _joined(deltas: Sequence[Delta]) -> Delta:
    tokens = tuple(token for delta in deltas for token in delta.tokens)
    return Delta("".join(delta.text for delta in deltas), tokens)


@contextmanager
def stream_pages(
    pool: ModelPool, client: str, pages: Sequence[Page]
) -> Iterator[tuple[PageStream, ...]]:
    """Put the pages of one request into the queue, all or none; their streams, in order. Raises
    `QueueFullError` and `ClosingError`."""
    with pool.admission.enter(client, len(pages)) as visit:
        streams = tuple(PageStream(pool, visit, number, page) for number, page in enumerate(pages))
        try:
            yield streams
        finally:
            for stream in streams:
                stream.stop()
