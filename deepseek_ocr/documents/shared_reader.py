"""Documents that callers hand in one by one, their pages read by one engine, many at once.

reader = DocumentReader(engine)
document, numbers = await reader.open_async(Path("scan.pdf"), "scan.pdf")
records = await reader.read(document, numbers, prompt, attempts, print)
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from PIL import Image

from deepseek_ocr.documents.inputs import PageSelection
from deepseek_ocr.documents.page_retries import ReadPage, read_page, record_of
from deepseek_ocr.documents.renderer import OpenDocument, Renderer
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.request import Handle, result_of
from deepseek_ocr.engine.results import Delta, Failure, Page, Reading
from deepseek_ocr.errors import CancelledError, DeviceError, InputError
from deepseek_ocr.formats.records import PageRecord, page_record
from deepseek_ocr.settings import Attempt

Result = TypeVar("Result")

_ALL = PageSelection()


class DocumentReader:
    """Reads documents with `engine`, those of several callers at once."""

    def __init__(self, engine: OcrEngine) -> None:
        self.engine = engine
        # Of documents that are read side by side none has all the processes that render pages, so
        # that one whose pages take a minute each does not hold up the others.
        self._renderer = Renderer(workers=max(2, min(8, (os.cpu_count() or 1) // 2)))
        self._threads = ThreadPoolExecutor(self._renderer.workers, "render")
        self._rooms = WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]()

    def close(self) -> None:
        """End the processes that render, and the engine."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._renderer.close()
        self.engine.close()

    def open(
        self, path: Path, name: str, pages: PageSelection = _ALL, password: str | None = None
    ) -> tuple[OpenDocument, list[int]]:
        """The document in the file `path`, called `name` in messages, and its pages that `pages`
        chooses, from 1.

        Raises `DocumentError` if it cannot be opened, `InputError` if it has none of the pages.
        """
        with self._owner() as owner:
            return result_of(self._start(self._open, path, name, pages, password, owner))

    # --- on an event loop -----------------------------------------------------------------------

    async def open_async(
        self, path: Path, name: str, pages: PageSelection = _ALL, password: str | None = None
    ) -> tuple[OpenDocument, list[int]]:
        """As `open`, on an event loop."""
        with self._owner() as owner:
            opening = self._start(self._open, path, name, pages, password, owner)
            return await asyncio.wrap_future(opening)

    async def read(
        self,
        document: OpenDocument,
        numbers: Sequence[int],
        prompt: str,
        attempts: Sequence[Attempt],
        on_page: Callable[[PageRecord], None],
    ) -> list[PageRecord]:
        """Read the pages `numbers`, several at once; the records in their order, those of pages
        that could not be read with the reason.

        `on_page` gets each record as soon as its page is done. A document alone fills all slots of
        the engine; several take turns. If the caller is cancelled, so are all its pages.
        """
        records: dict[int, PageRecord] = {}
        rendering = asyncio.Semaphore(self._renderer.workers - 1)
        room = self._room()

        async def read_one(number: int, owner: object) -> None:
            page = await self._rendered(document, number, owner)
            rendering.release()
            if isinstance(page, ReadPage):
                await self._read(page, prompt, attempts)
                page = record_of(page, number)
            records[number] = page
            on_page(page)

        try:
            with self._owner() as owner:
                async with asyncio.TaskGroup() as group:
                    for number in numbers:
                        await rendering.acquire()
                        await room.acquire()
                        reading = group.create_task(read_one(number, owner))
                        reading.add_done_callback(lambda _: room.release())
        except ExceptionGroup as errors:  # of `on_page`
            raise errors.exceptions[0] from None
        return [records[number] for number in numbers]

    def _room(self) -> asyncio.Semaphore:
        """Room for as many pages as keep the engine busy, however many documents there are; each
        document waits for it with one page, so that a new one does not wait for all of another."""
        loop = asyncio.get_running_loop()
        if loop not in self._rooms:
            self._rooms[loop] = asyncio.Semaphore(self.engine.ahead)
        return self._rooms[loop]

    async def _rendered(
        self, document: OpenDocument, number: int, owner: object
    ) -> ReadPage[int] | PageRecord:
        try:
            picture = self._start(self._renderer.render, document, number, owner)
            return ReadPage(number, await asyncio.wrap_future(picture))
        except Exception as error:  # of this page alone
            return _failed(number, error)

    async def _read(self, page: ReadPage[int], prompt: str, attempts: Sequence[Attempt]) -> None:
        async def read(attempt: Attempt) -> Reading | Failure:
            try:
                handle = self._submit(page.rendered.image, prompt, attempt)
            except (CancelledError, DeviceError) as error:  # it was closed, or its device failed
                return Failure(error)
            return await handle.wait()

        await read_page(page, attempts, read)

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

        def hand_in(number: int, owner: object) -> Handle:
            picture = self._renderer.render(document, number, owner).image
            return self._submit(picture, prompt, attempt)

        with self._owner() as owner:
            try:
                while waiting or window:
                    while waiting and len(window) < self.engine.ahead:
                        number = waiting.popleft()
                        window.append((number, self._start(hand_in, number, owner)))
                    yield from _events(*window[0])
                    window.popleft()
            finally:
                for _, handed_in in window:
                    handed_in.cancel()
                    handed_in.add_done_callback(_cancel_page)

    # --- in both --------------------------------------------------------------------------------

    @contextmanager
    def _owner(self) -> Iterator[object]:
        """Stands for a caller: what is opened or rendered for it is given up when it has left."""
        owner = object()
        try:
            yield owner
        finally:
            self._renderer.give_up(owner)

    def _start(self, call: Callable[..., Result], *arguments: Any) -> Future[Result]:
        try:
            return self._threads.submit(call, *arguments)
        except RuntimeError as error:
            raise CancelledError("This reader is closed; make another one.") from error

    def _open(
        self, path: Path, name: str, pages: PageSelection, password: str | None, owner: object
    ) -> tuple[OpenDocument, list[int]]:
        document = self._renderer.open(path, password, name, owner)
        numbers = pages.of(document.pages)
        if not numbers:
            count = f"{document.pages} page{'s' if document.pages > 1 else ''}"
            raise InputError(f"{name} has {count} and none of those asked for; choose others.")
        return document, numbers

    def _submit(self, picture: Image.Image, prompt: str, attempt: Attempt) -> Handle:
        return self.engine.submit(Page(picture, prompt, attempt.crop, attempt.decode))


def _events(number: int, handed_in: Future[Handle]) -> Iterator[Delta | PageRecord]:
    """What comes of one page."""
    try:
        handle = result_of(handed_in)
    except Exception as error:  # of this page alone
        yield _failed(number, error)
        return
    yield from handle.deltas()
    outcome = handle.outcome()
    if isinstance(outcome, Failure):
        yield _failed(number, outcome.error)
    else:
        yield page_record(number, outcome)


def _cancel_page(handed_in: Future[Handle]) -> None:
    """Cancel a page, if it came as far as the engine."""
    if not handed_in.cancelled() and handed_in.exception() is None:
        handed_in.result().cancel()


def _failed(number: int, error: Exception) -> PageRecord:
    if isinstance(error, futures.CancelledError):
        error = CancelledError("The reader was closed before the page was read.")
    return PageRecord(number, error=str(error) or type(error).__name__)
