"""Stock clients of OpenAI's API against the real server: its Python library, and curl."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from tests.conftest import ROOT, need
from tests.serving_world import (
    ENDLESS,
    FOREVER,
    FRUIT,
    TEXT,
    Server,
    chat,
    message,
    uri,
)

INVOICE, TOTAL = (ROOT / "examples" / f"{name}.png" for name in ("invoice", "total"))
SPLIT = "\n\n<--- Page Split --->\n"
SCHEMA = json.loads((ROOT / "deepseek_ocr" / "formats" / "document.schema.json").read_text())


@pytest.fixture(scope="module")
def server(open_server: Server) -> Server:
    return open_server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def ask(
    client: openai.OpenAI, *messages: dict[str, Any], model: str = "pocket", **more: Any
) -> Any:
    return client.chat.completions.create(model=model, messages=list(messages), **more)  # type: ignore[call-overload]


def test_models_are_listed_with_an_alias_for_each_preset(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    presets = ("", ":gundam", ":tiny", ":small", ":base", ":large")
    assert names == [f"{model}{preset}" for model in ("pocket", ENDLESS) for preset in presets]
    assert client.models.retrieve("pocket:tiny").id == "pocket:tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("pocket:huge")


def test_a_chat_completion(client: openai.OpenAI) -> None:
    answer = ask(client, message("Free OCR.", uri(FRUIT)))
    assert answer.choices[0].message.content == TEXT["fruit"]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens > 73
    assert answer.usage.completion_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    page = answer.model_extra["deepseek_ocr"]["pages"][0]
    assert page["finish_reason"] == "stop"
    assert 0 < page["confidence"] <= 1


def test_a_stream_joins_to_the_completion_and_ends_with_usage(client: openai.OpenAI) -> None:
    chunks = list(
        ask(
            client,
            message("Free OCR.", uri(FRUIT)),
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == TEXT["fruit"]
    assert len(chunks) > 3  # it comes as it is decoded
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0


def test_a_stream_without_options_tells_no_usage(client: openai.OpenAI) -> None:
    chunks = list(ask(client, message("ocr", uri(FRUIT)), stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_responses(client: openai.OpenAI) -> None:
    page = {"type": "input_image", "image_url": uri(FRUIT)}
    asked = {"role": "user", "content": [{"type": "input_text", "text": "Free OCR."}, page]}
    answer = client.responses.create(model="pocket", input=[asked])  # type: ignore[list-item, call-overload]
    assert answer.output_text == TEXT["fruit"]
    assert answer.status == "completed"
    assert answer.usage.output_tokens > 0


def test_the_time_of_a_response_is_a_whole_number(server: Server) -> None:
    page = {"type": "input_image", "image_url": uri(FRUIT)}
    body = {"model": "pocket", "input": [{"role": "user", "content": [page]}]}
    assert type(server.post("/v1/responses", json=body).json()["created_at"]) is int


@pytest.mark.parametrize("given", ["Free OCR.", [{"role": "user", "content": "Free OCR."}]])
def test_a_response_without_a_picture_says_where_it_is_missing(server: Server, given: Any) -> None:
    answer = server.post("/v1/responses", json={"model": "pocket", "input": given})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "missing_image", "input")


def test_a_stream_of_responses(client: openai.OpenAI) -> None:
    page = {"type": "input_image", "image_url": uri(FRUIT)}
    with client.responses.stream(
        model="pocket",
        input=[{"role": "user", "content": [page]}],  # type: ignore[list-item, misc]
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text == TEXT["fruit"]
    assert len(deltas) >= 2
    assert [event.sequence_number for event in events] == sorted(
        {event.sequence_number for event in events}
    )
    assert final.usage is not None


def test_a_cut_response_is_incomplete(client: openai.OpenAI) -> None:
    page = {"type": "input_image", "image_url": uri(FRUIT)}
    answer = client.responses.create(
        model="pocket",
        input=[{"role": "user", "content": [page]}],  # type: ignore[list-item, misc]
        max_output_tokens=2,
    )
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_several_pictures_are_pages_in_their_order(client: openai.OpenAI) -> None:
    pages = [uri(path) for path in (TOTAL, FRUIT, INVOICE)]
    answer = ask(client, message("ocr", *pages))
    wanted = SPLIT.join(TEXT[name] for name in ("total", "fruit", "invoice"))
    assert answer.choices[0].message.content == wanted
    assert len(answer.model_extra["deepseek_ocr"]["pages"]) == 3
    stream = ask(client, message("ocr", *pages), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == wanted


def test_only_the_last_user_turn_counts(client: openai.OpenAI) -> None:
    history = [
        {"role": "system", "content": "You are a poet."},
        message("Parse the figure.", uri(TOTAL)),
        {"role": "assistant", "content": "Total 498"},
        message("Free OCR.", uri(INVOICE)),
    ]
    assert ask(client, *history).choices[0].message.content == TEXT["invoice"]


def test_without_a_picture_in_the_last_turn_the_latest_earlier_one_is_read(
    client: openai.OpenAI,
) -> None:
    history = [
        message("Free OCR.", uri(TOTAL)),
        {"role": "assistant", "content": "Total 498"},
        message("Free OCR.", uri(INVOICE)),
        {"role": "assistant", "content": "Invoice"},
        {"role": "user", "content": "Free OCR."},
    ]
    assert ask(client, *history).choices[0].message.content == TEXT["invoice"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:,"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "image_url"},
    ],
)
def test_what_could_not_be_read_in_an_earlier_turn_is_over(
    client: openai.OpenAI, part: dict[str, Any]
) -> None:
    """Otherwise one wrong part would spoil a conversation for good."""
    earlier = message("Free OCR.", uri(INVOICE))
    earlier["content"].append(part)
    later = {"role": "user", "content": "Free OCR."}
    assert ask(client, earlier, later).choices[0].message.content == TEXT["invoice"]
    with pytest.raises(openai.BadRequestError):
        ask(client, earlier)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("", {}),
        ("ocr", {}),
        ("free ocr", {}),
        ("<image>\nFree OCR.", {}),
        ("something else entirely", {"task": "ocr"}),
        ("ocr", {"resolution": "tiny"}),
    ],
)
def test_a_task_is_known_by_prompt_short_name_or_field(
    client: openai.OpenAI, text: str, fields: dict[str, Any]
) -> None:
    answer = ask(client, message(text, uri(FRUIT)), extra_body=fields)
    assert answer.choices[0].message.content == TEXT["fruit"]


def test_the_files_that_open_webui_lists_in_front_are_no_part_of_the_prompt(
    client: openai.OpenAI,
) -> None:
    asked = message("ocr", uri(FRUIT))
    listed = '<attached_files>\n<file type="file" name="fruit.png"/>\n</attached_files>\n\n'
    asked["content"].insert(0, {"type": "text", "text": listed})
    assert ask(client, asked).choices[0].message.content == TEXT["fruit"]


def test_the_prompt_and_the_preset_reach_the_model(client: openai.OpenAI) -> None:
    """Prompts and presets are seen in how many tokens go in; what the toy makes of them is not."""

    def prompt_tokens(text: str, model: str = "pocket", **fields: Any) -> int:
        answer = ask(
            client, message(text, uri(FRUIT)), model=model, max_tokens=1, extra_body=fields
        )
        return int(answer.usage.prompt_tokens)

    plain = prompt_tokens("ocr")
    assert prompt_tokens("ocr", "pocket:small") - plain == 111 - 73
    assert prompt_tokens("ocr", resolution="small") - plain == 111 - 73
    assert prompt_tokens("ocr", "pocket:small", resolution="tiny") == plain  # the field comes first
    named = prompt_tokens("locate: the total")
    assert named == prompt_tokens("x", task="locate", reference="the total") > plain
    assert prompt_tokens("Locate <|ref|>the total<|/ref|> in the image.") == named
    assert prompt_tokens("Read me this page, please, every word of it.") > plain


def test_logprobs(client: openai.OpenAI) -> None:
    answer = ask(client, message("ocr", uri(FRUIT)), logprobs=True)
    tokens = answer.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == TEXT["fruit"]
    assert all(-20 < token.logprob <= 0 for token in tokens)
    mean = math.exp(sum(token.logprob for token in tokens) / len(tokens))
    assert mean == pytest.approx(answer.model_extra["deepseek_ocr"]["pages"][0]["confidence"])
    stream = ask(client, message("ocr", uri(FRUIT)), logprobs=True, stream=True)
    streamed = [
        token
        for chunk in stream
        if chunk.choices[0].logprobs
        for token in chunk.choices[0].logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "mine", "schema": SCHEMA}},
    ],
    ids=["object", "schema"],
)
def test_readings_as_json(client: openai.OpenAI, form: dict[str, Any], stream: bool) -> None:
    asked = message("ocr", uri(FRUIT), uri(INVOICE))
    answer = ask(client, asked, response_format=form, stream=stream)
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        text = answer.choices[0].message.content
    document = json.loads(text)
    jsonschema.validate(document, SCHEMA)
    assert [page["number"] for page in document["pages"]] == [1, 2]
    assert [page["text"] for page in document["pages"]] == [TEXT["fruit"], TEXT["invoice"]]


def test_a_schema_that_is_not_ours_is_refused_with_a_pointer(
    server: Server, client: openai.OpenAI
) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, message("ocr", uri(FRUIT)), response_format=form)
    assert caught.value.param == "response_format"
    assert "/document.schema.json" in caught.value.message
    assert server.get("/document.schema.json").json() == SCHEMA


def test_output_formats(client: openai.OpenAI) -> None:
    asked = message("ocr", uri(FRUIT))
    written = {"text": TEXT["fruit"], "markdown": TEXT["fruit"].replace("\n", "  \n")}
    for form, expected in written.items():
        answer = ask(client, asked, extra_body={"output_format": form})
        assert answer.choices[0].message.content == expected
    answer = ask(client, asked, extra_body={"output_format": "json"})
    assert json.loads(answer.choices[0].message.content)["pages"][0]["text"] == TEXT["fruit"]


def test_a_page_that_does_not_end_says_length_and_why(client: openai.OpenAI) -> None:
    answer = ask(
        client, message("ocr", uri(FRUIT)), model=ENDLESS, max_tokens=5, extra_body=FOREVER
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 5
    answer = ask(
        client, message("ocr", uri(FRUIT)), model=ENDLESS, extra_body={**FOREVER, "timeout": 0.3}
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.model_extra["deepseek_ocr"]["pages"][0]["finish_reason"] == "timeout"


def png(data: bytes) -> str:
    return uri(data)


def nested(depth: int) -> dict[str, Any]:
    """Objects in objects."""
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {"x": found}
    return found


@pytest.mark.parametrize(
    ("status", "param", "body"),
    [
        (404, "model", {"model": "gpt-4o"}),
        (404, "model", {"model": "pocket:"}),
        (400, "messages.0.content.1.image_url", {"messages": [message("ocr", "data:,x")]}),
        (400, None, {"messages": [message("ocr", png(b"no picture"))]}),
        (400, None, {"messages": [message("ocr", png(FRUIT.read_bytes()[:3000]))]}),
        (400, None, {"messages": [message("ocr", png(b""))]}),
        (400, "messages", {"messages": [{"role": "user", "content": "Free OCR."}]}),
        (400, "messages", {"messages": [{"role": "assistant", "content": "x"}]}),
        (400, "messages", {"messages": []}),
        (400, "messages", {"messages": None}),
        (400, "n", {"n": 2}),
        (400, "stop", {"stop": ["x"]}),
        (400, "top_logprobs", {"logprobs": True, "top_logprobs": 3}),
        (400, "presence_penalty", {"presence_penalty": 0.5}),
        (400, "frequency_penalty", {"frequency_penalty": -1}),
        (400, "logit_bias", {"logit_bias": {"5": 1, "6": 0}}),
        (
            400,
            "response_format",
            {"response_format": {"type": "json_schema", "json_schema": {"schema": nested(600)}}},
        ),
        (400, "temperature", {"temperature": "hot"}),
        (400, None, {"temperature": -1}),
        (400, None, {"max_tokens": 0}),
        (400, None, {"task": "dance"}),
        (400, None, {"resolution": "huge"}),
        (400, None, {"task": "locate"}),
        (400, "logprobs", {"logprobs": True, "output_format": "json"}),
        (400, "output_format", {"output_format": "xml"}),
        (400, None, {"messages": [message("<image> and <image>", uri(FRUIT))]}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_have_the_shape_and_the_status_of_openai(
    server: Server, status: int, param: str | None, body: dict[str, Any], stream: bool
) -> None:
    answer = server.post("/v1/chat/completions", json={**chat("ocr"), **body, "stream": stream})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) > 10
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("status", "method", "path", "content"),
    [
        (404, "GET", "/v1/nothing", b""),
        (405, "GET", "/v1/chat/completions", b""),
        (400, "POST", "/v1/chat/completions", b"{"),
        (400, "POST", "/v1/chat/completions", b"[" * 100_000),
        (400, "POST", "/v1/chat/completions", b'{"model": ' + b"9" * 5000 + b"}"),
        (400, "POST", "/v1/chat/completions", b"\xff\xfe"),
        (400, "POST", "/v1/responses", b""),
        (404, "POST", "/v1/responses", b'{"model": "\\ud800", "input": "x"}'),
        (400, "POST", "/v1/responses", b'{"model": "pocket", "input": "x", "background": true}'),
        (400, "POST", "/v1/responses", b'{"model": "pocket", "input": [{"type": "reasoning"}]}'),
    ],
)
def test_what_is_no_request_at_all(
    server: Server, status: int, method: str, path: str, content: bytes
) -> None:
    headers = {"content-type": "application/json"}
    with openai.DefaultHttpxClient(base_url=server.url) as client:
        answer = client.request(method, path, content=content, headers=headers)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_the_client_raises_what_its_users_expect(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="no such model"):
        ask(client, message("ocr", uri(FRUIT)), model="gpt-4o")
    with pytest.raises(openai.BadRequestError, match="not a picture"):
        ask(client, message("ocr", png(b"text")))
    with pytest.raises(openai.BadRequestError, match="PDF"):
        ask(client, message("ocr", png(b"%PDF-1.7")))


def curl(server: Server, body: dict[str, Any], *flags: str, folder: Path) -> str:
    (folder / "body.json").write_text(json.dumps(body))
    command = ["curl", "-sS", "--noproxy", "*", *flags, "-H", "Content-Type: application/json",
               "-d", f"@{folder / 'body.json'}", f"{server.url}/v1/chat/completions"]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_curl(server: Server, tmp_path: Path) -> None:
    need("curl")
    answer = json.loads(curl(server, chat("ocr"), folder=tmp_path))
    assert answer["choices"][0]["message"]["content"] == TEXT["fruit"]
    stream = curl(server, chat("ocr", stream=True), "-N", "-i", folder=tmp_path)
    assert "content-type: text/event-stream" in stream.lower()
    events = [line for line in stream.splitlines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    texts = [json.loads(event[6:])["choices"][0]["delta"].get("content") for event in events[:-1]]
    assert "".join(text or "" for text in texts) == TEXT["fruit"]


def test_penalties_that_change_nothing_are_no_error(client: openai.OpenAI) -> None:
    """Some clients send them always."""
    none: dict[str, Any] = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}}
    answer = ask(client, message("ocr", uri(FRUIT)), **none)
    assert answer.choices[0].message.content == TEXT["fruit"]


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/ready", "/document.schema.json", "/page/app.js", "/page/options.json",
     "/page/nothing"],
)  # fmt: skip
def test_whoever_asks_for_the_head_alone_gets_it(server: Server, path: str) -> None:
    whole = server.get(path)
    head = httpx.head(server.url + path, trust_env=False)
    assert head.status_code == whole.status_code
    assert head.content == b""
    for name in ("content-type", "content-length", "content-security-policy"):
        assert head.headers[name] == whole.headers[name]


def test_health_ready_and_metrics(server: Server) -> None:
    assert server.get("/health").json() == {"status": "ok"}
    assert server.get("/ready").json() == {"status": "ready", "models": ["pocket", ENDLESS]}
    before = server.metric("deepseek_ocr_pages_total", model="pocket", finish_reason="stop")
    read = server.metric("deepseek_ocr_tokens_total", model="pocket", kind="output")
    answer = server.post("/v1/chat/completions", json=chat("ocr")).json()
    assert server.metric("deepseek_ocr_pages_total", model="pocket", finish_reason="stop") == (
        before + 1
    )
    assert server.metric("deepseek_ocr_tokens_total", model="pocket", kind="output") == (
        read + answer["usage"]["completion_tokens"]
    )
    for stage in ("preprocess", "vision", "prefill", "decode"):
        assert server.metric("deepseek_ocr_stage_seconds_sum", model="pocket", stage=stage) > 0
    assert server.metric("deepseek_ocr_slots", model="pocket") >= 1
    assert server.metric("process_resident_memory_bytes") > 1e7
    assert server.metric("deepseek_ocr_requests_total", route="/v1/chat/completions") > 0


def test_the_log_has_request_ids_and_no_text_of_documents(server: Server) -> None:
    answer = server.post(
        "/v1/chat/completions", json=chat("a secret prompt"), headers={"x-request-id": "mine-1"}
    )
    assert answer.headers["x-request-id"] == "mine-1"
    line = server.wait_for("request")
    while line["request_id"] != "mine-1":
        line = server.wait_for("request")
    assert line["route"] == "/v1/chat/completions"
    assert (line["status"], line["model"], line["pages"]) == (200, "pocket", 1)
    assert line["seconds"] > 0
    logged = json.dumps(server.lines)
    assert "Lemon" not in logged
    assert "secret" not in logged
