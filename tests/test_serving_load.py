"""The real server under load: fair shares, a full queue, clients that hang up, and being told to
stop in the middle of it.

`SERVING_LOAD_SECONDS=60` makes the hundred clients go on for a minute.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepseek_ocr.server.queueing.model_pools import AHEAD
from tests.conftest import ROOT
from tests.serving_world import (
    ENDLESS,
    FOREVER,
    TEXT,
    Server,
    chat,
    endless_model,
    serving,
)

CLIENTS = 100
SECONDS = float(os.environ.get("SERVING_LOAD_SECONDS", "8"))
IN_FLIGHT = 1 + AHEAD
"""Pages on an engine with one slot."""


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def narrow(endless: Path) -> Iterator[Server]:
    """One slot and a short queue."""
    arguments = ("--model", str(endless), "--slots", "1", "--max-waiting", "2")
    with serving(*arguments) as server:
        yield server


def forever(**fields: Any) -> dict[str, Any]:
    return chat("ocr", **{**FOREVER, **fields})


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(seconds):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


def session(server: Server, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=300, **options)


def text_of(answer: httpx.Response, streamed: bool) -> str:
    """What was read, of an answer that must have come to its end without an error."""
    if not streamed:
        return str(answer.json()["choices"][0]["message"]["content"])
    assert answer.text.endswith("data: [DONE]\n\n")
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(event) for event in events]
    assert not [chunk for chunk in chunks if "error" in chunk]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def test_a_hundred_clients_at_once(tmp_path: Path) -> None:
    """No errors, fair shares, no slot leaked, memory flat."""
    names = [f"key-number-{number:03d}" for number in range(CLIENTS)]
    (tmp_path / "keys").write_text("\n".join(names))
    read: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    arguments = ("--model", "pocket", "--slots", "8", "--api-key-file", str(tmp_path / "keys"))

    async def client(name: str, http: httpx.AsyncClient, end: float) -> None:
        headers = {"authorization": f"Bearer {name}"}
        for turn in itertools.count():
            if time.monotonic() > end:
                return
            body = chat("ocr", stream=bool(turn % 2))
            answer = await http.post("/v1/chat/completions", json=body, headers=headers)
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                assert text_of(answer, body["stream"]) == TEXT["fruit"]
                read[name] += 1
            else:
                await asyncio.sleep(float(answer.headers["retry-after"]))

    async def all_clients(server: Server, seconds: float) -> None:
        limits = httpx.Limits(max_connections=None)
        async with session(server, limits=limits) as http, asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(client(name, http, time.monotonic() + seconds))

    with serving(*arguments) as server:
        real_get = server.get
        server.get = lambda path: real_get(path, headers={"authorization": f"Bearer {names[0]}"})  # type: ignore[method-assign]
        asyncio.run(all_clients(server, 1))  # every buffer has its size now
        memory = server.metric("process_resident_memory_bytes")
        read.clear()
        asyncio.run(all_clients(server, SECONDS))
        grown = server.metric("process_resident_memory_bytes") - memory
        left = [server.metric(f"deepseek_ocr_{what}") for what in
                ("slots_active", "queue_waiting", "active")]  # fmt: skip
    assert set(statuses) <= {200, 429}
    assert statuses[200] >= CLIENTS
    assert max(read.values()) - min(read[name] for name in names) <= 2
    assert left == [0, 0, 0]
    assert grown < 100e6


def test_a_full_queue_answers_429_and_says_when_to_come_back(narrow: Server) -> None:
    async def run() -> None:
        async with session(narrow) as http, asyncio.TaskGroup() as group:
            readers = [
                group.create_task(http.post("/v1/chat/completions", json=forever(max_tokens=200)))
                for _ in range(IN_FLIGHT + 2)
            ]
            await until(lambda: narrow.metric("deepseek_ocr_queue_waiting") == 2)
            for stream in (False, True):
                full = await http.post("/v1/chat/completions", json=forever(stream=stream))
                assert full.status_code == 429
                assert int(full.headers["retry-after"]) >= 1
                assert full.json()["error"]["type"] == "rate_limit_error"
            answers = await asyncio.gather(*readers)
            assert [answer.status_code for answer in answers] == [200] * len(readers)

    asyncio.run(run())


def test_who_hangs_up_frees_the_slot(narrow: Server) -> None:
    """The page would go on for hundreds of tokens; it is given up within one, whole or streamed."""

    async def run(stream: bool) -> None:
        cancelled = narrow.metric("deepseek_ocr_pages_total", finish_reason="cancelled")
        whole = narrow.metric("deepseek_ocr_pages_total", finish_reason="length")
        async with session(narrow) as http:
            body = forever(stream=stream)
            reader = asyncio.create_task(http.post("/v1/chat/completions", json=body))
            await until(lambda: narrow.metric("deepseek_ocr_slots_active") == 1)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await until(lambda: narrow.metric("deepseek_ocr_slots_active") == 0)
        assert narrow.metric("deepseek_ocr_pages_total", finish_reason="cancelled") == cancelled + 1
        assert narrow.metric("deepseek_ocr_pages_total", finish_reason="length") == whole
        assert narrow.metric("deepseek_ocr_active") == 0

    for stream in (False, True):
        asyncio.run(run(stream))


def test_who_hangs_up_while_waiting_leaves_the_queue(narrow: Server) -> None:
    async def run() -> None:
        async with session(narrow) as http:
            readers = [
                asyncio.create_task(http.post("/v1/chat/completions", json=forever(stream=True)))
                for _ in range(IN_FLIGHT + 2)
            ]
            await until(lambda: narrow.metric("deepseek_ocr_queue_waiting") == 2)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            await until(lambda: narrow.metric("deepseek_ocr_active") == 0)
            assert narrow.metric("deepseek_ocr_queue_waiting") == 0
            await until(lambda: narrow.metric("deepseek_ocr_slots_active") == 0)

    asyncio.run(run())


def test_told_to_stop_pages_in_flight_end_and_waiting_requests_get_503(endless: Path) -> None:
    async def run(server: Server) -> list[httpx.Response]:
        async with session(server) as http, asyncio.TaskGroup() as group:
            readers = [
                group.create_task(
                    http.post(
                        "/v1/chat/completions", json=forever(max_tokens=60, stream=bool(n % 2))
                    )
                )
                for n in range(IN_FLIGHT + 3)
            ]
            await until(lambda: server.metric("deepseek_ocr_queue_waiting") == 3)
            server.process.terminate()
            return list(await asyncio.gather(*readers))

    with serving("--model", str(endless), "--slots", "1") as server:
        answers = asyncio.run(run(server))
        assert server.stop(0) == 0
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses == {200: IN_FLIGHT, 503: 3}
    for answer in answers:
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "shutting_down"
            assert "retry-after" in answer.headers
        elif "text/event-stream" in answer.headers["content-type"]:
            assert answer.text.endswith("data: [DONE]\n\n")
            assert "error" not in answer.text
        else:
            assert answer.json()["usage"]["completion_tokens"] == 60


LOADING = """
import sys
import torch
from deepseek_ocr import configuration
from deepseek_ocr.server.observability import logs
from deepseek_ocr.server.security.api_keys import Keys
from deepseek_ocr.server.lifecycle import listen, run
from deepseek_ocr.server.server_state import ServerState

