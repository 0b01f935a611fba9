"""What programs say on standard error, and text from elsewhere made safe to print."""

from __future__ import annotations

import io

import pytest

from deepseek_ocr import console
from deepseek_ocr.console import one_line, readable


@pytest.mark.parametrize("watched", [True, False])
def test_a_complaint_is_always_heard_and_the_rest_only_at_a_terminal(
    watched: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: watched  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", stream)
    console.tell("loading", "read")
    console.complain("a\x1b[31m is damaged", "read")
    console.complain("two\nlines")
    said = ["read: loading"] if watched else []
    assert stream.getvalue().splitlines() == [
        *said,
        "read: a\ufffd[31m is damaged",
        "two",
        "lines",
    ]


def test_without_standard_error_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    console.tell("loading")
    console.complain("damaged")


def test_half_a_character_can_be_printed() -> None:
    assert console.harmless("a\udc80b\tc\n") == "a\\udc80b\tc\n"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (6_672_547_120, "6.7 GB")],
)
def test_sizes_as_people_write_them(size: int, text: str) -> None:
    assert readable(size) == text


def test_texts_from_elsewhere_are_made_safe_to_print() -> None:
    assert one_line("a\x1b[31m\n b\x00c") == "a [31m b c"
    assert one_line("https://x.org/y?Signature=z failed") == "https://x.org/y?… failed"
    assert len(one_line("x" * 1000)) == 300


def test_long_messages_are_cut_before_they_are_searched() -> None:
    assert len(one_line("http://" * 299_000)) == 300  # searched whole, it would take minutes
    said = one_line(f"https://x.org/y?{'secret' * 9_000} failed")
    assert said.startswith("https://x.org/y?…")
    assert "secret" not in said
    assert one_line("\n" * 99_000 + "end" + " " * 99_000) == "end"
