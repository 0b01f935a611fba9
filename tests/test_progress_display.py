"""Long work shows how far it is: a bar for a person, plain lines for a log."""

from __future__ import annotations

import io

import pytest

from deepseek_ocr import progress
from deepseek_ocr.progress import ProgressLines, progress_display, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    return Terminal()


def test_a_log_gets_plain_lines() -> None:
    log = io.StringIO()
    assert list(track("abc", 5, "reading", log, every_s=0)) == ["a", "b", "c"]
    lines = log.getvalue().splitlines()
    assert [line.split(" in ")[0] for line in lines[:3]] == [
        "reading: 1 of 5",
        "reading: 2 of 5",
        "reading: 3 of 5",
    ]
    assert "\r" not in log.getvalue()
    assert "\x1b" not in log.getvalue()


def test_a_log_of_quick_work_gets_one_line() -> None:
    log = io.StringIO()
    list(track(range(100), 100, "reading", log, every_s=3600))
    assert log.getvalue().count("\n") == 1
    assert log.getvalue().startswith("reading: 100 of 100")


def test_nothing_to_do_says_nothing() -> None:
    log = io.StringIO()
    assert list(track([], 0, "reading", log)) == []
    assert log.getvalue() == ""


def test_a_terminal_gets_a_bar(screen: Terminal) -> None:
    assert list(track("abc", 3, "reading", screen)) == ["a", "b", "c"]
    assert "━" in screen.getvalue()
    assert "reading: 3 of 3" in screen.getvalue()


def test_messages_stay_above_the_bar_and_cannot_steer_the_terminal(screen: Terminal) -> None:
    with progress_display(stream=screen, transient=True) as display:
        display.show("[bold]half", 1, 2)
        display.say("[red]\x1b]0;owned\x07 is damaged.")
    assert "\x1b]0;" not in screen.getvalue()
    assert "[red]\ufffd]0;owned\ufffd is damaged.\n" in screen.getvalue()
    assert "[bold]half" in screen.getvalue()


def test_a_log_gets_the_progress_now_and_then_and_messages_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    log = io.StringIO()
    with progress_display(10.0, "fetch", stream=log) as display:
        for second in range(25):
            now = float(second)
            display.show(f"{second} of 25", second, 25)
        display.say("done\x07")
    assert log.getvalue().splitlines() == [
        "fetch: 10 of 25",
        "fetch: 20 of 25",
        "fetch: done\ufffd",
    ]


def test_a_program_without_standard_error_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with progress_display() as display:
        assert type(display) is ProgressLines
        display.say("hello")
