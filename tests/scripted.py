"""The command `read` with an engine that writes what the colours of a page say, as real processes.

A page filled with the colour (red, green, fault) is page `red * 256 + green`, and `fault` says what
goes wrong with it (`FAULTS`). Run as a module this is a server: it imports everything once and
forks a process for each command line it is sent, so that a test may start and kill many.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Counts, Failure, Page, Reading, Timings
from deepseek_ocr.errors import GenerationError
from deepseek_ocr.grounding import parser
from tests.conftest import ROOT

FAULTS = {
    "none": 0,
    "loops until the guard is closer": 10,
    "is cut at every preset but another": 20,
    "is empty unless sampled": 30,
    "loops always": 40,
    "fails": 50,
    "is empty": 60,
    "is blank": 65,
    "figure": 70,
    "takes too long": 80,
}


def colour(number: int, fault: str = "none") -> tuple[int, int, int]:
    """The colour of a page."""
    return number // 256, number % 256, FAULTS[fault]


def text_of(number: int) -> str:
    """What is read from a page without fault."""
    return f"This is page {number}."


class ScriptedEngine:
    """Reads pages of one colour, `delay` seconds each; appends to `log` what it was asked for."""

    device, dtype, is_running = "cpu", "torch.float32", True

    def __init__(self, delay: float = 0.0, log: Path | None = None) -> None:
        self._delay, self._log = delay, log

    def read_many(self, pages: Iterable[Page]) -> Iterator[Reading | Failure]:
        for page in pages:
            time.sleep(self._delay)
            outcome = self._read(page)
            yield outcome

    def _read(self, page: Page) -> Reading | Failure:
        image: Any = page.image
        red, green, blue = image.getpixel((image.width // 2, image.height // 2))
        number = red * 256 + green
        if self._log:
            with self._log.open("a") as file:
                file.write(f"{number}\n")
        fault = min(FAULTS, key=lambda name: abs(FAULTS[name] - blue))
        good = {
            "none": True,
            "figure": True,
            "loops until the guard is closer": page.decode.no_repeat_ngram_size == 20,
            "is cut at every preset but another": page.crop.image_size == 1024,
            "is empty unless sampled": page.decode.temperature > 0,
        }.get(fault, False)
        text, finish = text_of(number), "stop"
        if fault == "figure":
            text = f"<|ref|>image<|/ref|><|det|>[[100, 100, 900, 500]]<|/det|>\n{text}"
        if fault == "fails":
            return Failure(GenerationError("The network's output is not a finite number."))
        if not good:
            text, finish = {
                "loops until the guard is closer": ("la " * 50, "loop"),
                "loops always": ("la " * 50 + "x" * page.decode.no_repeat_ngram_size, "loop"),
                "is cut at every preset but another": (text * 3, "length"),
                "takes too long": (text, "timeout"),
            }.get(fault, ("", "stop"))
        return reading(text, finish, image.size, seconds=self._delay)


def reading(
    text: str, finish: Any, size: tuple[int, int] = (100, 100), seconds: float = 0.0
) -> Reading:
    """A reading of `text`."""
    return Reading(
        text, tuple(parser.parse(text)), finish, None, Counts(10, 5, len(text), 5, 1.0),
        Timings(0.0, 0.0, 0.0, seconds), (), size,
    )  # fmt: skip


# --- processes ----------------------------------------------------------------------------------


@dataclass
class Run:
    """A process that runs `deepseek-ocr read`."""

    server: Server
    pid: int
    folder: Path

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self) -> tuple[int, str, str]:
        """Its exit status (negative: the signal that ended it), output and messages."""
        status = self.server.status_of(self.pid)
        paths = [self.folder / name for name in ("out", "err")]  # it may have died before them
        out, err = (path.read_text() if path.exists() else "" for path in paths)
        return status, out, err


class Server:
    """Forks `deepseek-ocr read` with the scripted engine."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.scripted"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._statuses: dict[int, int] = {}
        self._count = 0

    def start(
        self, *arguments: str | Path, cwd: Path, delay: float = 0.0, log: Path | None = None
    ) -> Run:
        """`deepseek-ocr read ARGUMENTS` in the folder `cwd`; each page takes `delay` seconds."""
        self._count += 1
        folder = cwd / f".run-{self._count}"
        folder.mkdir()
        self._send(
            {"arguments": ["--model", "pocket", *map(os.fsdecode, arguments)], "cwd": str(cwd),
             "folder": str(folder), "delay": delay, "log": log and str(log)}
        )  # fmt: skip
        return Run(self, self._receive()["pid"], folder)

    def run(
        self, *arguments: str | Path, cwd: Path, log: Path | None = None
    ) -> tuple[int, str, str]:
        """The same, to its end."""
        return self.start(*arguments, cwd=cwd, log=log).wait()

    def status_of(self, pid: int) -> int:
        """Wait for a process."""
        self._send({"wait": pid})
        return int(self._receive()["status"])

    def _send(self, data: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(data) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.communicate(timeout=60)


def _serve() -> None:

    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"status": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                _child(request)
            answer = {"pid": pid}
        sys.__stdout__.write(json.dumps(answer) + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


def _child(request: dict[str, Any]) -> None:
    """Be `deepseek-ocr read`, never return."""
    status = 99
    try:
        folder = Path(request["folder"])
        for name, number in (("out", 1), ("err", 2)):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (
            open(number, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
            for number in (1, 2)
        )
        os.chdir(request["cwd"])
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        log = request["log"] and Path(request["log"])
        OcrEngine.from_options = lambda *_: ScriptedEngine(request["delay"], log)  # type: ignore
        from deepseek_ocr.cli.main import main

        status = main(["read", *request["arguments"]])
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
