"""What the server is told: flags, environment, file; and what it says before it can read."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from deepseek_ocr import configuration
from deepseek_ocr.cli.serve import load_server_settings
from deepseek_ocr.configuration import ServerSettings, Settings
from deepseek_ocr.engine.results import Delta, Failure, Page
from deepseek_ocr.errors import GenerationError, SettingsError
from deepseek_ocr.formats.markdown import PAGE_SPLIT
from deepseek_ocr.server.app import create_app
from deepseek_ocr.server.lifecycle import devices_of, name_of
from deepseek_ocr.server.openai.answers import writer_for
from deepseek_ocr.server.queueing.model_pools import Engines
from deepseek_ocr.server.security.api_keys import Keys
from deepseek_ocr.server.server_state import ServerState
from tests.cog_server import copy_image
from tests.command_line import flags_of
from tests.conftest import ROOT
from tests.scripted import reading
from tests.serving_world import chat, serving


def test_flags_come_before_the_environment_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[server]\nport = 1\nmax_pages = 1\nmax_waiting = 1\ncors = ["a", "b"]\n')
    environ = {"DEEPSEEK_OCR_PORT": "2", "DEEPSEEK_OCR_MAX_PAGES": "2"}
    found = configuration.load_server({"port": 3, "max_pages": None}, environ, file)
    assert (found.port, found.max_pages, found.max_waiting) == (3, 2, 1)
    assert found.cors == ("a", "b")
    assert found.host == "127.0.0.1"


def test_the_environment_has_text_and_gives_values() -> None:
    environ = {
        "DEEPSEEK_OCR_ALLOW_URLS": "yes",
        "DEEPSEEK_OCR_DEVICES": "cuda:0, cuda:1",
        "DEEPSEEK_OCR_PAGE_TIMEOUT": "1.5",
    }
    found = configuration.load_server({}, environ)
    assert (found.allow_urls, found.devices, found.page_timeout) == (
        True,
        ("cuda:0", "cuda:1"),
        1.5,
    )


@pytest.mark.parametrize(
    ("text", "environ"),
    [
        ("[server]\nprot = 1", {}),
        ("[server]\nport = '1'", {}),
        ("[server]\nport = true", {}),
        ("[server]\nport = 99999", {}),
        ("[server]\ncors = 'a'", {}),
        ("[server]\nallow_urls = 'yes'", {}),
        ("server = 3", {}),
        ("", {"DEEPSEEK_OCR_PORT": "many"}),
        ("", {"DEEPSEEK_OCR_NO_AUTH": "perhaps"}),
        ("", {"DEEPSEEK_OCR_PAGE_TIMEOUT": "nan"}),
    ],
)
def test_what_nobody_knows_is_an_error(tmp_path: Path, text: str, environ: dict[str, str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(SettingsError):
        configuration.load_server({}, environ, file)


def config(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deepseek_ocr", "config", *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip


def test_the_file_is_written_and_shown(tmp_path: Path) -> None:
    file = tmp_path / "new" / "c.toml"
    assert config("init", "--config", str(file)).stdout == f"{file}\n"
    assert tomllib.loads(file.read_text()) == {"server": {}}  # all of it is commented out
    assert file.stat().st_mode & 0o077 == 0
    live = "\n".join(
        line.removeprefix("# ") if " = " in line else line for line in file.read_text().splitlines()
    )
    file.write_text(live)
    assert configuration.load({}, {}, file) == Settings()
    assert configuration.load_server({}, {}, file) == ServerSettings()
    done = config("show", "--config", str(file), "--port", "1", "--api-key", "secret-key")
    shown = tomllib.loads(done.stdout)
    assert shown["server"]["port"] == 1
    assert shown["server"]["api_keys"] == ["hidden"]
    done = config("init", "--config", str(file))
    assert done.returncode == 2
    assert "there already" in done.stderr


def start_of(*arguments: str) -> tuple[Settings, ServerSettings]:
    return load_server_settings(flags_of("serve", *arguments))


def test_every_setting_has_a_flag_and_a_meaning() -> None:
    known = set(vars(flags_of("serve")))
    names = [*Settings.__dataclass_fields__, *ServerSettings.__dataclass_fields__]
    # For `weights`; by --model, again; by the environment or the file alone.
    assert set(names) - known == {"source", "models", "strict", "threads"}
    assert set(configuration.MEANINGS) == set(names)


def test_several_models_and_devices() -> None:
    start = start_of("--model", "pocket", "--model", "/x/mine:v2/", "--devices", "cpu,cuda:1")
    assert (start[0].model, start[1].models) == ("pocket", ("/x/mine:v2/",))
    assert devices_of(*start) == ("cpu", "cuda:1")
    assert [name_of(name) for name in ("pocket", "/x/mine:v2/")] == ["pocket", "mine-v2"]
    assert devices_of(*start_of("--workers", "2", "--device", "cuda")) == ("cuda:0", "cuda:1")
    assert devices_of(*start_of("--workers", "2", "--device", "npu")) == ("npu:0", "npu:1")
    assert devices_of(*start_of("--workers", "2", "--device", "cpu")) == ("cpu", "cpu")
    assert devices_of(*start_of("--workers", "2", "--device", "cuda:1")) == ("cuda:1", "cuda:1")


@pytest.mark.parametrize(
    ("here", "wanted"),
    [
        (["cuda", "cpu"], ("cuda:0", "cuda:1")),
        (["npu", "cpu"], ("npu:0", "npu:1")),
        (["cpu"], ("cpu", "cpu")),
    ],
)
def test_workers_take_the_devices_that_are_here(
    monkeypatch: pytest.MonkeyPatch, here: list[str], wanted: tuple[str, ...]
) -> None:
    monkeypatch.setattr("deepseek_ocr.server.lifecycle.available", lambda: here)
    assert devices_of(*start_of("--workers", "2", "--device", "auto")) == wanted


def state(load: Any = dict) -> ServerState:
    return ServerState(Settings(), ServerSettings(), Keys(()), {"pocket": "pocket"}, load)


async def asked(of: ServerState, path: str, **options: Any) -> httpx.Response:
    transport = httpx.ASGITransport(create_app(of))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.request("POST" if options else "GET", path, **options)


def test_before_the_model_is_there_it_is_alive_and_not_ready() -> None:
    for path, options, status in (
        ("/health", {}, 200),
        ("/ready", {}, 503),
        ("/v1/models", {}, 200),
        ("/v1/chat/completions", {"json": chat("ocr")}, 503),
    ):
        answer = asyncio.run(asked(state(), path, **options))
        assert answer.status_code == status
        if status == 503:
            assert answer.json()["error"]["code"] == "not_ready"
            assert "retry-after" in answer.headers


def test_what_goes_wrong_inside_is_not_shown_outside() -> None:
    """An engine that breaks in a way nobody foresaw: the client gets a sentence and no trace."""

    class Broken:
        slots, is_running = 1, True

        def submit(self, *_: object) -> None:
            raise RuntimeError("secret: /home/somebody/file.py")

    async def ask(stream: bool) -> httpx.Response:
        found = state()
        engines: Engines = {"pocket": (Broken(),)}  # type: ignore[dict-item]
        found.open_pools(engines)
        answer = await asked(found, "/v1/chat/completions", json=chat("ocr", stream=stream))
        assert found.pools["pocket"].admission.active == 0
        return answer

    for stream in (False, True):
        answer = asyncio.run(ask(stream))
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert answer.json()["error"]["code"] == "internal_error"


def test_what_goes_wrong_in_the_engine_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Under the answer's id, whole and streamed; whoever runs the server must see it."""

    class Failing:
        slots, is_running = 1, True

        def submit(self, _: object, on_event: Callable[[Failure], None]) -> None:
            on_event(Failure(GenerationError("The network's output is not a finite number.")))

    async def ask(stream: bool) -> httpx.Response:
        found = state()
        engines: Engines = {"pocket": (Failing(),)}  # type: ignore[dict-item]
        found.open_pools(engines)
        return await asked(found, "/v1/chat/completions", json=chat("ocr", stream=stream))

    for stream in (False, True):
        caplog.clear()
        answer = asyncio.run(ask(stream))
        assert answer.status_code == 500
        (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert line.exc_info is not None
        assert isinstance(line.exc_info[1], GenerationError)
        assert vars(line)["fields"]["request_id"] == answer.headers["x-request-id"]


def test_a_web_page_that_may_ask_sees_that_the_server_is_stopping() -> None:
    found = state()
    found.server = ServerSettings(cors=("https://friend.example",))
    found.closing = True
    headers = {"origin": "https://friend.example"}
    answer = asyncio.run(asked(found, "/v1/chat/completions", json=chat("ocr"), headers=headers))
    assert answer.status_code == 503
    assert answer.headers["access-control-allow-origin"] == "https://friend.example"
    assert "retry-after" in answer.headers["access-control-expose-headers"]


GROUNDED = (
    "<|ref|>title<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>\n# Head\n\n\n"
    "<|ref|>image<|/ref|><|det|>[[1, 2, 3, 4], [5, 6, 7, 8]]<|/det|>\n"
    "<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>\nSome text, " + "and more of it, " * 40 + "\n"
    "<|ref|>broken<|/ref|> no box\n<|ref|>text\n<|det|>[[1]]<|/det|>\nx \\coloneqq y\n\n\n\nend"
)


@pytest.mark.parametrize("size", [1, 7, 50, 250, 10_000])
def test_cleaned_text_comes_in_pieces_that_join_to_the_whole(size: int) -> None:
    whole = reading(GROUNDED, "stop")
    writer = writer_for("markdown", 1, 2 * (Page(Path("page.png"), "<image>"),))
    pieces = [
        writer.take(Delta(GROUNDED[at : at + size], ())).text
        for at in range(0, len(GROUNDED), size)
    ]
    pieces.append(writer.take(whole).text)
    assert "".join(pieces) == PAGE_SPLIT + whole.markdown
    if size < 250:
        assert sum(bool(piece.strip()) for piece in pieces) > 2  # it does come in pieces


def test_the_unit_of_systemd_names_what_there_is() -> None:
    text = (ROOT / "examples" / "deepseek-ocr.service").read_text()
    for line in text.splitlines():
        if line.startswith("Environment=DEEPSEEK_OCR_"):
            name = line.split("_OCR_")[1].split("=")[0].lower()
            assert name in ServerSettings.__dataclass_fields__
    assert "/bin/deepseek-ocr serve\n" in text


def test_what_its_container_holds_is_enough_for_the_server(tmp_path: Path) -> None:
    image = copy_image(tmp_path, ROOT, "examples/serve/Dockerfile.dockerignore")
    with serving("--model", "pocket", checkout=image) as server:
        assert server.get("/ready").json()["models"] == ["pocket"]
        for path in ("/", "/document.schema.json"):
            assert server.get(path).status_code == 200
    recipe = (ROOT / "examples" / "serve" / "Dockerfile").read_text()
    assert 'CMD ["python", "-m", "deepseek_ocr", "serve"]' in recipe  # what `serving` starts
