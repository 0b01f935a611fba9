"""Many predictions at once on the real Cog server: they share the slots and stay apart.

How many may be in flight is what the container's configuration says.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepseek_ocr.formats.markdown import PAGE_SPLIT
from tests import papers
from tests.cog_server import PATIENCE_S, Reply, Server, copy_image, data_uri, ready
from tests.conftest import ROOT
from tests.endless import endless_model

pytest.importorskip("coglet", reason="needs the Cog server (coglet)")

TEXTS = {"invoice": "Invoice", "total": "Total 498", "fruit": "Apple 12\nLemon 34"}
PICTURES = {name: ROOT / "examples" / f"{name}.png" for name in TEXTS}
READ = {"task_type": "Free OCR", "resolution_size": "Tiny"}
MOST: int = yaml.safe_load((ROOT / "cog.cpu.yaml").read_text())["concurrency"]["max"]
SLOTS = 4
"""Of the model on a processor."""


@pytest.fixture(scope="module")
def image_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def server(image_copy: Path) -> Iterator[Server]:
    """A server with the bundled model, which reads a page in a tenth of a second."""
    with ready(image_copy) as server:
        yield server


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_model(tmp_path_factory.mktemp("models") / "endless")


@pytest.fixture(scope="module")
def slow(image_copy: Path, endless: Path) -> Iterator[Server]:
    """A server with a model that writes until it is stopped."""
    with ready(image_copy, DEEPSEEK_OCR_MODEL=str(endless)) as server:
        yield server


def together(server: Server, asked: list[dict[str, Any]]) -> list[Reply]:
    """The replies to predictions that are sent at the same moment."""
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda inputs: server.predict(**inputs), asked))


def page(name: str, **inputs: Any) -> dict[str, Any]:
    return {"image": data_uri(PICTURES[name]), **READ, **inputs}


def long(name: str = "invoice", tokens: int = 8192, **inputs: Any) -> dict[str, Any]:
    """What a model that does not end is asked for, once."""
    return page(name, max_new_tokens=tokens, retries=0, **inputs)


# --- each its own -------------------------------------------------------------------------------


def test_as_many_predictions_as_are_allowed_each_have_their_own_answer(server: Server) -> None:
    names = [list(TEXTS)[at % len(TEXTS)] for at in range(MOST)]
    replies = together(server, [page(name) for name in names])
    for name, reply in zip(names, replies, strict=True):
        assert reply.body["output"] == TEXTS[name]
        assert reply.body["metrics"]["pages"] == 1
        log = reply.body["logs"].splitlines()
        assert log[0] == "reading 1 of 1 page"
        tokens = reply.body["metrics"]["output_tokens"]
        assert re.fullmatch(rf"page 1 of 1: stop, {tokens} tokens, \d+\.\d s", log[1])
        assert len(log) == 2


def test_one_more_than_are_allowed_is_409(slow: Server) -> None:
    names = [f"full-{number}" for number in range(MOST)]
    for name in names:
        slow.start(name, **long())
    reply = slow.request("POST", "/predictions", {"input": long()})
    assert reply.status == 409
    assert slow.state() == "BUSY"
    for name in names:
        slow.cancel(name)
    for name in names:
        slow.wait_for_the_end(name)
    slow.wait_for("READY")


def test_the_same_name_again_is_the_prediction_in_flight(slow: Server) -> None:
    slow.start("twice", **long())
    again = slow.request("PUT", "/predictions/twice", {"input": long()})
    assert (again.status, again.body["id"]) == (202, "twice")
    slow.cancel("twice")
    slow.wait_for_the_end("twice")


# --- documents ----------------------------------------------------------------------------------


def test_a_document_is_read_like_its_pages(server: Server, tmp_path: Path) -> None:
    names = [list(TEXTS)[at % len(TEXTS)] for at in range(40)]
    path = papers.picture_pdf(tmp_path / "x.pdf", [PICTURES[name] for name in names])
    reply = server.predict(image=data_uri(path), **READ).body
    assert reply["output"] == PAGE_SPLIT.join(TEXTS[name] for name in names)
    log = reply["logs"].splitlines()
    assert log[0] == "reading 40 of 40 pages"
    numbers = [
        int(found[1]) for line in log if (found := re.match(r"page (\d+) of 40: stop", line))
    ]
    assert sorted(numbers) == list(range(1, 41))
    assert len(log) == 41


def test_a_broken_page_keeps_its_place_among_predictions_that_succeed(
    server: Server, tmp_path: Path
) -> None:
    members = {f"{at}.png": PICTURES[name].read_bytes() for at, name in enumerate(TEXTS, start=1)}
    members |= {"3.png": b"no picture", "4.png": PICTURES["fruit"].read_bytes()}
    document = data_uri(papers.archive(tmp_path / "x.zip", members))
    asked = [{"image": document, **READ, "output_format": form} for form in ("Text", "JSON")]
    text, data, *others = together(server, [*asked, *(page("total") for _ in range(6))])
    assert text.body["output"].split(PAGE_SPLIT) == [
        "Invoice", "Total 498", "", "Apple 12\nLemon 34",
    ]  # fmt: skip
    assert text.body["metrics"]["failed_pages"] == "3"
    assert "page 3 of 4: failed: '3.png' in image is not a picture" in text.body["logs"]
    pages = json.loads(data.body["output"])["pages"]
    assert [one.get("text") for one in pages] == [
        "Invoice", "Total 498", None, "Apple 12\nLemon 34",
    ]  # fmt: skip
    assert "not a picture" in pages[2]["error"]
    for reply in others:
        assert (reply.body["output"], "failed_pages" in reply.body["metrics"]) == (
            "Total 498", False,
        )  # fmt: skip


def test_a_prediction_that_fails_leaves_the_others_alone(server: Server, tmp_path: Path) -> None:
    locked = papers.encrypted(tmp_path / "x.pdf", "secret")
    bad = [
        ({"image": data_uri(locked), **READ}, "image is encrypted; give its password"),
        ({"image": "data:text/plain;base64,aGVsbG8=", **READ}, "image is not a picture"),
        ({"image": data_uri(PICTURES["total"]), "task_type": "Locate Object by Reference"},
         "Locating needs a reference"),
    ]  # fmt: skip
    replies = together(server, [*(inputs for inputs, _ in bad), *(page("fruit") for _ in range(5))])
    for (_, reason), reply in zip(bad, replies, strict=False):
        assert (reply.status, reply.body["status"]) == (200, "failed")
        assert reason in reply.body["error"]
        assert "tmp" not in reply.body["error"]
        assert "--" not in reply.body["error"]
    for reply in replies[len(bad) :]:
        assert reply.body["output"] == TEXTS["fruit"]


# --- given up -----------------------------------------------------------------------------------


def test_cancelling_one_of_eight_leaves_seven_as_they_were(slow: Server) -> None:
    alone = slow.predict(**long(tokens=400)).body["output"]
    assert len(alone.split()) > 100
    with ThreadPoolExecutor(7) as pool:
        slow.start("cancel-me", **long())
        others = [pool.submit(slow.predict, **long(tokens=400)) for _ in range(7)]
        slow.cancel("cancel-me")
        slow.wait_for_the_end("cancel-me")
        for other in others:
            assert other.result(PATIENCE_S).body["output"] == alone
    slow.wait_for("READY")


def test_a_slot_that_is_given_up_goes_to_the_next_within_a_token(slow: Server) -> None:
    """All slots write without end; what waits behind them is read as soon as one is cancelled."""
    names = [f"slot-{number}" for number in range(SLOTS)]
    for name in names:
        slow.start(name, **long())
    with ThreadPoolExecutor(1) as pool:
        body = {"input": long(tokens=2)}
        waiting = pool.submit(slow.request, "PUT", "/predictions/waits", body)
        slow.wait_until_it_reads("waits")
        assert not waiting.done()
        slow.cancel(names[0])
        reply = waiting.result(PATIENCE_S)
        assert reply.body["metrics"]["output_tokens"] == 2
        for name in names[1:]:  # these are read on
            assert slow.in_flight(name) is not None
            slow.cancel(name)
    for name in names:
        slow.wait_for_the_end(name)


def test_a_client_that_hangs_up_frees_its_slots_and_no_others(slow: Server, tmp_path: Path) -> None:
    document = data_uri(papers.archive(
        tmp_path / "x.zip", {f"{at}.png": PICTURES["total"].read_bytes() for at in range(10)}
    ))  # fmt: skip
    alone = slow.predict(**long(tokens=300)).body["output"]
    connection = http.client.HTTPConnection("127.0.0.1", slow.port)
    body = json.dumps({"input": {**long(), "image": document}})
    headers = {"Content-Type": "application/json"}
    connection.request("PUT", "/predictions/hang-up", body, headers)
    slow.wait_until_it_reads("hang-up")
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(slow.predict, **long(tokens=300)) for _ in range(4)]
        connection.close()
        slow.wait_for_the_end("hang-up")
        for other in others:
            assert other.result(PATIENCE_S).body["output"] == alone
    slow.wait_for("READY")


def test_sigterm_lets_those_in_flight_end(image_copy: Path, endless: Path) -> None:
    with ready(image_copy, DEEPSEEK_OCR_MODEL=str(endless)) as server:
        replies: queue.Queue[Reply] = queue.Queue()

        def ask(name: str) -> None:
            body = {"input": long(tokens=1500)}  # some seconds
            replies.put(server.request("PUT", f"/predictions/{name}", body))

        names = [f"last-{number}" for number in range(4)]
        asking = [threading.Thread(target=ask, args=(name,)) for name in names]
        for thread, name in zip(asking, names, strict=True):
            thread.start()
            server.wait_until_it_reads(name)
        assert all(server.in_flight(name) for name in names)
        os.kill(server.process.pid, signal.SIGTERM)
        for _ in names:
            reply = replies.get(timeout=PATIENCE_S)
            assert reply.body["status"] == "succeeded"
            assert reply.body["metrics"]["output_tokens"] == 1500
        for thread in asking:
            thread.join()
        server.process.wait(PATIENCE_S)


# --- in the long run ----------------------------------------------------------------------------


def test_five_hundred_predictions_leave_memory_level(server: Server) -> None:
    asked = [page("invoice", max_new_tokens=2, retries=0)] * 20
    for _ in range(5):
        together(server, asked)
    before = server.resident_mb()
    for _ in range(25):
        assert {reply.body["output"] for reply in together(server, asked)} == {"In"}
    assert server.resident_mb() - before < 30


def test_the_health_check_says_that_the_engine_is_gone(image_copy: Path, tmp_path: Path) -> None:
    folder = copy_image(tmp_path / "image", image_copy)
    with (folder / "predict.py").open("a") as file:
        file.write(
            "\n\nclass EndsItsEngine(Predictor):\n"
            "    async def predict(self, image: Path = Input()) -> str:\n"
            "        self.reader.engine.close()\n"
            "        return ''\n"
        )
    config = (folder / "cog.cpu.yaml").read_text()
    (folder / "cog.cpu.yaml").write_text(config.replace("py:Predictor", "py:EndsItsEngine"))
    with ready(folder) as server:
        server.predict(image=data_uri(PICTURES["total"]))
        assert server.wait_for("UNHEALTHY") == "UNHEALTHY"
