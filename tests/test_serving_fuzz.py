"""The API asked at random, as its own OpenAPI describes it and as it does not: never a 500."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies as st

from tests.serving_world import FRUIT, Server, uri


@pytest.fixture(scope="module")
def server(open_server: Server) -> Server:
    return open_server


quickly = hypothesis.settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)


def test_no_described_request_is_too_much(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/v1/chat/completions", "/v1/responses"}
    for operation in operations:
        asking = hypothesis.given(case=operation.as_strategy())(_is_answered)
        quickly(asking)()


def _is_answered(case: schemathesis.Case) -> None:
    answer = case.call(timeout=60)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.lists(st.integers(), max_size=2),
    st.just({}),
)

NAMES = (
    "model stream task resolution reference output_format temperature top_p top_k seed "
    "repetition_penalty no_repeat_ngram_size no_repeat_window exempt_ngrams stop_on_loop "
    "timeout max_tokens max_completion_tokens logprobs top_logprobs response_format n stop "
    "stream_options tool_choice max_output_tokens text include instructions metadata "
    "presence_penalty frequency_penalty logit_bias"
)

FIELDS = st.dictionaries(st.sampled_from(NAMES.split()), ODD, max_size=3)

TEXTS = st.one_of(
    st.text(max_size=50), st.sampled_from(["ocr", "locate: x", "<image><image>", "<|ref|>", ""])
)

URLS = st.one_of(
    st.just(uri(FRUIT)),
    st.binary(max_size=50).map(uri),
    st.text(max_size=30),
    st.text(max_size=20).map("http://127.0.0.1/{}".format),
)


@hypothesis.settings(quickly, max_examples=150)
@hypothesis.given(text=TEXTS, urls=st.lists(URLS, max_size=3), fields=FIELDS, chat=st.booleans())
def test_no_picture_text_or_setting_is_too_much(
    server: Server, text: str, urls: list[str], fields: dict[str, Any], chat: bool
) -> None:
    kinds = ("text", "image_url") if chat else ("input_text", "input_image")
    parts: list[dict[str, Any]] = [{"type": kinds[0], "text": text}]
    parts += [{"type": kinds[1], "image_url": {"url": url} if chat else url} for url in urls]
    turns = [{"role": "user", "content": parts}]
    body = {"model": "pocket", "max_tokens": 3, "messages" if chat else "input": turns, **fields}
    path = "/v1/chat/completions" if chat else "/v1/responses"
    answer = server.post(path, json=body)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
