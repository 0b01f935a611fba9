"""The predictor behind the real Cog server: what users of the container see."""

from __future__ import annotations

import functools
import http.client
import http.server
import json
import queue
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import papers
from tests.cog_server import PATIENCE_S, Server, copy_image, data_uri, ready, running
from tests.conftest import ROOT

pytest.importorskip("coglet", reason="needs the Cog server (coglet)")

INVOICE, TOTAL = (ROOT / "examples" / name for name in ("invoice.png", "total.png"))
READ = {"task_type": "Free OCR", "resolution_size": "Tiny"}


@pytest.fixture(scope="module")
def image_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def server(image_copy: Path) -> Iterator[Server]:
    """A server with the bundled model, ready."""
    with ready(image_copy) as server:
        yield server


# --- one prediction -----------------------------------------------------------------------------


def test_a_data_uri_is_read_and_metrics_are_reported(server: Server) -> None:
    reply = server.predict(image=data_uri(INVOICE), **READ)
    assert (reply.status, reply.body["status"], reply.body["output"]) == (
        200, "succeeded", "Invoice",
    )  # fmt: skip
    metrics = reply.body["metrics"]
    assert metrics["vision_tokens"] == 73
    assert 0 < metrics["output_tokens"] <= len("Invoice")
    assert metrics["finish_reason"] == "stop"
    assert 0 < metrics["confidence"] <= 1
    assert metrics["tokens_per_second"] > 0


def test_a_url_is_read(server: Server, tmp_path: Path) -> None:
    shutil.copy(INVOICE, tmp_path / "page.png")
    handler = functools.partial(QuietFiles, directory=str(tmp_path))
    with serving(handler) as port:
        reply = server.predict(image=f"http://127.0.0.1:{port}/page.png", **READ)
    assert reply.body["output"] == "Invoice"


def test_output_formats(server: Server) -> None:
    page = data_uri(INVOICE)
    as_json = server.predict(image=page, output_format="JSON", **READ).body["output"]
    (read,) = json.loads(as_json)["pages"]
    assert (read["text"], read["finish_reason"]) == ("Invoice", "stop")
    assert server.predict(image=page, output_format="Markdown", **READ).body["output"] == "Invoice"
    cut = server.predict(image=page, max_new_tokens=3, **READ).body
    assert (cut["output"], cut["metrics"]["finish_reason"]) == ("Inv", "length")


def test_the_pages_of_a_pdf_are_read_and_joined(server: Server, tmp_path: Path) -> None:
    path = papers.picture_pdf(tmp_path / "x.pdf", [INVOICE, TOTAL, INVOICE])
    reply = server.predict(image=data_uri(path), **READ).body
    mark = "\n\n<--- Page Split --->\n"
    assert reply["output"] == mark.join(["Invoice", "Total 498", "Invoice"]), reply
    assert (reply["metrics"]["pages"], reply["metrics"]["vision_tokens"]) == (3, 3 * 73)
    chosen = {"pages": "2,-1", "output_format": "JSON"}
    pages = json.loads(server.predict(image=data_uri(path), **chosen, **READ).body["output"])
    assert [(page["number"], page["text"]) for page in pages["pages"]] == [
        (2, "Total 498"), (3, "Invoice"),
    ]  # fmt: skip
    for wrong, reason in (("9", "image has 3 pages and none of those"), ("x", "1-3,7,-1")):
        failed = server.predict(image=data_uri(path), pages=wrong, **READ).body
        assert failed["status"] == "failed"
        assert reason in failed["error"]


def test_the_frames_of_a_tiff_are_pages(server: Server, tmp_path: Path) -> None:
    with Image.open(INVOICE) as first, Image.open(TOTAL) as second:
        first.save(tmp_path / "x.tiff", save_all=True, append_images=[second])
    output = server.predict(image=data_uri(tmp_path / "x.tiff"), **READ).body["output"]
    assert output == "Invoice\n\n<--- Page Split --->\nTotal 498"


