"""The real Cog server on loopback, over a copy of what `.dockerignore` lets into the image."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from docker.utils.build import exclude_paths

from tests.cog_schema import schema_of
from tests.conftest import ROOT

PATIENCE_S = 120
"""Longest wait for anything; far beyond what a busy machine needs."""


@dataclass(frozen=True)
class Reply:
    """Status and body of an answer."""

    status: int
    body: Any


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]
    folder: Path

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """Send JSON (or bytes as they are) and take the whole answer."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            sent = {"Content-Type": "application/json", **(headers or {})}
            connection.request(method, path, data, sent)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        try:
            return Reply(answer.status, json.loads(text))
        except ValueError:
            return Reply(answer.status, text)

    def predict(self, **inputs: Any) -> Reply:
        """A prediction."""
        return self._ask("POST", "/predictions", inputs, {})

    def _ask(
        self, method: str, path: str, inputs: dict[str, Any], headers: dict[str, str]
    ) -> Reply:
        """Ask for a prediction, again if the server still cleans up after the last one."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            reply = self.request(method, path, {"input": inputs}, headers)
            if reply.status != 409 or time.monotonic() > deadline:
                return reply
            time.sleep(0.02)

    def state(self) -> str:
        """What /health-check says."""
        return str(self.request("GET", "/health-check").body["status"])

    def wait_for(self, *states: str) -> str:
        """Wait until the state is one of `states`."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                state = self.state()
            except OSError:
                state = "NOT UP"
            if state in states:
                return state
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}")
            time.sleep(0.02)
        raise AssertionError(f"not {states} after {PATIENCE_S} s")

    def start(self, name: str, **inputs: Any) -> None:
        """Start a prediction in the background, and wait until it reads."""
        reply = self._ask("PUT", f"/predictions/{name}", inputs, {"Prefer": "respond-async"})
        assert reply.status == 202, reply
        self.wait_until_it_reads(name)

    def wait_until_it_reads(self, name: str) -> None:
        """Wait until a prediction in flight has said that it reads.

        Before that, Cog 0.23.1 is busy with its inputs, and a cancellation in those milliseconds
        is lost.
        """
        deadline = time.monotonic() + PATIENCE_S
        while "reading" not in str(self.in_flight(name)):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def in_flight(self, name: str) -> dict[str, Any] | None:
        """The prediction as it stands; None if no such one is in flight."""
        reply = self.request("PUT", f"/predictions/{name}", {"input": {}})
        return dict(reply.body) if reply.status == 202 else None  # 422: an image would be needed

    def cancel(self, name: str) -> None:
        """Cancel a prediction."""
        assert self.request("POST", f"/predictions/{name}/cancel", {}).status == 200

    def wait_for_the_end(self, name: str) -> float:
        """Wait until no such prediction is in flight; seconds that it took."""
        began = time.monotonic()
        while self.in_flight(name) is not None:
            assert time.monotonic() < began + PATIENCE_S
            time.sleep(0.01)
        return time.monotonic() - began

    def log(self) -> str:
        """What the server and its worker have said."""
        return (self.folder / "server.log").read_text()

    def resident_mb(self) -> float:
        """Resident memory of the server, its worker, and the processes that render."""
        assert len(_family(self.process.pid)) > 1
        return sum(_resident_kb(pid) for pid in _family(self.process.pid)) / 1000


@contextmanager
def running(folder: Path, config: str = "cog.cpu.yaml", **environ: str) -> Iterator[Server]:
    """A server over the copy in `folder`; ended, with all it started, on the way out.

    The predictor and how many predictions may run at once are those of the Cog configuration
    `config`, as an image has them.
    """
    _need_predictions_folder()
    port = _free_port()
    (folder / ".cog").mkdir(exist_ok=True)
    built = yaml.safe_load((folder / config).read_text())
    entry: str = built["predict"]
    file, _, predictor = entry.partition(":")
    schema = schema_of(folder / file, predictor)
    (folder / ".cog" / "openapi_schema.json").write_text(json.dumps(schema))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # its worker runs `python`
        "COG_PREDICT_TYPE_STUB": entry,
        "COG_MAX_CONCURRENCY": str(built.get("concurrency", {}).get("max", 1)),
        "PORT": str(port),
        "DEEPSEEK_OCR_MODEL": "pocket",
        "DEEPSEEK_OCR_DEVICE": "cpu",
        **environ,
    }
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"],
            cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            yield Server(port, process, folder)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextmanager
def ready(folder: Path, config: str = "cog.cpu.yaml", **environ: str) -> Iterator[Server]:
    """As `running`, once the model is loaded."""
    with running(folder, config, **environ) as server:
        assert server.wait_for("READY", "SETUP_FAILED") == "READY", server.log()
        yield server


def _need_predictions_folder() -> None:
    """Skip the test if another user owns the folder that Cog writes predictions to.

    Its path is fixed in Cog, which answers no prediction without it.
    """
    folder = Path("/tmp/coglet/predictions")
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        pytest.skip(f"needs to be allowed to write to {folder}, which Cog writes to")


def copy_image(target: Path, root: Path = ROOT, ignore: str = ".dockerignore") -> Path:
    """Copy what the file `ignore` lets through from `root`, as building an image does."""
    for name in build_context(root, ignore):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name)
    return target


def build_context(root: Path, ignore: str = ".dockerignore") -> list[str]:
    """The files below `root` that the file `ignore` lets through, by Docker's own reading."""
    lines = map(str.strip, (root / ignore).read_text().splitlines())
    patterns = [line for line in lines if line and not line.startswith("#")]
    found = exclude_paths(str(root), patterns, dockerfile="no-dockerfile")
    return sorted(name for name in found if (root / name).is_file())


def data_uri(path: Path) -> str:
    """A file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _family(pid: int) -> list[int]:
    """A process and all that its threads have started."""
    listed: list[str] = []
    for file in Path("/proc").glob(f"{pid}/task/*/children"):
        with suppress(OSError):  # it has just ended
            listed += file.read_text().split()
    return [pid, *(member for child in listed for member in _family(int(child)))]


def _resident_kb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return 0
    found = re.search(r"VmRSS:\s+(\d+)", status)
    return int(found[1]) if found else 0
