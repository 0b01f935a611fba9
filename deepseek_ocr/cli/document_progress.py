"""How far a run over documents is, in words and as a bar."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from deepseek_ocr.cli.printing import left_out_of
from deepseek_ocr.cli.terminal import PROGRAM
from deepseek_ocr.documents.inputs import Input
from deepseek_ocr.documents.run_tally import Tally, Watcher
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.formats.writing import PdfPages
from deepseek_ocr.progress import progress_display


def expected_pages(tally: Tally, inputs: int) -> int:
    """Pages of a run over `inputs`; those that are not open yet count as many as the others."""
    waiting = inputs - tally.opened - tally.unopened
    return tally.known + round(waiting * tally.known / max(inputs - waiting, 1))


def progress_text(tally: Tally, inputs: int, seconds: float) -> str:
    """How far a run over `inputs` is after `seconds`, and the time left, in words."""
    about = "about " if inputs > tally.opened + tally.unopened else ""
    expected, past = expected_pages(tally, inputs), tally.done + tally.settled
    words = [f"{past} of {about}{expected} pages"]
    if tally.settled:
        rate = tally.settled / max(seconds, 1e-6)
        words += [f"{rate:.1f} a second" if rate >= 1 else f"{rate * 60:.1f} a minute"]
        words += [f"{_duration(max(expected - past, 0) / rate)} left"]
    words += [f"{tally.failed + tally.unopened} failed"]
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
        super().__init__()
        self._display = progress_display(program=PROGRAM)
        self._inputs, self._began = inputs, time.monotonic()

    def __enter__(self) -> Self:
        self._display.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._display.__exit__(*raised)

    def opened(self, found: Input, pages: int, done: int, left_out: int) -> None:
        with self._lock:
            super().opened(found, pages, done, left_out)
            if left_out:
                self._display.say(left_out_of(str(found), left_out))
            self._show()

    def page(self, found: Input, record: PageRecord) -> None:
        with self._lock:
            super().page(found, record)
            if record.error is not None:
                self._display.say(f"{found}, page {record.number}: {record.error}")
            self._show()

    def unopened(self, found: Input, reason: str) -> None:
        with self._lock:
            super().unopened(found, reason)
            self._display.say(reason if str(found) in reason else f"{found}: {reason}")

    def unwritten(self, found: Input, reason: str) -> None:
        with self._lock:
            super().unwritten(found, reason)
            self._display.say(reason)

    def written(self, found: Input, files: Sequence[Path], pdfs: Mapping[str, PdfPages]) -> None:
        with self._lock:
            super().written(found, files, pdfs)
            if files:
                names = ", ".join(file.name for file in files)
                self._display.say(f"wrote {files[0].parent} ({names})")
            for name, pages in pdfs.items():
                for text in _pdf_lines(pages):
                    self._display.say(f"{found}, {name}: {text}")

    def _show(self) -> None:
        text = progress_text(self.tally, self._inputs, time.monotonic() - self._began)
        past = self.tally.done + self.tally.settled
        self._display.show(text, past, expected_pages(self.tally, self._inputs))
