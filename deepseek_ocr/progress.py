"""How far long work is: a bar at a terminal, now and then a plain line in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Self, TextIO, TypeVar

from deepseek_ocr.console import harmless

Item = TypeVar("Item")


class ProgressLines:
    """Plain lines on `stream`: messages at once, the progress at most every `every_s` seconds.

    Use it as a context. `program` is put before each line; without a stream nothing is said.
    """

    def __init__(self, stream: TextIO | None, every_s: float, program: str = "") -> None:
        self._stream = stream
        self._every_s = every_s
        self._before = f"{program}: " if program else ""
        self._shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def say(self, text: str) -> None:
        """Print a line that stays."""
        if self._stream is not None:
            self._stream.write(f"{self._before}{harmless(text)}\n")
            self._stream.flush()

    def show(self, text: str, done: float, total: float | None, *, last: bool = False) -> None:
        """`done` of `total` (None: not known) is reached, which is `text` in words.

        The `last` one is never left out.
        """
        now = time.monotonic()
        if last or now - self._shown >= self._every_s:
            self._shown = now
            self.say(text)


class ProgressBar(ProgressLines):
    """The same at a terminal: a bar followed by the words, with messages above it.

    A `transient` bar leaves nothing behind.
    """

    def __init__(self, stream: TextIO, *, transient: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(stream, 0)
        self._bar = Progress(
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            console=Console(file=stream),
            transient=transient,
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("…", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        self._bar.console.print(harmless(text), markup=False, highlight=False, soft_wrap=True)

    def show(self, text: str, done: float, total: float | None, *, last: bool = False) -> None:
        self._bar.update(self._task, description=text, completed=done, total=total or None)


def progress_display(
    every_s: float = 30.0, program: str = "", stream: TextIO | None = None, transient: bool = False
) -> ProgressLines:
    """A bar if `stream` (standard error if None) is a terminal, else plain lines."""
    out = stream or sys.stderr
    if out is not None and out.isatty():
        return ProgressBar(out, transient=transient)
    return ProgressLines(out, every_s, program)


def track(
    items: Iterable[Item],
    total: int,
    what: str,
    stream: TextIO | None = None,
    every_s: float = 30.0,
) -> Iterator[Item]:
    """Yield `items` and say on `stream` (standard error if None) how many of `total` are done.

    In a log that is a line at most every `every_s` seconds, and one at the end.
    """
    start = time.monotonic()
    done, text = 0, ""
    with progress_display(every_s, stream=stream) as display:
        for item in items:
            yield item
            done += 1
            seconds = max(time.monotonic() - start, 1e-3)
            text = f"{what}: {done} of {total} in {seconds:.0f} s ({done / seconds:.2f}/s)"
            display.show(text, done, total)
        if done:
            display.show(text, done, total, last=True)