def test_a_document_that_cannot_be_opened_fails_with_the_reason(
    server: Server, tmp_path: Path
) -> None:
    path = papers.encrypted(tmp_path / "x.pdf", "secret")
    reply = server.predict(image=data_uri(path), **READ).body
    assert reply["status"] == "failed"
    assert "image is encrypted; give its password" in reply["error"]
    reply = server.predict(image=data_uri(path), password="wrong-one", **READ).body
    assert "the password given does not open it" in reply["error"]
    assert "wrong-one" not in json.dumps(reply)
    reply = server.predict(image=data_uri(path), password="secret", **READ).body
    assert (reply["status"], reply["metrics"]["pages"]) == ("succeeded", 1)


def test_a_page_that_is_cut_off_is_tried_again(server: Server) -> None:
    cut = {"image": data_uri(INVOICE), "max_new_tokens": 3, "output_format": "JSON", **READ}
    reply = server.predict(**cut).body
    (page,) = json.loads(reply["output"])["pages"]
    assert len(page["tries"]) == 4
    assert reply["metrics"]["retried_pages"] == 1
    assert ", 4 tries" in reply["logs"]
    reply = server.predict(**cut, retries=0).body
    (page,) = json.loads(reply["output"])["pages"]
    assert (page["text"], len(page["tries"])) == ("Inv", 1)
    assert "retried_pages" not in reply["metrics"]


def test_whole_numbers_may_be_written_with_a_point(server: Server) -> None:
    reply = server.predict(image=data_uri(INVOICE), max_new_tokens=1.0, retries=0.0, **READ).body
    assert (reply["output"], reply["metrics"]["output_tokens"]) == ("I", 1)


def test_what_is_left_out_of_an_archive_is_said(server: Server, tmp_path: Path) -> None:
    members = {"1.png": INVOICE.read_bytes(), "read me.txt": b"words", "2.png": TOTAL.read_bytes()}
    path = papers.archive(tmp_path / "x.zip", members)
    reply = server.predict(image=data_uri(path), **READ).body
    assert reply["metrics"]["pages"] == 2
    assert "left out of the archive, not named like pictures: 1" in reply["logs"]


@pytest.mark.parametrize("task", ["Convert to Markdown", "Free OCR", "Parse Figure"])
@pytest.mark.parametrize("size", ["Gundam (Recommended)", "Tiny", "Small", "Base", "Large"])
def test_every_task_and_preset_answers(server: Server, task: str, size: str) -> None:
    reply = server.predict(
        image=data_uri(INVOICE), task_type=task, resolution_size=size, max_new_tokens=4
    )
    assert reply.body["status"] == "succeeded", reply.body["error"]
    assert isinstance(reply.body["output"], str)


def test_locating_answers_with_a_reference_and_fails_without(server: Server) -> None:
    page = {"image": data_uri(INVOICE), "task_type": "Locate Object by Reference",
            "resolution_size": "Tiny", "max_new_tokens": 4}  # fmt: skip
    assert server.predict(**page, reference_text="the word").body["status"] == "succeeded"
    for reference in ("", "  ", "<|ref|>"):
        reply = server.predict(**page, reference_text=reference)
        assert (reply.status, reply.body["status"]) == (200, "failed")
        assert "reference" in reply.body["error"]
        assert "PromptError" in reply.body["error"]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,!!!!", "empty|damaged|not a picture"),
        ("data:text/plain;base64,aGVsbG8=", "not a picture"),
        ("/etc/passwd", "inside the container is refused"),
        ("file:///etc/passwd", "inside the container is refused"),
    ],
)
def test_a_bad_image_fails_with_a_reason(server: Server, image: str, reason: str) -> None:
    reply = server.predict(image=image, **READ)
    assert (reply.status, reply.body["status"]) == (200, "failed")
    assert any(part in reply.body["error"] for part in reason.split("|")), reply.body["error"]
    assert "root:" not in json.dumps(reply.body)


def test_the_server_goes_on_after_a_failure(server: Server) -> None:
    assert (
        server.predict(image="data:text/plain;base64,aGVsbG8=", **READ).body["status"] == "failed"
    )
    assert server.predict(image=data_uri(INVOICE), **READ).body["output"] == "Invoice"
    server.wait_for("READY")


