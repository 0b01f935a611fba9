"""Parts that a report may meet: run in processes of their own, which have to be able to import
them."""

from __future__ import annotations

import os
import signal
import time

from benchmarks.part_rows import Figures, ReportRows
from benchmarks.part_runner import ReportSettings


def good(settings: ReportSettings, rows: ReportRows) -> None:
    """Two rows and a remark."""
    rows.add("one", lambda: {"speed": 1.5, "device": settings.device})
    rows.note("a remark")
    rows.add("two", lambda: {"speed": float("nan")})


def raising(settings: ReportSettings, rows: ReportRows) -> None:
    """A row, and then an error outside any."""
    rows.add("before", lambda: {"speed": 1.0})
    raise ValueError("no such thing as a card")


def out_of_memory(settings: ReportSettings, rows: ReportRows) -> None:
    """A row that raises between two that do not."""

    def refused() -> Figures:
        raise MemoryError("tried to allocate 150 GB")

    rows.add("first", lambda: {"speed": 1.0})
    rows.add("large", refused)
    rows.add("last", lambda: {"speed": 3.0})


def killed(settings: ReportSettings, rows: ReportRows) -> None:
    """A row, and then the end of the process, as by the system where memory runs out."""
    rows.add("before", lambda: {"speed": 1.0})
    os.kill(os.getpid(), signal.SIGKILL)


def hanging(settings: ReportSettings, rows: ReportRows) -> None:
    """A row, and then nothing any more."""
    rows.add("before", lambda: {"speed": 1.0})
    time.sleep(600)


def failing_and_hanging(settings: ReportSettings, rows: ReportRows) -> None:
    """An error that is kept, and then nothing any more."""
    rows.fail(ValueError("no such thing as a card"))
    time.sleep(600)


def after_good(settings: ReportSettings, rows: ReportRows) -> None:
    """A row of what `good` found."""
    rows.add("copied", lambda: {"speed": settings.earlier["good"]["rows"]["one"]["speed"]})


def leaving_out(settings: ReportSettings, rows: ReportRows) -> None:
    """A row, and two that are left out."""
    rows.add("one", lambda: {"speed": 1.0})
    rows.leave_out("large", "needs 9.2 GB, 7.1 GB free")
    rows.add("other", lambda: {"left_out": "no fonts"})


def disagreeing(settings: ReportSettings, rows: ReportRows) -> None:
    """A row that must not be so."""
    rows.add("logits", lambda: {"difference": 0.5, "wrong": "differs by 0.5"})
