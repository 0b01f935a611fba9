"""The two downloaders: how pget is called, what the library continues, what is shown meanwhile."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants

from deepseek_ocr.weights import catalog, growth, registry
from tests.weights_steps import CONTENT, check, ensure, failing, until
from tests.weights_world import NAME, WEIGHTS, Trouble, World

pytest_plugins = ["tests.weights_fixtures"]


# --- pget and the library -----------------------------------------------------------------------


def test_pget_is_called_as_it_understands(world: World, pget: Path) -> None:
    ensure(world, "replicate")
    ensure_again = [json.loads(line) for line in pget.read_text().splitlines()]
    url = world.table[NAME].sources[0].url
    assert [call["arguments"] for call in ensure_again] == [[url, "part.tar"]]
    pid_file = Path(ensure_again[0]["environment"]["PGET_PID_FILE"])
    assert pid_file.is_relative_to(world.home), "the system-wide lock is for root only"


def test_several_files_go_in_one_manifest(world: World, pget: Path) -> None:
    ensure(world, "modelscope")
    calls = [json.loads(line)["arguments"] for line in pget.read_text().splitlines()]
    assert calls == [["multifile", "manifest.txt"]]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("#!/nowhere/python\n", "pget cannot be started: No such file"),
        ("#!/bin/sh\nexit 3\n", "pget ended with status 3: it said nothing"),
        ('#!/bin/sh\necho "usage: \x1b[1mpget"; exit 2\n', "status 2: usage: .1mpget"),
        ("#!/bin/sh\nkill -9 $$\n", "pget ended with status -9"),
        ("#!/bin/sh\nexit 0\n", "part.tar"),
    ],
)
def test_another_program_called_pget(world: World, pget: Path, program: str, message: str) -> None:
    (pget.parent / "pget").write_text(program)
    failing(world, "replicate", message)


def test_no_signed_address_gets_into_a_message(world: World, carrier: str) -> None:
    world.troubles = [Trouble(CONTENT["huggingface"], status=403)]
    assert "not-for-logs" not in failing(world, "huggingface", "403")


def test_an_interrupted_download_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    world.troubles = [
        Trouble(CONTENT["modelscope"], cut=1000, times=1),
        Trouble(CONTENT["modelscope"], status=503, times=1),
    ]
    failing(world, "modelscope", "broke off")
    world.requests.clear()
    ensure(world, "modelscope")
    check(world, "modelscope")
    (request,) = world.asked(CONTENT["modelscope"])
    assert request.headers["range"] == "bytes=1000-"


def test_what_is_continued_with_something_else_starts_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    world.troubles = [
        Trouble(CONTENT["modelscope"], cut=1000, times=1),
        Trouble(CONTENT["modelscope"], status=503, times=1),
    ]
    failing(world, "modelscope", "broke off")
    part = world.home / f".{NAME}.part/modelscope/{WEIGHTS}"
    assert part.stat().st_size == 1000
    part.write_bytes(b"x" * 1000)
    failing(world, "modelscope", "another SHA-256|damaged")
    ensure(world, "modelscope")
    check(world, "modelscope")


def test_a_beginning_that_is_too_long_starts_over(world: World) -> None:
    part = world.home / f".{NAME}.part/modelscope/{WEIGHTS}"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(len(world.files[WEIGHTS]) + 1))
    ensure(world, "modelscope")
    check(world, "modelscope")


def test_a_tar_is_never_continued(world: World) -> None:
    part = world.home / f".{NAME}.part/replicate/part.tar"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"of another tar")
    ensure(world, "replicate")
    check(world, "replicate")
    assert all("range" not in request.headers for request in world.requests)


def test_files_that_came_from_hugging_face_do_not_come_twice(world: World) -> None:
    world.troubles = [Trouble("/cdn/", status=500)]
    failing(world, "huggingface", "500")
    leftover = world.home / f".{NAME}.part/huggingface/.cache/huggingface/download/x.incomplete"
    leftover.write_bytes(b"half")
    failing(world, "huggingface", "500")
    assert not leftover.exists(), "nothing ever continues these"
    world.troubles = []
    world.requests.clear()
    ensure(world, "huggingface")
    check(world, "huggingface")
    assert not world.asked("/resolve/", "GET")[1:], "only the large file is asked for again"


# --- progress -----------------------------------------------------------------------------------


def test_progress_in_a_log_is_plain_lines(
    world: World, carrier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.troubles = [Trouble(CONTENT["modelscope"], cut=200_000, stall=True, times=1)]
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 30)
    monkeypatch.setattr(growth, "LOG_INTERVAL_S", 0.05)
    said, finished = io.StringIO(), threading.Event()
    monkeypatch.setattr("sys.stderr", said)

    def let_go() -> None:
        while "%" not in said.getvalue():
            assert not finished.wait(0.01), "fetched without a word about progress"
        world.release.set()

    thread = threading.Thread(target=let_go)
    thread.start()
    monkeypatch.setattr(catalog, "CHECKPOINTS", world.table)
    try:
        registry.ensure(NAME, world.home, "modelscope")
    finally:
        finished.set()
        thread.join()
    lines = [line for line in said.getvalue().splitlines() if "%" in line]
    assert lines[0].startswith("  ")
    assert " of 4" in lines[-1]
    assert "\r" not in said.getvalue()


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_a_bar_that_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(growth, "LOG_INTERVAL_S", 0.05)
    with growth.show_growth(tmp_path, 10):
        (tmp_path / "part").write_bytes(b"12345")
        until(lambda: "%" in terminal.getvalue(), "progress")
    assert "5 bytes of 10 bytes (50%)" in terminal.getvalue()
    erased_line = "\x1b[2K"
    assert terminal.getvalue().endswith(erased_line)


def test_progress_towards_an_unknown_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    monkeypatch.setattr(growth, "LOG_INTERVAL_S", 0.01)
    with growth.show_growth(tmp_path, 0):
        until(lambda: "bytes/s" in said.getvalue(), "progress")
    assert said.getvalue().startswith("  0 bytes, 0 bytes/s\n")
