"""What the caller of `submit` holds of a page, and what becomes of errors on their way there."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

from deepseek_ocr.engine.page_state import PageState
from deepseek_ocr.engine.results import Delta, Failure, Page, Reading
from deepseek_ocr.errors import OcrError

log = logging.getLogger(__name__)

Item = TypeVar("Item")

_TURN = 0.5
"""Seconds for which a caller waits before it looks whether it was interrupted."""

OnEvent = Callable[[Delta | Reading | Failure], None]
"""Told of everything that comes of a page, from the worker: it must not block."""


class Request:
    """A page that was handed in, and what its caller holds of it.

    `page` is let go of when it is prepared, so that its picture does not live as long as the page.
    """

    def __init__(self, page: Page, on_event: OnEvent | None) -> None:
        self.page: Page | None = page
        self.work: PageState | None = None
        self.given_up = False
        self.on_event = on_event
        self.deltas: SimpleQueue[Delta | None] = SimpleQueue()
        self.future: Future[Reading] = Future()

    def tell(self, delta: Delta | None) -> None:
        """Hand text out, if there is some."""
        if delta is not None:
            self.deltas.put(delta)
            if self.on_event:
                self.on_event(delta)

    def end(self, outcome: Reading | Exception) -> None:
        """Hand out how it ended; the first time counts."""
        if self.future.done():
            return
        self.page = self.work = None
        if isinstance(outcome, Exception):
            outcome = portable(outcome)
            self.future.set_exception(outcome)
        else:
            self.future.set_result(outcome)
        self.deltas.put(None)
        if self.on_event:
            try:
                self.on_event(Failure(outcome) if isinstance(outcome, Exception) else outcome)
            except Exception:  # there is nobody left to tell
                log.exception("on_event raised at the end of a page")


class Handle:
    """A page that is being read, or waits for it; holding it keeps the engine alive."""

    def __init__(self, job: Request, cancel: Callable[[], None], engine: object) -> None:
        self._job, self._cancel, self._engine = job, cancel, engine

    def deltas(self) -> Iterator[Delta]:
        """Text as it is decoded, until the page ends, however it ends (`result` says); each delta
        once, whoever asks."""
        while (delta := wait_for(self._job.deltas)) is not None:
            yield delta
        self._job.deltas.put(None)  # for the next who asks

    def result(self, timeout: float | None = None) -> Reading:
        """Wait for the reading, `timeout` seconds at most. Raises what the page raised,
        `CancelledError` after `cancel`, `TimeoutError`."""
        return self._job.future.result(timeout)

    def outcome(self) -> Reading | Failure:
        """Wait for the reading, or for why there is none."""
        error = self._job.future.exception()
        if error is None:
            return self._job.future.result()
        assert isinstance(error, Exception)
        return Failure(error)

    async def wait(self) -> Reading | Failure:
        """Wait for the reading, or for why there is none, on an event loop.

        If the caller is cancelled meanwhile, so is the page.
        """
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def wake(_: Future[Reading]) -> None:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(ended.set)

        self._job.future.add_done_callback(wake)
        try:
            await ended.wait()
        finally:
            self.cancel()
        return self.outcome()

    def cancel(self) -> None:
        """Give the page up: its slot is free within a step. Does nothing to a page that is done."""
        if not self.done:
            self._cancel()

    @property
    def done(self) -> bool:
        """True when the page was read, failed, or was cancelled."""
        return self._job.future.done()


def failed(page: Page, error: Exception, engine: object) -> Handle:
    """The handle of a page that `engine` did not take, for the reason `error`."""
    job = Request(page, None)
    job.end(error)
    return Handle(job, lambda: None, engine)


def wait_for(queue: SimpleQueue[Item]) -> Item:
    """The next item, waited for in short turns: a thread that waits in one go does not hear of an
    interruption on every system, nor of an exception that another thread sends it."""
    while True:
        with suppress(Empty):
            return queue.get(timeout=_TURN)


def result_of(future: Future[Item]) -> Item:
    """The result of `future`, waited for in short turns as in `wait_for`. Raises what it raised."""
    while not future.done():
        wait([future], _TURN)
    return future.result()


def portable(error: Exception) -> Exception:
    """`error` without its stack frames, which hold pages and caches; where it is not one of ours,
    the frames are kept as text."""
    if not isinstance(error, OcrError) and error.__traceback__ is not None:
        error.add_note("".join(traceback.format_exception(error)))
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error