def load():
    logs.event("loading")
    while True:
        torch.ones(300, 300) @ torch.ones(300, 300)

server = configuration.ServerSettings(port=0, jobs_folder=sys.argv[1])
logs.set_up()
state = ServerState(configuration.Settings(), server, Keys(()), {"pocket": "pocket"}, load)
sys.exit(run(state, listen(server.host, server.port)))
"""
"""A server whose model is never loaded, though it computes."""


def test_told_to_stop_while_the_model_loads_it_stops(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOADING, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    with process, process.stderr as lines:
        try:
            while json.loads(next(lines))["event"] != "loading":
                pass
            process.terminate()
            assert process.wait(20) == 0
            events = [json.loads(line)["event"] for line in lines]
        finally:
            process.kill()
    assert "stopping" in events


def test_a_page_that_does_not_end_in_time_is_given_up_and_its_client_told(endless: Path) -> None:
    arguments = ("--model", str(endless), "--slots", "1", "--shutdown-seconds", "0.3")
    with serving(*arguments) as server:
        with (
            httpx.Client(base_url=server.url, trust_env=False, timeout=60) as http,
            http.stream("POST", "/v1/chat/completions", json=forever(stream=True)) as answer,
        ):
            lines = answer.iter_lines()
            first = next(lines)
            server.process.terminate()
            events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert server.stop(0) == 0
    assert events[-1]["error"]["code"] == "shutting_down"
    assert ENDLESS in first
