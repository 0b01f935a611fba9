"""What stands in the log, and what does not."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT
from tests.serving_world import FOREVER, Server, chat

STRANGERS = """
import asyncio, logging, threading, warnings
import transformers.utils.logging

from deepseek_ocr.server.observability import logs

logs.set_up()
logs.event("ours", pages=1)
logging.getLogger("somebody").warning("a word")
logging.getLogger("somebody").info("chatter")
transformers.utils.logging.get_logger("transformers.x").warning("of a library")
warnings.warn("mind this")

async def lose():
    async def fail():
        raise ValueError("text of a document")
    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)

asyncio.run(lose())
thread = threading.Thread(target=lambda: 1 / int("text of a document"))
thread.start()
thread.join()
"""


def test_every_line_is_json_and_no_exception_tells_what_was_read() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRANGERS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    events = " | ".join(line["event"] for line in lines)
    for wanted in ("ours", "a word", "of a library", "mind this", "a thread failed"):
        assert wanted in events
    assert "chatter" not in events
    failed = [line for line in lines if line["level"] == "error"]
    assert [line["error"] for line in failed] == ["ValueError", "ValueError"]
    assert all(line["at"] for line in failed)
    assert "document" not in done.stderr


def line_of(server: Server, request_id: str) -> dict[str, Any]:
    """The line about a request, when it is over; nothing else may have been said of it."""
    line = server.wait_for("request")
    while line["request_id"] != request_id:
        line = server.wait_for("request")
    assert [found for found in server.lines if found.get("request_id") == request_id] == [line]
    return line


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/chat/completions", "application/json"),
        ("/v1/ocr", "multipart/form-data; boundary=b"),
        ("/v1/ocr/jobs", "application/json"),
    ],
)
def test_who_leaves_in_the_middle_of_an_upload_is_no_error(
    open_server: Server, path: str, kind: str
) -> None:
    name = f"left-{path.replace('/', '-')}"
    host, port = open_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: {name}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: 1000\r\n\r\n--b".encode()
        )
    assert line_of(open_server, name)["status"] == 499


def test_who_leaves_in_the_middle_of_a_stream_is_no_error(open_server: Server) -> None:
    body = chat("ocr", **FOREVER, stream=True)
    with (
        httpx.Client(base_url=open_server.url, trust_env=False, timeout=60) as client,
        client.stream(
            "POST", "/v1/chat/completions", json=body, headers={"x-request-id": "left-a-stream"}
        ) as answer,
    ):
        next(answer.iter_lines())
    assert line_of(open_server, "left-a-stream")["status"] == 200


def test_nothing_but_json_comes_from_a_server(open_server: Server) -> None:
    assert open_server.get("/health").status_code == 200
    assert not [line for line in open_server.lines if line["level"] == "plain"]