# --- what never reaches the predictor -----------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "name"),
    [
        ({"task_type": "OCR"}, "task_type"),
        ({"resolution_size": "Huge"}, "resolution_size"),
        ({"output_format": "text"}, "output_format"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 9000}, "max_new_tokens"),
        ({"max_new_tokens": "many"}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"pages": "1," * 600}, "pages"),
        ({"retries": 4}, "retries"),
        ({"retries": -1}, "retries"),
        ({"password": 5}, "password"),
        ({"reference_text": None}, "reference_text"),
        ({"image": None}, "image"),
    ],
)
def test_inputs_outside_the_schema_are_422(
    server: Server, inputs: dict[str, Any], name: str
) -> None:
    reply = server.predict(**{"image": data_uri(INVOICE), **READ, **inputs})
    assert reply.status == 422
    assert name in json.dumps(reply.body["detail"])


def test_a_missing_image_is_422_and_an_unknown_input_is_dropped(server: Server) -> None:
    assert server.predict(**READ).status == 422
    assert server.predict(image=data_uri(INVOICE), **READ, colour="red").body["output"] == "Invoice"


def test_bodies_that_are_not_json_objects(server: Server) -> None:
    def status(body: bytes, kind: str = "application/json") -> int:
        return server.request("POST", "/predictions", body, {"Content-Type": kind}).status

    assert status(b"{") == 400
    assert status(b"[1]") == 422
    assert status(b"--x--", "multipart/form-data; boundary=x") == 415
    assert status(b'{"input": {"image": "' + b"a" * (101 * 2**20) + b'"}}') == 413


def test_streaming_is_refused_by_the_predictor_that_does_not_stream(server: Server) -> None:
    body = {"input": {"image": data_uri(INVOICE), **READ}}
    accept = {"Accept": "text/event-stream"}
    assert server.request("POST", "/predictions", body, accept).status == 406


# --- in the background ----------------------------------------------------------------


def test_webhooks_tell_an_asynchronous_prediction(server: Server) -> None:
    heard: queue.Queue[dict[str, Any]] = queue.Queue()
    handler = functools.partial(Webhook, heard)
    with serving(handler) as port:
        body = {
            "input": {"image": data_uri(INVOICE), **READ},
            "webhook": f"http://127.0.0.1:{port}/hook",
            "webhook_events_filter": ["start", "logs", "output", "completed"],
        }
        reply = server.request("POST", "/predictions", body, {"Prefer": "respond-async"})
        assert reply.status == 202
        events = [heard.get(timeout=PATIENCE_S)]
        while events[-1]["status"] not in ("succeeded", "failed", "canceled"):
            events.append(heard.get(timeout=PATIENCE_S))
    assert events[-1]["output"] == "Invoice"
    assert events[0]["status"] in ("starting", "processing")


# --- start --------------------------------------------------------------------------------------


def test_requests_before_ready_are_503(image_copy: Path) -> None:
    with running(image_copy) as server:
        assert server.wait_for("STARTING", "READY") == "STARTING"
        body = {"input": {"image": data_uri(INVOICE), **READ}}
        assert server.request("POST", "/predictions", body).status == 503


def test_a_setup_that_fails_says_why_and_stays(image_copy: Path) -> None:
    with running(image_copy, DEEPSEEK_OCR_MODEL="no-such-model") as server:
        assert server.wait_for("READY", "SETUP_FAILED") == "SETUP_FAILED"
        health = server.request("GET", "/health-check")
        assert health.status == 200
        assert "no checkpoint called 'no-such-model'" in json.dumps(health.body) + server.log()
        assert server.process.poll() is None


# --- small servers of the tests -----------------------------------------------------------------


class QuietFiles(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


class Webhook(http.server.BaseHTTPRequestHandler):
    def __init__(self, heard: queue.Queue[dict[str, Any]], *arguments: Any) -> None:
        self._heard = heard
        super().__init__(*arguments)

    def do_POST(self) -> None:
        self._heard.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


class serving:
    """A loopback server on a thread, for as long as the block lasts; gives its port."""

    def __init__(self, handler: Any) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)

    def __enter__(self) -> int:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return int(self._server.server_address[1])

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
