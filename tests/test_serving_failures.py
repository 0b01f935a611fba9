"""The server whose device fails: everybody is told, and it ends so that it can be started again."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from deepseek_ocr.configuration import ServerSettings, Settings
from deepseek_ocr.server.app import create_app
from deepseek_ocr.server.queueing.model_pools import AHEAD
from deepseek_ocr.server.security.api_keys import Keys
from deepseek_ocr.server.server_state import ServerState
from tests.conftest import POCKET, ROOT
from tests.failing_device import FAILED
from tests.serving_world import FOREVER, FRUIT, Server, chat, endless_model, serving

CHAT = "/v1/chat/completions"

PROGRAM = """\
import os
import sys
from pathlib import Path

sys.path.insert(0, ROOT)

import pytest
from deepseek_ocr.cli.main import main
from deepseek_ocr.kernels.decoder_factory import DecoderFactory
from tests.failing_device import Card, OnCard

card = Card(pytest.MonkeyPatch())


def make(decoders, slots):
    decoder = OnCard(decoders._network, slots, card)
    decoder.before = lambda _: card.fail() if os.path.exists("fail") else None
    return decoder


DecoderFactory.make = make
raise SystemExit(main(["serve", *sys.argv[1:]]))
"""
"""The real program, on a device that fails at the next step once there is a file `fail`."""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "serve.py").write_text(PROGRAM.replace("ROOT", repr(str(ROOT)), 1))
    return folder


async def ask_until_it_fails(server: Server, fail: Path) -> tuple[list[str], list[httpx.Response]]:
    """What a page is streamed, and what the others are answered that come behind it, more than the
    engine takes; the device fails in the middle."""
    async with (
        httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as http,
        http.stream("POST", CHAT, json=chat("ocr", **FOREVER, stream=True)) as streamed,
        asyncio.TaskGroup() as group,
    ):
        lines = streamed.aiter_lines()
        told = [await anext(lines)]
        others = [group.create_task(http.post(CHAT, json=chat("ocr", **FOREVER))) for _ in range(4)]
        while await asyncio.to_thread(server.metric, "deepseek_ocr_queue_waiting") < 2:
            await asyncio.sleep(0.02)
        fail.touch()
        told += [line async for line in lines if line]
    return told, [task.result() for task in others]


def test_everybody_is_told_and_the_server_ends_by_itself(program: Path, tmp_path: Path) -> None:
    model = endless_model(tmp_path)
    with serving(
        "--model", str(model), "--slots", "1", checkout=program, program=["serve.py"]
    ) as server:
        streamed, others = asyncio.run(ask_until_it_fails(server, program / "fail"))
        assert server.ended() == 1
    *_, error, end = streamed
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == FAILED
    assert end == "data: [DONE]"
    in_flight = [answer for answer in others if answer.status_code == 500]
    assert len(in_flight) == AHEAD
    for answer in in_flight:
        assert answer.json()["error"] == {
            "message": FAILED, "type": "server_error", "param": None, "code": "engine_error",
        }  # fmt: skip
    waiting = [answer for answer in others if answer.status_code == 503]
    assert len(waiting) == 2
    for answer in waiting:
        assert answer.json()["error"]["code"] == "engine_failed"
        assert "retry-after" in answer.headers
    events = [line["event"] for line in server.lines]
    assert events.count(FAILED) == 1
    assert events.count("an engine failed; the server ends") == 1


def test_documents_go_on_after_the_restart(program: Path, tmp_path: Path) -> None:
    """But the pages that were being read when the device failed: it may have failed of them."""
    path = tmp_path / "pages.tiff"
    picture = Image.open(FRUIT).convert("RGB")
    picture.save(path, save_all=True, append_images=[picture] * 3)
    arguments = ("--model", str(POCKET), "--slots", "1", "--jobs-folder", str(tmp_path / "jobs"))
    (program / "fail").touch()
    with serving(*arguments, checkout=program, program=["serve.py"]) as server:
        sent = {"file": (path.name, path.read_bytes())}
        job = server.post("/v1/ocr/jobs", files=sent).json()["id"]
        assert server.ended() == 1
    (program / "fail").unlink()
    with serving(*arguments, checkout=program, program=["serve.py"]) as server:
        status = until_done(server, job)
    failed = status["pages"]["failed"]
    assert 1 <= failed <= 2
    assert status["pages"]["read"] == 4 - failed
    reasons = [page["error"] for page in status["result"]["pages"] if "text" not in page]
    assert reasons == [FAILED] * failed


def until_done(server: Server, job: str) -> dict[str, Any]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        status: dict[str, Any] = server.get(f"/v1/ocr/jobs/{job}").json()
        if status["status"] == "done":
            return status
        time.sleep(0.05)
    raise AssertionError(status)


# --- in this process ----------------------------------------------------------------------------


class Engine:
    """One that may stop reading."""

    slots, device = 1, "cuda:1"

    def __init__(self) -> None:
        self.is_running = True

    def close(self) -> None:
        pass


@pytest.fixture
def engines() -> tuple[Engine, Engine]:
    return Engine(), Engine()


@pytest.fixture
def state(engines: tuple[Engine, Engine]) -> ServerState:
    def load() -> Any:
        return {"pocket": engines}

    return ServerState(Settings(), ServerSettings(), Keys(()), {"pocket": "pocket"}, load)


def test_one_engine_of_several_is_enough(
    state: ServerState, engines: tuple[Engine, Engine]
) -> None:
    async def scenario() -> None:
        failed = asyncio.Event()
        app = create_app(state, failed.set)
        transport = httpx.ASGITransport(app)
        async with (
            asyncio.timeout(60),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as http,
            app.router.lifespan_context(app),
        ):
            while (await http.get("/ready")).status_code != 200:
                await asyncio.sleep(0.01)
            engines[1].is_running = False
            answer = await http.get("/ready")
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "engine_failed"
            assert (await http.get("/health")).status_code == 200
            answer = await http.post(CHAT, json=chat("ocr"))
            assert answer.json()["error"]["code"] == "engine_failed"
            await failed.wait()
            assert state.failed is not None
            state.close_queues()
            for path in ("/ready", "/v1/models"):
                assert (await http.get(path)).json()["error"]["code"] == "engine_failed"

    asyncio.run(scenario())


def test_engines_that_are_stopped_with_the_server_have_not_failed(
    state: ServerState, engines: tuple[Engine, Engine]
) -> None:
    state.open_pools({"pocket": engines})  # type: ignore[dict-item]
    assert state.ready
    state.close_queues()
    engines[0].is_running = False
    assert state.problem is not None
    assert state.problem.code == "shutting_down"
    assert state.failed is None
