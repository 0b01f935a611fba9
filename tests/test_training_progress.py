"""Long work shows how far it is: a bar for a person, plain lines for a log."""

from __future__ import annotations

import io

from deepseek_ocr.training.progress import track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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


def test_a_terminal_gets_a_bar() -> None:
    screen = Terminal()
    assert list(track("abc", 3, "reading", screen)) == ["a", "b", "c"]
    assert "\r" in screen.getvalue()
    assert "3/3" in screen.getvalue()
