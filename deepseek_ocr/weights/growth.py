"""How far a download is, by the bytes that are on the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepseek_ocr.console import readable
from deepseek_ocr.progress import progress_display

LOG_INTERVAL_S = 10.0
"""Seconds between lines in a log."""


def bytes_in(folder: Path) -> int:
    """Bytes that the files below `folder` take up now, while others may be writing there."""
    total = 0
    for path in folder.rglob("*"):
        try:
            status = path.lstat()
        except OSError:
            continue  # gone since it was listed
        # What is on the disk, if the system says: downloaders may reserve the size in advance.
        blocks = getattr(status, "st_blocks", 0)  # nought on some network file systems
        total += min(status.st_size, blocks * 512) if blocks else status.st_size
    return total


@contextmanager
def show_growth(folder: Path, total: int) -> Iterator[None]:
    """Show how far the files below `folder` are towards `total` bytes while the block runs; 0 is
    not known."""
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(folder, total, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(folder: Path, total: int, done: threading.Event) -> None:
    start, before = time.monotonic(), bytes_in(folder)
    with progress_display(LOG_INTERVAL_S, transient=True) as display:
        while not done.wait(min(0.5, LOG_INTERVAL_S)):
            now = bytes_in(folder)
            speed = (now - before) / (time.monotonic() - start)
            display.show(_words(now, total, speed), now, total)


def _words(now: int, total: int, speed: float) -> str:
    if not total:
        return f"  {readable(now)}, {readable(speed)}/s"
    text = f"  {readable(now)} of {readable(total)} ({min(now / total, 1):.0%})"
    if speed <= 0:
        return text
    minutes = max(total - now, 0) / speed / 60
    left = "under a minute" if minutes < 1 else f"about {minutes:.0f} min"
    return f"{text}, {readable(speed)}/s, {left} left"
