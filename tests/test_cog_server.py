"""The predictor behind the real Cog server: what users of the container see."""

from __future__ import annotations

import functools
import http.client
import http.server
import json
import os
import queue
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tests import papers
from tests.cog_server import PATIENCE_S, Server, copy_image, data_uri, running
from tests.conftest import GOLDEN, ROOT

pytest.importorskip("coglet", reason="needs the Cog server (coglet)")

INVOICE, TOTAL = (ROOT / "examples" / name for name in ("invoice.png", "total.png"))
READ = {"task_type": "Free OCR", "resolution_size": "Tiny"}

SOON_S = 5
"""Far less than the half minute of a page that is not cancelled; a busy machine needs more than the
second that a quiet one takes at most."""


@pytest.fixture(scope="module")
def image_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_image(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def server(image_copy: Path) -> Iterator[Server]:
    """A server with the bundled model, ready."""
    with running(image_copy) as server:
        assert server.wait_for("READY", "SETUP_FAILED") == "READY", log_of(server)
        yield server


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model that never chooses its end token: a page takes it half a minute."""
    folder = tmp_path_factory.mktemp("models") / "endless"
    shutil.copytree(GOLDEN / "checkpoint", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": 511}))
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    tensors["lm_head.weight"][511] = 0  # others are above nought
    save_file(tensors, weights)
    vocabulary = {chr(97 + i // 26) + chr(97 + i % 26) + " ": i for i in range(512) if i != 5}
    tokenizer = Tokenizer(models.WordLevel({**vocabulary, "<image>": 5}, unk_token="aa "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken("<image>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory, endless: Path) -> Iterator[Server]:
    """A server with the model that does not end."""
    folder = copy_image(tmp_path_factory.mktemp("slow"))
    with running(folder, DEEPSEEK_OCR_MODEL=str(endless)) as server:
        assert server.wait_for("READY", "SETUP_FAILED") == "READY", log_of(server)
        yield server


def log_of(server: Server) -> str:
    return (server.folder / "server.log").read_text()


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
    for wrong, reason in (("9", "none of them 9"), ("x", "1-3,7,-1")):
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
    assert "encrypted" in reply["error"]


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


# --- many, and in the background ----------------------------------------------------------------


def test_fifty_predictions_leave_memory_flat(server: Server) -> None:
    page = data_uri(INVOICE)
    for _ in range(10):
        server.predict(image=page, **READ)
    before = server.resident_mb()
    for _ in range(50):
        assert server.predict(image=page, **READ).body["output"] == "Invoice"
    assert server.resident_mb() - before < 30


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


# --- predictions that take long -----------------------------------------------------------------


def start(server: Server, name: str) -> None:
    """Start a prediction that will not end by itself, and wait until it runs."""
    body = {"input": {"image": data_uri(INVOICE), **READ}}
    deadline = time.monotonic() + PATIENCE_S
    while True:
        headers = {"Prefer": "respond-async"}
        reply = server.request("PUT", f"/predictions/{name}", body, headers)
        if reply.status != 409 or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    assert reply.status == 202
    server.wait_until_it_reads()


def cancel(server: Server, name: str) -> float:
    """Cancel it; seconds until the server is free."""
    began = time.monotonic()
    assert server.request("POST", f"/predictions/{name}/cancel", {}).status == 200
    server.wait_for("READY")
    return time.monotonic() - began


def test_cancelling_ends_a_prediction_long_before_its_end(slow: Server) -> None:
    start(slow, "cancel-me")
    assert cancel(slow, "cancel-me") < SOON_S
    quick = slow.predict(image=data_uri(INVOICE), max_new_tokens=2, **READ)
    assert quick.body["status"] == "succeeded"


def test_a_second_prediction_is_409_and_the_same_one_is_202(slow: Server) -> None:
    start(slow, "busy")
    body = {"input": {"image": data_uri(INVOICE), **READ}}
    assert slow.request("POST", "/predictions", body).status == 409
    again = slow.request("PUT", "/predictions/busy", body)
    assert again.status == 202
    assert again.body["id"] == "busy"
    cancel(slow, "busy")


def test_a_client_that_hangs_up_frees_the_server(slow: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", slow.port)
    body = json.dumps({"input": {"image": data_uri(INVOICE), **READ}})
    connection.request("POST", "/predictions", body, {"Content-Type": "application/json"})
    slow.wait_until_it_reads()
    connection.close()
    began = time.monotonic()
    slow.wait_for("READY")
    assert time.monotonic() - began < SOON_S


def test_sigterm_lets_a_running_prediction_finish(image_copy: Path, endless: Path) -> None:
    with running(image_copy, DEEPSEEK_OCR_MODEL=str(endless)) as server:
        assert server.wait_for("READY", "SETUP_FAILED") == "READY", log_of(server)
        replies: queue.Queue[Any] = queue.Queue()
        page = {"image": data_uri(INVOICE), "max_new_tokens": 300, **READ}
        asking = threading.Thread(target=lambda: replies.put(server.predict(**page)))
        asking.start()
        server.wait_for("BUSY")
        os.kill(server.process.pid, signal.SIGTERM)
        reply = replies.get(timeout=PATIENCE_S)
        asking.join()
        assert reply.body["status"] == "succeeded"
        assert reply.body["metrics"]["output_tokens"] == 300
        server.process.wait(PATIENCE_S)


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
        assert "no checkpoint called 'no-such-model'" in json.dumps(health.body) + log_of(server)
        assert server.process.poll() is None


# --- streaming ----------------------------------------------------------------------------------


def test_the_streaming_predictor_sends_text_as_it_is_decoded(image_copy: Path) -> None:
    with running(image_copy, entry="predict_stream.py:Predictor") as server:
        assert server.wait_for("READY", "SETUP_FAILED") == "READY", log_of(server)
        events = list(event_stream(server, {"image": data_uri(INVOICE), **READ}))
        pieces = [data["chunk"] if "chunk" in data else data.get("output") for kind, data in events
                  if kind == "output"]  # fmt: skip
        assert len(pieces) > 1
        assert "".join(pieces) == "Invoice"
        assert events[-1][0] == "completed"
        assert events[-1][1]["status"] == "succeeded"
        whole = server.predict(image=data_uri(INVOICE), **READ).body
        assert "".join(whole["output"]) == "Invoice"
        assert whole["metrics"]["finish_reason"] == "stop"


def event_stream(server: Server, inputs: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(event, data) as the server sends them."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    connection.request("POST", "/predictions", json.dumps({"input": inputs}), headers)
    answer = connection.getresponse()
    assert answer.status == 200
    kind = ""
    for raw in answer:
        field, _, value = raw.decode().rstrip("\n").partition(": ")
        if field == "event":
            kind = value
        elif field == "data":
            yield kind, json.loads(value)
    connection.close()


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
