"""Documents that callers hand in one by one, their pages read by one engine, many at once.

    reader = DocumentReader(engine)
    document, numbers = reader.open(Path("scan.pdf"), "scan.pdf")
    records = await reader.read(document, numbers, prompt, attempts, print)

Pages are rendered by processes that all documents share, and wait in the engine for a slot.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

from deepseek_ocr.documents import record_of
from deepseek_ocr.engine import Delta, Failure, Handle, OcrEngine, Page, Reading
from deepseek_ocr.errors import CancelledError, InputError
from deepseek_ocr.reading import ReadPage, read_page
from deepseek_ocr.records import PageRecord, page_record
from deepseek_ocr.rendering import OpenDocument, Renderer
from deepseek_ocr.settings import Attempt
from deepseek_ocr.sources import Pages

OnPage = Callable[[PageRecord], None]

_TURN_S = 0.5
"""Seconds after which a thread that waits for a page looks whether it was interrupted."""


def renderers_for(processors: int) -> int:
    """How many processes render pages: two at least, so that a page that takes its process a
    minute does not hold up every document."""
    return max(2, min(8, processors // 2))


class DocumentReader:
    """Reads documents with `engine`, those of several callers at once."""

    def __init__(self, engine: OcrEngine) -> None:
        self.engine = engine
        self._renderer = Renderer(workers=renderers_for(os.cpu_count() or 1))
        self._threads = ThreadPoolExecutor(self._renderer.workers, "render")
        self._documents = 0

    def close(self) -> None:
        """End the processes that render, and the engine."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._renderer.close()
        self.engine.close()

    def open(
        self, path: Path, name: str, pages: Pages = Pages(), password: str | None = None
    ) -> tuple[OpenDocument, list[int]]:
        """The document in the file `path`, called `name` in messages, and its pages that `pages`
        chooses, from 1.

        Raises `DocumentError` if it cannot be opened, `InputError` if it has none of the pages.
        """
        document = self._renderer.open(path, password, name)
        numbers = pages.of(document.pages)
        if not numbers:
            count = f"{document.pages} page{'s' if document.pages > 1 else ''}"
            raise InputError(f"{name} has {count} and none of those asked for; choose others.")
        return document, numbers

    # --- on an event loop -----------------------------------------------------------------------

    async def open_in_thread(
        self, path: Path, name: str, pages: Pages = Pages(), password: str | None = None
    ) -> tuple[OpenDocument, list[int]]:
        """As `open`, for an event loop."""
        opening = partial(self.open, path, name, pages, password)
        return await asyncio.get_running_loop().run_in_executor(self._threads, opening)

    async def read(
        self,
        document: OpenDocument,
        numbers: Sequence[int],
        prompt: str,
        attempts: Sequence[Attempt],
        on_page: OnPage,
    ) -> list[PageRecord]:
        """Read the pages `numbers`, several at once; the records in their order, those of pages
        that could not be read with the reason.

        `on_page` gets each record as soon as its page is done. A document alone fills all slots of
        the engine; several share them. If the caller is cancelled, so are all its pages.
        """
        records: dict[int, PageRecord] = {}
        running: set[asyncio.Task[None]] = set()

        async def read_one(number: int) -> None:
            records[number] = await self._read_page(document, number, prompt, attempts)
            on_page(records[number])

        self._documents += 1
        try:
            async with asyncio.TaskGroup() as group:
                for number in numbers:
                    while len(running) >= self._share:
                        _, running = await asyncio.wait(
                            running, return_when=asyncio.FIRST_COMPLETED
                        )
                    running.add(group.create_task(read_one(number)))
        finally:
            self._documents -= 1
        return [records[number] for number in numbers]

    @property
    def _share(self) -> int:
        """How many pages of one document may be in flight: together the documents keep every slot
        busy, and a new one does not wait behind all pages of the others."""
        return max(1, math.ceil(self.engine.ahead / max(self._documents, 1)))

    async def _read_page(
        self, document: OpenDocument, number: int, prompt: str, attempts: Sequence[Attempt]
    ) -> PageRecord:
        loop = asyncio.get_running_loop()
        try:
            rendering = partial(self._renderer.render, document, number)
            rendered = await loop.run_in_executor(self._threads, rendering)
        except Exception as error:  # of this page alone
            return _failed(number, error)
        page = ReadPage(number, rendered)

        async def read(attempt: Attempt) -> Reading | Failure:
            wanted = Page(rendered.image, prompt, attempt.crop, attempt.decode)
            try:
                handle = self.engine.submit(wanted)
            except CancelledError as error:  # the engine was closed
                return Failure(error)
            return await handle.wait()

        await read_page(page, attempts, read)
        return record_of(page, number)

    # --- in a thread ----------------------------------------------------------------------------

    def stream(
        self, document: OpenDocument, numbers: Sequence[int], prompt: str, attempt: Attempt
    ) -> Iterator[Delta | PageRecord]:
        """Read the pages `numbers`, several at once: the deltas of each in turn, its record behind
        them. A page is tried once, since what was handed out cannot be taken back.

        Closing the iterator cancels the pages that are not read.
        """
        waiting = deque(numbers)
        window: deque[tuple[int, Future[Handle]]] = deque()
        try:
            while waiting or window:
                while waiting and len(window) < self.engine.ahead:
                    number = waiting.popleft()
                    handed_in = self._threads.submit(
                        self._hand_in, document, number, prompt, attempt
                    )
                    window.append((number, handed_in))
                yield from _events(*window[0])
                window.popleft()
        finally:
            for _, handed_in in window:
                handed_in.cancel()
                handed_in.add_done_callback(_give_up)

    def _hand_in(
        self, document: OpenDocument, number: int, prompt: str, attempt: Attempt
    ) -> Handle:
        picture = self._renderer.render(document, number).image
        return self.engine.submit(Page(picture, prompt, attempt.crop, attempt.decode))


def _events(number: int, handed_in: Future[Handle]) -> Iterator[Delta | PageRecord]:
    """What comes of one page."""
    while not wait([handed_in], _TURN_S).done:
        pass
    if error := handed_in.exception():
        yield _failed(number, error)
        return
    handle = handed_in.result()
    yield from handle.deltas()
    outcome = handle.outcome()
    if isinstance(outcome, Failure):
        yield _failed(number, outcome.error)
    else:
        yield page_record(number, outcome)


def _give_up(handed_in: Future[Handle]) -> None:
    """Cancel a page, if it came as far as the engine."""
    if not handed_in.cancelled() and handed_in.exception() is None:
        handed_in.result().cancel()


def _failed(number: int, error: BaseException) -> PageRecord:
    return PageRecord(number, error=str(error) or type(error).__name__)
