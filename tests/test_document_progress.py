"""How far a run is, in words."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pytest

from deepseek_ocr.cli.document_progress import DocumentProgress, progress_text
from deepseek_ocr.documents.inputs import Input
from deepseek_ocr.documents.run_tally import Tally, Watcher
from deepseek_ocr.formats.records import PageRecord

FOUND = Input(Path("a.pdf"), "a.pdf")


def test_rate_time_left_and_failures_are_counted() -> None:
    watcher = Watcher()
    watcher.opened(FOUND, pages=30, done=10, left_out=0)
    for number in range(1, 11):
        watcher.page(FOUND, PageRecord(number, error="It is damaged." if number == 1 else None))
    # 30 pages known, three more documents of about as many; ten settled in 20 s
    text = progress_text(watcher.tally, 4, 20.0)
    assert text == "20 of about 120 pages, 30.0 a minute, 3:20 left, 1 failed"
    for pages in (1, 2):
        watcher.opened(FOUND, pages, done=0, left_out=0)
    watcher.unopened(FOUND, "It is locked.")
    text = progress_text(watcher.tally, 4, 5.0)
    assert text == "20 of 33 pages, 2.0 a second, 0:06 left, 2 failed"


def test_nothing_is_divided_by_nothing() -> None:
    assert progress_text(Tally(), 0, 0.0) == "0 of 0 pages, 0 failed"
    assert progress_text(Tally(), 3, 7200.0) == "0 of about 0 pages, 0 failed"


def test_long_times_have_hours() -> None:
    assert "1:40:00 left" in progress_text(Tally(opened=1, known=101, read=1), 1, 60.0)


def test_plain_lines_say_what_failed_at_once_and_how_far_it_is_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lines = DocumentProgress(inputs=1)
    lines.opened(FOUND, pages=50, done=0, left_out=0)
    for number in range(1, 41):
        now = float(number)
        lines.page(FOUND, PageRecord(number, error="It is damaged." if number == 2 else None))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "deepseek-ocr: a.pdf, page 2: It is damaged.",
        "deepseek-ocr: 30 of 50 pages, 1.0 a second, 0:20 left, 1 failed",
    ]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_at_a_terminal_there_is_a_bar_and_nothing_in_a_message_steers_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with DocumentProgress(inputs=1) as bar:
        bar.opened(FOUND, pages=2, done=0, left_out=0)
        bar.page(FOUND, PageRecord(1, error="[red]\x1b]0;owned\x07 is damaged."))
        bar.page(FOUND, PageRecord(2))
    shown = screen.getvalue()
    assert "a.pdf, page 1: [red]\ufffd]0;owned\ufffd is damaged." in shown
    assert "2 of 2 pages" in shown
    assert "1 failed" in shown
