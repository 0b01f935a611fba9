"""How far a run is, in words."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pytest

from deepseek_ocr.cli.document_progress import DocumentProgress, PageCounter
from deepseek_ocr.documents.inputs import Input
from deepseek_ocr.formats.records import PageRecord

FOUND = Input(Path("a.pdf"), "a.pdf")


def test_rate_time_left_and_failures_are_counted() -> None:
    counter = PageCounter(inputs=4, began=100.0)
    counter.opened(pages=30, done=10)
    for number in range(10):
        counter.settle(failed=number == 0)
    # 30 pages known, three more documents of about as many; ten settled in 20 s
    assert counter.text(now=120.0) == "20 of about 120 pages, 30.0 a minute, 3:20 left, 1 failed"
    for pages in (1, 2):
        counter.opened(pages, done=0)
    counter.unopened()
    assert counter.text(now=105.0) == "20 of 33 pages, 2.0 a second, 0:06 left, 2 failed"


def test_nothing_is_divided_by_nothing() -> None:
    assert PageCounter(inputs=0, began=1.0).text(now=1.0) == "0 of 0 pages, 0 failed"
    waiting = PageCounter(inputs=3, began=0.0)
    assert waiting.text(now=7200.0) == "0 of about 0 pages, 0 failed"


def test_long_times_have_hours() -> None:
    counter = PageCounter(inputs=1, began=0.0)
    counter.opened(pages=101, done=0)
    counter.settle(failed=False)
    assert "1:40:00 left" in counter.text(now=60.0)


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
