"""The real server as a real process on a free port of loopback, and what tests ask of it."""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.conftest import POCKET, ROOT

FRUIT = ROOT / "examples" / "fruit.png"
TEXT = {"fruit": "Apple 12\nLemon 34", "invoice": "Invoice", "total": "Total 498"}
ENDLESS = "endless"
SERVE = ("-m", "deepseek_ocr", "serve")


class Server:
    """`deepseek-ocr serve` with some arguments; `lines` are what it has logged so far.

    It keeps documents in a folder of its own, which no other server holds. `checkout` is where its
    program is, `program` what Python is given to run.
    """

    def __init__(
        self,
        *arguments: str,
        environ: dict[str, str] | None = None,
        checkout: Path = ROOT,
        program: Sequence[str] = SERVE,
    ) -> None:
        self.lines: list[dict[str, Any]] = []
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        state = tempfile.mkdtemp(dir=os.environ["XDG_STATE_HOME"])
        self.process = subprocess.Popen(
            [sys.executable, *program, "--port", "0", *arguments],
            cwd=checkout,
            env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": state, **(environ or {})},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = str(self.wait_for("listening")["url"])

    def wait_for(self, event: str, seconds: float = 240) -> dict[str, Any]:
        """The next line of the log that says `event`."""
        while True:
            line = self._events.get(timeout=seconds)
            assert line["event"] != "the process ended", self.lines
            if line["event"] == event:
                return line

    def get(self, path: str, **options: Any) -> httpx.Response:
        """An answer."""
        return httpx.get(self.url + path, trust_env=False, timeout=60, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        """An answer."""
        return httpx.post(self.url + path, trust_env=False, timeout=120, **options)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all that has these labels."""
        total = 0.0
        for line in self.get("/metrics").text.splitlines():
            head, _, value = line.rpartition(" ")
            fits = all(f'{label}="{wanted}"' in head for label, wanted in labels.items())
            if head.partition("{")[0] == name and fits:
                total += float(value)
        return total

    def stop(self, number: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Send a signal; the exit status."""
        self.process.send_signal(number)
        try:
            return self.process.wait(seconds)
        finally:
            self._close()

    def ended(self, seconds: float = 60) -> int:
        """Its exit status, once it has ended by itself."""
        try:
            return self.process.wait(seconds)
        finally:
            self._close()

    def _close(self) -> None:
        self.process.kill()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for text in self.process.stderr:
            try:
                line = json.loads(text)
            except ValueError:
                line = {"event": text.rstrip(), "level": "plain"}
            self.lines.append(line)
            self._events.put(line)
        self._events.put({"event": "the process ended"})


@contextmanager
def serving(
    *arguments: str,
    environ: dict[str, str] | None = None,
    checkout: Path = ROOT,
    program: Sequence[str] = SERVE,
) -> Iterator[Server]:
    """A server that is ready."""
    server = Server(*arguments, environ=environ, checkout=checkout, program=program)
    try:
        server.wait_for("ready")
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


def endless_model(folder: Path) -> Path:
    """The pocket model with another end token, which it never writes: pages go on to the limit."""
    shutil.copytree(POCKET, folder / ENDLESS)
    path = folder / ENDLESS / "config.json"
    config = json.loads(path.read_text())
    config["eos_token_id"] = config["pad_token_id"]
    path.write_text(json.dumps(config))
    return folder / ENDLESS


def uri(data: bytes | Path, kind: str = "image/png") -> str:
    """A data URI."""
    data = data.read_bytes() if isinstance(data, Path) else data
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture_part(url: str) -> dict[str, Any]:
    """A picture in a message."""
    return {"type": "image_url", "image_url": {"url": url}}


def message(text: str, *urls: str) -> dict[str, Any]:
    """A user's turn."""
    content = [{"type": "text", "text": text}, *(picture_part(url) for url in urls)]
    return {"role": "user", "content": content}


def chat(text: str = "", *urls: str, **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "pocket", "messages": [message(text, *(urls or (uri(FRUIT),)))], **fields}


FOREVER = {"model": ENDLESS, "stop_on_loop": False, "no_repeat_ngram_size": 0,
           "no_repeat_window": 0}  # fmt: skip
"""Fields of a request that reads on to the end of the model's context."""
