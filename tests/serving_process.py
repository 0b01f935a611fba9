"""The server in a process of its own, with an engine whose text is known, for tests of documents.

A page says by its colour which it is (`page_picture`); `text_of` is what is read from it. Each
piece of text takes `--delay` seconds. With `--engine pocket` the bundled model reads. While the
file `full` is in its folder the database of jobs takes nothing, as on a full disk.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import torch
from PIL import Image

from deepseek_ocr.engine.results import Counts, Delta, Failure, Page, Reading, Timings
from deepseek_ocr.errors import CancelledError, GenerationError
from deepseek_ocr.grounding import parser
from examples import make_document, output_pictures
from tests.conftest import ROOT

HOSTILE = 666
"""The page whose text attacks whoever shows it."""
EXAMPLE = (65_534, 65_535)
"""The two pages of `examples/make_document.py`, which are white where others have their colour."""
FAILING = 500
LOOPING = 501
FORMATTED = 502
"""The page that has text in front of its regions (`FRONT`), and the regions `PARTS`."""
GATED = range(300, 400)
"""Pages in the middle of which the engine stands still until the gate, a file, is there."""

_PIECE = 7
_STEP, _DIGITS = 8, 30  # colours that JPEG leaves apart

ATTACKS = """<script>window.attacked=1</script><img src=x onerror="window.attacked=2">
<svg onload="window.attacked=3"></svg> [link](javascript:window.attacked=4)
<iframe srcdoc="<script>parent.attacked=5</script>"></iframe><a href="javascript:alert(6)">x</a>
<table onclick="window.attacked=7"><tr><td style="position:fixed;inset:0">cell</td></tr></table>
![picture](https://example.org/beacon.png) <style>*{display:none}</style>"""

FRONT = r"Chapter <|ref|> 2, of \coloneqq"
"""Text with a tag that begins no region."""
PARTS = {
    "title": "# The motion of bodies",
    "list": "1. at rest\n3. in a straight line\n\n\n7. on a circle",
    "text": r"Let \(f(v) \coloneqq \frac{1}{2} m v^{2}\) be its *energy*, if x < y & y > 0.",
    "equation": r"\[\int_{0}^{\infty} e^{-x^{2}} \, dx = \frac{\sqrt{\pi}}{2}\]",
    "table": "<table><tr><td colspan=2>Body</td></tr>\n"
    "<tr><td>Moon</td><td>1,022 m/s</td></tr></table>",
    r"Figure 1. The path of a body with speed \(v_0\)": "",
}
"""What stands in its regions, by their labels; the text of the last stands in its tag."""


def text_of(number: int) -> str:
    """What is read from a page."""
    if number in EXAMPLE:
        items = make_document.PAGES[EXAMPLE.index(number)]
        return output_pictures.reading(1, items, make_document.SIZE).text
    if number == HOSTILE:
        label = '"><img src=x onerror=window.attacked=8>'
        return f"<|ref|>{label}<|/ref|><|det|>[[50, 50, 900, 900]]<|/det|>\n{ATTACKS}"
    if number == FORMATTED:
        return f"{FRONT}\n\n\n\n" + "\n\n".join(
            f"<|ref|>{label}<|/ref|><|det|>[[90, {at}, 900, {at + 90}]]<|/det|>\n{text}"
            for at, (label, text) in zip(range(60, 960, 150), PARTS.items(), strict=True)
        )
    if number == LOOPING:
        return "la " * 40
    return (
        "<|ref|>title<|/ref|><|det|>[[90, 60, 900, 130]]<|/det|>\n"
        f"# Page {number} of the report\n\n"
        "<|ref|>text<|/ref|><|det|>[[90, 170, 900, 420]]<|/det|>\n"
        f"The bakery sold more bread in every month of the spring; this is page {number}.\n\n"
        "<|ref|>table<|/ref|><|det|>[[90, 470, 900, 690]]<|/det|>\n"
        "<table><tr><td>Month</td><td>Loaves</td></tr><tr><td>April</td><td>1,240</td></tr>"
        "</table>\n\n"
        "<|ref|>image<|/ref|><|det|>[[90, 730, 900, 940]]<|/det|>\n"
    )


class _Handle:
    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def cancel(self) -> None:
        self.cancelled.set()


class KnownEngine:
    """Reads pages of one colour, as many at once as it has slots."""

    def __init__(self, delay: float, slots: int, folder: Path) -> None:
        self.slots, self.device, self._delay = slots, torch.device("cpu"), delay
        self._log, self._gate = folder / "read.txt", folder / "gate"
        self._free = threading.Semaphore(slots)
        self.active = 0
        self.is_running = True

    def submit(self, page: Page, on_event: Callable[[Any], None]) -> _Handle:
        handle = _Handle()
        threading.Thread(target=self._read, args=(page, on_event, handle), daemon=True).start()
        return handle

    def status(self) -> SimpleNamespace:
        return SimpleNamespace(slots=self.slots, active=self.active, waiting=0)

    def close(self) -> None:
        pass

    def _read(self, page: Page, on_event: Callable[[Any], None], handle: _Handle) -> None:
        with self._free:
            self.active += 1
            try:
                on_event(self._outcome(page, on_event, handle))
            finally:
                self.active -= 1

    def _outcome(self, page: Page, on_event: Callable[[Any], None], handle: _Handle) -> Any:
        image: Any = page.image
        red, green, _ = image.getpixel((image.width // 2, image.height - 3))
        number = round(red / _STEP) * _DIGITS + round(green / _STEP)
        number = EXAMPLE[_has_chart(image)] if red == green == 255 else number
        with self._log.open("a") as file:
            file.write(f"{number}\n")
        if number == FAILING:
            return Failure(GenerationError("The network's output is not a finite number."))
        text = text_of(number)
        for at in range(0, len(text), _PIECE):
            while number in GATED and at > len(text) / 2 and not self._gate.exists():
                if handle.cancelled.wait(0.01):
                    break
            if handle.cancelled.wait(self._delay):
                return Failure(CancelledError("The page was cancelled."))
            on_event(Delta(text[at : at + _PIECE], ()))
        return Reading(
            text, tuple(parser.parse(text)), "loop" if number == LOOPING else "stop", None,
            Counts(10, 5, len(text), 5, 1.0), Timings(0.0, 0.0, 0.0, 0.1), (), image.size,
        )  # fmt: skip


def _has_chart(image: Image.Image) -> int:
    """1 for the second page of the example, 0 for the first: it has a chart where the other is
    empty."""
    width, height = image.size
    darkest, _ = image.convert("L").crop((0, height * 2 // 5, width, height // 2)).getextrema()
    return int(darkest > 128)


def page_picture(number: int, size: tuple[int, int] = (300, 400)) -> Image.Image:
    """The picture of a page: red and green are the digits of its number."""
    return Image.new("RGB", size, (number // _DIGITS * _STEP, number % _DIGITS * _STEP, 200))


def document(path: Path, numbers: Sequence[int]) -> Path:
    """A document of such pages: a PDF, a TIFF or another picture by the ending of `path`."""
    first, *others = [page_picture(number) for number in numbers]
    if path.suffix == ".pdf":
        first.save(path, save_all=True, append_images=others, resolution=72.0, quality=100,
                   subsampling=0)  # fmt: skip
    elif others:
        first.save(path, save_all=True, append_images=others)
    else:
        first.save(path)
    return path


# --- the process --------------------------------------------------------------------------------


class Server:
    """A running server: its address, its process, and a client that knows its key."""

    def __init__(self, folder: Path, *options: str, keys: str = "", port: int = 0) -> None:
        self.folder = folder
        self._log = (folder / "server.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.serving_process", "--folder", str(folder),
             "--port", str(port), "--keys", keys, *options],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (folder / "server.log").read_text()
        self.port = int(line)
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = self.client(keys.split(",", maxsplit=1)[0])
        self._until_ready()

    def client(self, key: str) -> httpx.Client:
        """A client with a key."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def open_gate(self) -> None:
        """Let the gated pages come to their end."""
        (self.folder / "gate").touch()

    def close_gate(self) -> None:
        """Let gated pages stand still again."""
        (self.folder / "gate").unlink(missing_ok=True)

    def read(self) -> list[int]:
        """Every page that the engine was given, in this run and those before it."""
        log = self.folder / "read.txt"
        return [int(line) for line in log.read_text().split()] if log.exists() else []

    def _until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if self.http.get("/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError("the server did not become ready")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal and wait for its end; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop(signal.SIGKILL)
        self.http.close()
        self._log.close()
        assert self.process.stdout is not None
        self.process.stdout.close()


def _main() -> None:
    known = argparse.ArgumentParser()
    known.add_argument("--folder", type=Path)
    known.add_argument("--port", type=int)
    known.add_argument("--keys")
    known.add_argument("--engine", default="known")
    known.add_argument("--delay", type=float, default=0.0)
    known.add_argument("--slots", type=int, default=2)
    known.add_argument("--model", default="pocket")
    known.add_argument("--max-pixels", type=int, default=100_000_000)
    flags = known.parse_args()

    from deepseek_ocr import configuration
    from deepseek_ocr.engine.ocr_engine import OcrEngine
    from deepseek_ocr.server.lifecycle import listen, run
    from deepseek_ocr.server.observability import logs
    from deepseek_ocr.server.queueing.model_pools import Engines
    from deepseek_ocr.server.security.api_keys import Keys
    from deepseek_ocr.server.server_state import ServerState

    def load() -> Engines:
        if flags.engine == "pocket":
            return {flags.model: (OcrEngine.load(ROOT / "checkpoints" / "pocket", "cpu"),)}
        engine: Any = KnownEngine(flags.delay, flags.slots, flags.folder)
        return {flags.model: (engine,)}

    _fill_up_while(flags.folder / "full")
    server = configuration.ServerSettings(
        port=flags.port, jobs_folder=str(flags.folder / "jobs"), max_pixels=flags.max_pixels
    )
    keys = Keys(flags.keys.split(",") if flags.keys else [])
    names = {flags.model: "pocket"}
    state = ServerState(configuration.Settings(model="pocket"), server, keys, names, load)
    listener = listen(server.host, server.port)
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    logs.set_up()
    sys.exit(run(state, listener))


def _fill_up_while(full: Path) -> None:
    """Have the database refuse to be changed while the file `full` is there."""
    from deepseek_ocr.server.jobs.job_store import JobStore

    as_it_is = JobStore._run

    def run(self: JobStore, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        if full.exists() and not statement.startswith("SELECT"):
            raise sqlite3.OperationalError("database or disk is full")
        return as_it_is(self, statement, values)

    JobStore._run = run  # type: ignore[method-assign]


if __name__ == "__main__":
    _main()
