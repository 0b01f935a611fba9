"""The predictor that streams, behind the real Cog server."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from deepseek_ocr.formats.markdown import PAGE_SPLIT
from tests import papers
from tests.cog_server import PATIENCE_S, Server, copy_image, data_uri, ready
from tests.conftest import ROOT
from tests.endless import endless_model

pytest.importorskip("coglet", reason="needs the Cog server (coglet)")

INVOICE, TOTAL, FRUIT = (
    ROOT / "examples" / f"{name}.png" for name in ("invoice", "total", "fruit")
)
READ = {"task_type": "Free OCR", "resolution_size": "Tiny"}
CONFIG = "cog.stream.yaml"


@pytest.fixture(scope="module")
def image_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def server(image_copy: Path) -> Iterator[Server]:
    with ready(image_copy, CONFIG) as server:
        yield server


@pytest.fixture(scope="module")
def slow(image_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model that writes until it is stopped."""
    model = endless_model(tmp_path_factory.mktemp("models") / "endless")
    with ready(image_copy, CONFIG, DEEPSEEK_OCR_MODEL=str(model)) as server:
        yield server


Events = Generator[tuple[str, dict[str, Any]], None, None]


def stream(server: Server, name: str, inputs: dict[str, Any]) -> Events:
    """(event, data) of the prediction `name` as the server sends them; closing it hangs up."""
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    deadline = time.monotonic() + PATIENCE_S
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
        connection.request("PUT", f"/predictions/{name}", json.dumps({"input": inputs}), headers)
        with closing(connection), connection.getresponse() as answer:
            if answer.status == 409 and time.monotonic() < deadline:
                time.sleep(0.02)  # the server still cleans up after the last prediction
                continue
            assert answer.status == 200
            yield from events_in(answer)
            return


def events_in(lines: Iterable[bytes]) -> Events:
    kind = ""
    for raw in lines:
        field, _, value = raw.decode().rstrip("\n").partition(": ")
        if field == "event":
            kind = value
        elif field == "data":
            yield kind, json.loads(value)


def pieces_in(events: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [data["chunk"] for kind, data in events if kind == "output"]


def test_text_is_sent_as_it_is_decoded(server: Server) -> None:
    events = list(stream(server, "one", {"image": data_uri(INVOICE), **READ}))
    assert len(pieces_in(events)) > 1
    assert "".join(pieces_in(events)) == "Invoice"
    kind, last = events[-1]
    assert (kind, last["status"], last["metrics"]["finish_reason"]) == (
        "completed", "succeeded", "stop",
    )  # fmt: skip
    whole = server.predict(image=data_uri(INVOICE), **READ).body
    assert "".join(whole["output"]) == "Invoice"


def test_a_document_is_streamed_in_order_with_a_broken_page_in_its_place(
    server: Server, tmp_path: Path
) -> None:
    pictures = [INVOICE, TOTAL, None, FRUIT]
    members = {
        f"{at}.png": one.read_bytes() if one else b"no picture"
        for at, one in enumerate(pictures, start=1)
    }
    path = papers.archive(tmp_path / "x.zip", members)
    events = list(stream(server, "four", {"image": data_uri(path), **READ}))
    assert "".join(pieces_in(events)).split(PAGE_SPLIT) == [
        "Invoice", "Total 498", "", "Apple 12\nLemon 34",
    ]  # fmt: skip
    logs = "".join(data["data"] for kind, data in events if kind == "log").splitlines()
    assert [line.split(":")[0] for line in logs] == [
        "reading 4 of 4 pages", *(f"page {at} of 4" for at in range(1, 5)),
    ]  # fmt: skip
    assert "'3.png' in image is not a picture" in logs[3]
    metrics = events[-1][1]["metrics"]
    assert (metrics["pages"], metrics["failed_pages"]) == (4, "3")


def test_a_prediction_that_fails_leaves_the_next_alone(server: Server) -> None:
    bad = {"image": "data:text/plain;base64,aGVsbG8=", **READ}
    events = list(stream(server, "bad", bad))
    assert events[-1][1]["status"] == "failed"
    assert "image is not a picture" in events[-1][1]["error"]
    good = list(stream(server, "good", {"image": data_uri(TOTAL), **READ}))
    assert "".join(pieces_in(good)) == "Total 498"


def test_one_prediction_streams_at_a_time(slow: Server) -> None:
    slow.start("first", image=data_uri(INVOICE), **READ)
    second = {"input": {"image": data_uri(INVOICE), **READ}}
    assert slow.request("POST", "/predictions", second).status == 409
    slow.cancel("first")
    slow.wait_for_the_end("first")
    slow.wait_for("READY")


@pytest.mark.parametrize("how", ["cancelled", "hung up"])
def test_a_stream_that_is_given_up_frees_the_server(slow: Server, how: str) -> None:
    name = how.replace(" ", "-")
    with closing(stream(slow, name, {"image": data_uri(INVOICE), **READ})) as events:
        assert any(kind == "output" for kind, _ in events)
        if how == "cancelled":
            slow.cancel(name)
            assert [data["status"] for kind, data in events if kind == "completed"] == ["canceled"]
    slow.wait_for_the_end(name)
    slow.wait_for("READY")
    short = {"image": data_uri(INVOICE), "max_new_tokens": 3, **READ}
    assert slow.predict(**short).body["metrics"]["output_tokens"] == 3
