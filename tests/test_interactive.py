"""`deepseek-ocr read` at a terminal without a path: it loads once and asks."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek_ocr.cli import interactive
from tests.conftest import ROOT

pty = pytest.importorskip("pty", reason="needs pseudo-terminals")

PATIENCE_S = 240
"""Longest wait for an answer; far beyond what a busy machine needs."""


class Terminal:
    """A program at a terminal."""

    def __init__(self, *arguments: str) -> None:
        self._screen, end = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "deepseek_ocr", "read", *arguments],
            cwd=ROOT, stdin=end, stdout=end, stderr=end, start_new_session=True,
            env=os.environ | {"TERM": "dumb", "INPUTRC": os.devnull},
        )  # fmt: skip
        os.close(end)

    def until(self, mark: str) -> str:
        """What appears up to and with `mark`."""
        seen, deadline = "", time.monotonic() + PATIENCE_S
        while mark not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([self._screen], [], [], 1)[0]:
                try:
                    seen += os.read(self._screen, 4096).decode(errors="replace")
                except OSError:  # the other end is closed
                    break
        assert mark in seen, seen
        return re.sub("\r", "", seen)

    def interrupt(self) -> None:
        """Press Ctrl-C until there is a new prompt: Python notices one that comes in the moment
        before it waits for keys only with the next."""
        deadline = time.monotonic() + PATIENCE_S
        self.process.send_signal(signal.SIGINT)
        while not select.select([self._screen], [], [], 10)[0]:
            assert time.monotonic() < deadline
            self.process.send_signal(signal.SIGINT)
        self.until("page> ")

    def say(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def ask(self, line: str) -> str:
        """The answer to a line, up to the next prompt."""
        self.say(line + "\n")
        return self.until("page> ")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)


@pytest.fixture(scope="module")
def terminal() -> Iterator[Terminal]:
    os.environ["DEEPSEEK_OCR_DEVICE"] = "cpu"
    terminal = Terminal("--model", "pocket")
    terminal.until("page> ")
    yield terminal
    terminal.close()


def test_a_path_is_read_and_the_next_one_asked_for(terminal: Terminal) -> None:
    assert "\nInvoice\n" in terminal.ask("examples/invoice.png")
    assert "\nTotal 498\n" in terminal.ask("'examples/total.png'")


def test_what_cannot_be_read_is_told_and_it_goes_on(terminal: Terminal) -> None:
    assert "does not exist" in terminal.ask("gone.png")
    assert terminal.ask("") == "\npage> "
    assert "is no folder" in terminal.ask("all gone")


def test_help_names_the_commands(terminal: Terminal) -> None:
    answer = terminal.ask("help")
    assert all(name in answer for name in ("all FOLDER", "test", "help", "quit"))


def test_a_folder_is_read_whole(terminal: Terminal, tmp_path: Path) -> None:
    for name in ("total", "invoice"):
        (tmp_path / f"{name}.png").write_bytes((ROOT / "examples" / f"{name}.png").read_bytes())
    answer = terminal.ask(f"all {tmp_path}")
    assert answer.index("\nInvoice\n") < answer.index("\nTotal 498\n")


def test_tab_completes_a_path(terminal: Terminal) -> None:
    terminal.say("examples/inv\t")
    terminal.until("examples/invoice.png")
    assert "\nInvoice\n" in terminal.ask("")


def test_ctrl_c_at_the_prompt_gives_a_new_one_and_quit_ends(terminal: Terminal) -> None:
    terminal.say("half a na")
    terminal.until("half a na")
    terminal.interrupt()
    terminal.say("quit\n")
    assert terminal.process.wait(PATIENCE_S) == 1  # a page had failed before


def test_without_a_terminal_it_does_not_ask() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deepseek_ocr", "read"],
        cwd=ROOT,
        capture_output=True,
        input="",
        text=True,
    )
    assert done.returncode == 2
    assert "no image given" in done.stderr


# --- what a line means --------------------------------------------------------------------------


def test_lines_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.pdf").touch()
    (tmp_path / "it's.pdf").touch()
    (tmp_path / "scans").mkdir()
    assert interactive.understood("quit") == "quit"
    assert interactive.understood("a b.pdf") == ["a b.pdf"]
    assert interactive.understood("'a b.pdf' ") == ["a b.pdf"]
    assert interactive.understood("a\\ b.pdf") == ["a b.pdf"]
    assert interactive.understood("it's.pdf") == ["it's.pdf"]
    assert interactive.understood("all scans") == ["scans"]
    assert len(interactive.understood("test")) >= 3
    (tmp_path / "all the pages.pdf").touch()
    assert interactive.understood("all the pages.pdf") == ["all the pages.pdf"]


def test_completion_knows_commands_folders_and_odd_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scan[1].pdf").touch()

    def ways(text: str) -> list[str]:
        found = [interactive.complete(text, state) for state in range(9)]
        return [way for way in found if way is not None]

    assert ways("sca") == ["scan[1].pdf", "scans/"]
    assert ways("scan[") == ["scan[1].pdf"]
    assert ways("all sc") == ["all scans/"]
    assert ways("he") == ["help"]
    assert ways("zzz") == []
