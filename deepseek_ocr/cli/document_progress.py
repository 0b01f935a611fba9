"""How far a run over documents is, in words and as a bar."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from deepseek_ocr.cli.printing import left_out_of
from deepseek_ocr.cli.terminal import PROGRAM
from deepseek_ocr.documents.inputs import Input
from deepseek_ocr.documents.run_tally import Watcher
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.formats.writing import PdfPages
from deepseek_ocr.progress import progress_display


class PageCounter:
    """Pages expected, settled and failed, and the time left."""

    def __init__(self, inputs: int, began: float) -> None:
        self._unopened = self._inputs = inputs
        self._known = self.done = self.settled = self.failed = 0
        self._began = began

    def opened(self, pages: int, done: int) -> None:
        """A document has `pages`, of which `done` are read."""
        self._unopened -= 1
        self._known += pages
        self.done += done

    def unopened(self) -> None:
        """An input cannot be opened."""
        self._unopened -= 1
        self.failed += 1

    def settle(self, *, failed: bool) -> None:
        """A page came to its end."""
        self.settled += 1
        self.failed += failed

    @property
    def expected(self) -> int:
        """Pages of the whole run; documents that are not open yet count as many as the others."""
        opened = max(self._inputs - self._unopened, 1)
        return self._known + round(self._unopened * self._known / opened)

    def text(self, now: float) -> str:
        """All of it in words."""
        about = "about " if self._unopened > 0 else ""
        words = [f"{self.done + self.settled} of {about}{self.expected} pages"]
        seconds = max(now - self._began, 1e-6)
        if self.settled:
            rate = self.settled / seconds
            left = max(self.expected - self.done - self.settled, 0) / rate
            words += [f"{rate:.1f} a second" if rate >= 1 else f"{rate * 60:.1f} a minute"]
            words += [f"{_duration(left)} left"]
        words += [f"{self.failed} failed"]
        return ", ".join(words)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _pdf_lines(pages: PdfPages) -> Iterator[str]:
    """Lines that tell what became of the pages of a PDF."""
    if pages.skipped:
        yield f"{_pages(pages.skipped)} kept the text of the original alone"
    if layers := [page for page in pages.replaced if page not in set(pages.redrawn)]:
        yield f"an invisible text layer was replaced on {_pages(layers)}"
    if pages.redrawn:
        yield f"{_pages(pages.redrawn)} redrawn as a picture to replace visible text"
    if pages.rebuilt:
        yield f"{_pages(pages.rebuilt)} rebuilt from pictures, because {'; '.join(pages.reasons)}"


_MOST_NAMED = 10
"""Pages that are named by their numbers in one line."""


def _pages(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"page {numbers[0]}"
    if len(numbers) > _MOST_NAMED:
        return f"{len(numbers)} pages"
    return f"pages {', '.join(map(str, numbers))}"


class DocumentProgress(Watcher):
    """Says what failed, what was written, and how far the run is: a bar at a terminal, now and
    then a plain line elsewhere. Use it as a context."""

    def __init__(self, inputs: int) -> None:
        self._lock = threading.Lock()
        self._display = progress_display(program=PROGRAM)
        self.counter = PageCounter(inputs, time.monotonic())

    def __enter__(self) -> Self:
        self._display.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._display.__exit__(*raised)

    def opened(self, found: Input, pages: int, done: int, left_out: int) -> None:
        with self._lock:
            self.counter.opened(pages, done)
            if left_out:
                self._display.say(left_out_of(str(found), left_out))
            self._show()

    def page(self, found: Input, record: PageRecord) -> None:
        with self._lock:
            self.counter.settle(failed=record.error is not None)
            if record.error is not None:
                self._display.say(f"{found}, page {record.number}: {record.error}")
            self._show()

    def unopened(self, found: Input, reason: str) -> None:
        with self._lock:
            self.counter.unopened()
            self._display.say(reason if str(found) in reason else f"{found}: {reason}")

    def unwritten(self, found: Input, reason: str) -> None:
        with self._lock:
            self._display.say(reason)

    def written(self, found: Input, files: Sequence[Path]) -> None:
        with self._lock:
            if files:
                names = ", ".join(file.name for file in files)
                self._display.say(f"wrote {files[0].parent} ({names})")

    def pdf_written(self, found: Input, name: str, pages: PdfPages) -> None:
        with self._lock:
            for text in _pdf_lines(pages):
                self._display.say(f"{found}, {name}: {text}")

    def _show(self) -> None:
        text = self.counter.text(time.monotonic())
        self._display.show(text, self.counter.done + self.counter.settled, self.counter.expected)
