"""What a person sees of a long download: a line that rewrites itself, or plain lines in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from deepseek_ocr.console import readable


def bytes_in(folder: Path) -> int:
    """Bytes that the files below `folder` take up now, while others may be writing there."""
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue  # gone since it was listed
        # What is on the disk, where the system says: downloaders may reserve the size in advance.
        blocks = getattr(status, "st_blocks", 0)  # nought on some network file systems
        total += min(status.st_size, blocks * 512) if blocks else status.st_size
    return total


@dataclass(frozen=True)
class Console:
    """Where progress goes: `stream` (default: standard error), every `every_s` seconds in a log."""

    stream: TextIO | None = None
    every_s: float = 10.0

    @property
    def _out(self) -> TextIO:
        return self.stream or sys.stderr

    def line(self, text: str) -> None:
        """Print one line that stays."""
        self._out.write(f"{text}\n")
        self._out.flush()

    @contextmanager
    def growth(self, folder: Path, total: int | None) -> Iterator[None]:
        """While the body runs, report how far the files below `folder` are towards `total`."""
        done = threading.Event()
        thread = threading.Thread(target=self._report, args=(folder, total, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _report(self, folder: Path, total: int | None, done: threading.Event) -> None:
        live = self._out.isatty()
        start, before = time.monotonic(), bytes_in(folder)
        while not done.wait(0.5 if live else self.every_s):
            now = bytes_in(folder)
            text = _progress(now, total, (now - before) / (time.monotonic() - start))
            self._out.write(f"\r\x1b[K{text}" if live else f"{text}\n")
            self._out.flush()
        if live:
            self._out.write("\r\x1b[K")
            self._out.flush()


def _progress(now: int, total: int | None, speed: float) -> str:
    if not total:
        return f"  {readable(now)}, {readable(speed)}/s"
    text = f"  {readable(now)} of {readable(total)} ({min(now / total, 1):.0%})"
    if speed <= 0:
        return text
    minutes = max(total - now, 0) / speed / 60
    left = "under a minute" if minutes < 1 else f"about {minutes:.0f} min"
    return f"{text}, {readable(speed)}/s, {left} left"
