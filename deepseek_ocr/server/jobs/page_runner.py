"""One page of a document through the queue and an engine, with its text told while it comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from deepseek_ocr.documents.page_retries import ReadPage, read_page
from deepseek_ocr.documents.pipeline import Plan
from deepseek_ocr.documents.renderer import Rendered
from deepseek_ocr.engine.results import Failure, Page, Reading
from deepseek_ocr.errors import DeviceError
from deepseek_ocr.server.api_errors import RETRY_AFTER, ClosingError, QueueFullError
from deepseek_ocr.server.jobs.region_splitter import RegionFound, RegionText, Splitter
from deepseek_ocr.server.queueing.page_streams import reading
from deepseek_ocr.server.server_state import Pool, ServerState
from deepseek_ocr.settings import Attempt

Told = RegionFound | RegionText | int
"""What is told of a page while it is read. A number says that the try of this number (from 2)
begins, which makes void what was told before."""


@dataclass(frozen=True)
class Reader:
    """Reads pages for `client` with the model of `pool`; each try takes a turn in its queue."""

    state: ServerState
    pool: Pool
    client: str

    async def read(
        self, number: int, rendered: Rendered, plan: Plan, tell: Callable[[Told], None]
    ) -> ReadPage[int]:
        """Read a page by as many tries as it needs.

        Cancelling the task ends it within a token. Raises `ClosingError` where the server stops
        before it is read. A page during which a device fails has failed: it may be what the device
        failed of, and must not end every server that is started for it.
        """
        page = ReadPage(number, rendered)

        async def read(attempt: Attempt) -> Reading | Failure:
            if page.tries:
                tell(len(page.tries) + 1)
            return await self._when_there_is_room(rendered, plan.prompt, attempt, tell)

        await read_page(page, plan.attempts, read)
        return page

    async def _when_there_is_room(
        self, rendered: Rendered, prompt: str, attempt: Attempt, tell: Callable[[Told], None]
    ) -> Reading | Failure:
        """A full queue is for others to be told of: this page was taken in already."""
        page = Page(rendered.image, prompt, attempt.crop, attempt.decode)
        while True:
            try:
                return await self._try(page, tell)
            except QueueFullError:
                await asyncio.sleep(RETRY_AFTER)

    async def _try(self, page: Page, tell: Callable[[Told], None]) -> Reading | Failure:
        splitter = Splitter()
        try:
            with reading(self.state, self.pool, self.client, [page]) as (flight,):
                async for event in flight.events():
                    if isinstance(event, Reading):
                        _tell_all(splitter.finish(), tell)
                        return event
                    _tell_all(splitter.feed(event.text), tell)
        except (QueueFullError, ClosingError):
            raise
        except Exception as error:  # every page that goes in comes out
            if self.state.closing and not isinstance(error, DeviceError):  # stopped under it
                raise ClosingError from error
            return Failure(error)
        raise AssertionError("an engine ends with a reading")


def _tell_all(found: Iterable[Told], tell: Callable[[Told], None]) -> None:
    for told in found:
        tell(told)
