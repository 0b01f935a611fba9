"""Pages through the queue and an engine, as events on the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

from deepseek_ocr.engine import Delta, Failure, Page, Reading
from deepseek_ocr.errors import OcrError
from serving.admission import Visit
from serving.state import Pool, State


async def events(
    state: State, pool: Pool, visit: Visit, number: int, page: Page
) -> AsyncIterator[Delta | Reading]:
    """Wait for the turn of page `number` (from 0) of `visit`, read it, give its place back.

    Yields each `Delta` and ends with the `Reading`. Closing it, or cancelling the task it runs in,
    frees the slot within a token. Raises what reading raises, and `ApiError` where the turn
    never comes.
    """
    began = time.perf_counter()
    place = await visit.turn(number)
    state.metrics.waited(pool.name, time.perf_counter() - began)
    try:
        async for event in _submitted(pool, place, page):
            if isinstance(event, Reading):
                state.metrics.page(pool.name, event)
            yield event
    except (asyncio.CancelledError, GeneratorExit):
        state.metrics.page_ended(pool.name, "cancelled")
        raise
    except Exception:
        state.metrics.page_ended(pool.name, "failed")
        raise
    finally:
        visit.release(number)


async def _submitted(pool: Pool, place: int, page: Page) -> AsyncIterator[Delta | Reading]:
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Delta | Reading | Failure] = asyncio.Queue()

    def on_event(event: Delta | Reading | Failure) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(arrived.put_nowait, event)

    handle = pool.engines[place].submit(page, on_event)
    try:
        while True:
            event = await arrived.get()
            if isinstance(event, Failure):
                raise event.error
            yield event
            if isinstance(event, Reading):
                return
    finally:
        handle.cancel()


__all__ = ["OcrError", "events"]
