"""Read pages through an engine, and try those again that go wrong: the best try is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Generic, Protocol, TypeVar

from PIL import Image

from deepseek_ocr.documents.plan import attempt_data
from deepseek_ocr.documents.renderer import Rendered
from deepseek_ocr.engine.results import Failure, Page, Reading
from deepseek_ocr.formats.figures import save_figures
from deepseek_ocr.formats.records import PageRecord, Try, page_record
from deepseek_ocr.settings import Attempt

OUTCOMES = ("stop", "length", "timeout", "loop", "empty", "failed")
"""How a try can end, best first."""

_PLAIN_SPREAD = 24
"""Of 255 grey levels: a page whose pixels lie within so many is blank, and rightly empty."""


class Engine(Protocol):
    """What is needed of an engine: `ocr_engine.OcrEngine`, or whatever reads pages in order."""

    @property
    def is_running(self) -> bool:
        """False when no page can be read any more; those that are handed in then fail."""

    def read_many(self, pages: Iterable[Page]) -> Iterator[Reading | Failure]:
        """A reading or a failure for every page, in order."""


Wanted = TypeVar("Wanted")


class ReadPage(Generic[Wanted]):
    """A page, whose it is, what was tried, and the best that came of it. `reading` is None where
    every try failed; `error` then says why."""

    def __init__(self, wanted: Wanted, rendered: Rendered) -> None:
        self.wanted = wanted
        self.rendered = rendered
        self.reading: Reading | None = None
        self.error: str | None = None
        self.tries: list[Try] = []
        self.kept = 0

    def add(self, attempt: Attempt, outcome: Reading | Failure, seconds: float) -> None:
        """Take in how `attempt` ended; keep its reading if it is the best so far. `seconds` are
        those since the engine was given the page, of use where it has no timings."""
        settings = {"name": attempt.name, **attempt_data(attempt)}
        if isinstance(outcome, Failure):
            self.tries.append(Try(settings, "failed", 0, round(seconds, 4)))
            self.error = self.error or str(outcome)
            return
        seconds = round(sum(asdict(outcome.timings).values()), 4)
        self.tries.append(Try(settings, _end_of(outcome), outcome.counts.output, seconds))
        if self.reading is None or _worth(outcome) > _worth(self.reading):
            self.reading, self.kept = outcome, len(self.tries) - 1

    def next_attempt(self, attempts: Sequence[Attempt]) -> Attempt | None:
        """Which of `attempts` comes next, if any, with the time that the page has left: the first
        not tried that its end calls for.

        A blank page that came out empty is not tried again, nor one that timed out or failed, nor
        one whose tries took all the time a page may take.
        """
        timeout = attempts[0].decode.timeout  # 0 is no end
        left = max(0.0, timeout - sum(tried.seconds for tried in self.tries))
        ended = self.tries[-1].outcome if self.tries else ""
        if (timeout and not left) or (ended == "empty" and _is_blank(self.rendered.image)):
            return None
        names = [tried.settings["name"] for tried in self.tries]
        for attempt in attempts:
            if not names or (attempt.name not in names and ended in attempt.after):
                left = max(left, 1e-3) if timeout else attempt.decode.timeout
                return replace(attempt, decode=replace(attempt.decode, timeout=left))
        return None


def read_pages(
    engine: Engine,
    pages: Iterable[tuple[Wanted, Rendered]],
    prompt: str,
    attempts: Sequence[Attempt],
) -> Iterator[ReadPage[Wanted]]:
    """Every page as it comes out, with all its tries; a page tried again may come out later.

    The first of `attempts` is how a page is read at first; its decode timeout, where set, is for
    all tries of a page together.
    """
    waiting = (ReadPage(wanted, rendered) for wanted, rendered in pages)
    again: deque[ReadPage[Wanted]] = deque()
    flying: deque[tuple[ReadPage[Wanted], Attempt, float]] = deque()

    def feed() -> Iterator[Page]:
        while True:
            page = again.popleft() if again else next(waiting, None)
            if page is None:
                return
            attempt = page.next_attempt(attempts)
            assert attempt is not None
            flying.append((page, attempt, perf_counter()))
            yield Page(page.rendered.image, prompt, attempt.crop, attempt.decode)

    while True:
        fed = False
        for outcome in engine.read_many(feed()):
            fed = True
            page, attempt, began = flying.popleft()
            page.add(attempt, outcome, perf_counter() - began)
            if page.next_attempt(attempts) is not None:
                again.append(page)
            else:
                yield page
        if not fed:  # pages to try again may be left when the engine has taken the last new one
            return


async def read_page(
    page: ReadPage[Wanted],
    attempts: Sequence[Attempt],
    read: Callable[[Attempt], Awaitable[Reading | Failure]],
) -> None:
    """Read one page on an event loop, by as many of `attempts` as it needs; `read` does one."""
    while (attempt := page.next_attempt(attempts)) is not None:
        began = perf_counter()
        page.add(attempt, await read(attempt), perf_counter() - began)


def record_of(page: ReadPage[Any], number: int, folder: Path | None = None) -> PageRecord:
    """The record of `page`, the `number`-th (from 1), with all its tries; its figures are written
    below `folder`, if there is one. Raises `OSError` where the disk takes no more."""
    if page.reading is None:
        record = PageRecord(number, *page.rendered.image.size, error=page.error)
    else:
        record = page_record(number, page.reading)
        if folder is not None:
            figures = save_figures(page.rendered.image, record.regions, number, folder)
            record = replace(record, figures=figures)
    rendered = page.rendered
    return replace(
        record, points=rendered.points, rotation=rendered.rotation, own_text=rendered.own_text,
        tries=tuple(page.tries), kept=page.kept,
    )  # fmt: skip


def _end_of(reading: Reading) -> str:
    """How a reading ended: its finish reason, or "empty"."""
    return reading.finish_reason if reading.text.strip() else "empty"


def _worth(reading: Reading) -> tuple[int, int]:
    """By this the best try is found: how it ended, then how much text is not repetition (different
    sequences of four words)."""
    words = reading.text.split()
    sequences = {tuple(words[at : at + 4]) for at in range(max(len(words) - 3, 1))}
    return -OUTCOMES.index(_end_of(reading)), len(sequences)


def _is_blank(image: Image.Image) -> bool:
    """True where no pixel stands out from the others."""
    grey = image.convert("L").reduce(4 if min(image.size) >= 16 else 1)
    levels = [level for level, count in enumerate(grey.histogram()) if count]
    return levels[-1] - levels[0] <= _PLAIN_SPREAD
