"""`/v1/chat/completions`: pages in a conversation, as OpenAI's API has it."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from deepseek_ocr.server.api_errors import ApiError, json_answer
from deepseek_ocr.server.openai.answers import Answer, begin_answer, logprob_entries
from deepseek_ocr.server.openai.event_streams import EventStream, as_event, unless_hung_up
from deepseek_ocr.server.openai.request_parsing import RequestOptions, last_turn, refuse
from deepseek_ocr.server.openai.request_schemas import ChatRequest
from deepseek_ocr.server.server_state import CurrentCaller

router = APIRouter(prefix="/v1")


@router.post("/chat/completions", response_class=Response)
async def complete(request: Request, asked: ChatRequest, caller: CurrentCaller) -> Response:
    """Read the pictures of the last user turn, or else the latest that were sent."""
    answer = await begin_answer(request, caller, asked, _options(asked))
    if asked.stream:
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        return EventStream(_chunks(answer, usage), _last_event)
    text, tokens = await unless_hung_up(request.receive, answer.text())
    return json_answer(_completion(answer, text, tokens))


def _options(asked: ChatRequest) -> RequestOptions:
    refuse(asked.n not in (None, 1), "One answer is all there is; leave out n.", "n")
    refuse(asked.stop, "Stop sequences are not supported; leave out stop.", "stop")
    limit = asked.max_completion_tokens
    return RequestOptions(
        turn=last_turn(asked.messages, "messages"), turn_param="messages",
        max_tokens=asked.max_tokens if limit is None else limit, logprobs=bool(asked.logprobs),
        format=asked.response_format, format_param="response_format",
    )  # fmt: skip


def _completion(answer: Answer, text: str, tokens: list[tuple[str, float]]) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = _choice("message", message, _logprobs(answer, tokens), answer.finish_reason)
    head = _head(answer, "chat.completion")
    return {**head, "choices": [choice], "usage": _usage(answer), "deepseek_ocr": answer.details}


async def _chunks(answer: Answer, usage: bool) -> AsyncGenerator[bytes, None]:
    head = _head(answer, "chat.completion.chunk")
    if usage:
        head["usage"] = None
    role: dict[str, Any] = {"role": "assistant"}
    async for piece in answer.pieces():
        if piece.text or piece.tokens:
            delta = {**role, "content": piece.text}
            choice = _choice("delta", delta, _logprobs(answer, piece.tokens))
            yield as_event({**head, "choices": [choice]})
            role = {}
    last = _choice("delta", role, None, answer.finish_reason)
    yield as_event({**head, "choices": [last], "deepseek_ocr": answer.details})
    if usage:
        yield as_event({**head, "choices": [], "usage": _usage(answer)})
    yield b"data: [DONE]\n\n"


def _choice(
    name: str, said: dict[str, Any], logprobs: dict[str, Any] | None, end: str | None = None
) -> dict[str, Any]:
    return {"index": 0, name: said, "logprobs": logprobs, "finish_reason": end}


def _logprobs(answer: Answer, tokens: Iterable[tuple[str, float]]) -> dict[str, Any] | None:
    return {"content": logprob_entries(tokens), "refusal": None} if answer.logprobs else None


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    id_ = f"chatcmpl-{secrets.token_hex(12)}"
    return {"id": id_, "object": kind, "created": int(time.time()), "model": answer.model}


def _usage(answer: Answer) -> dict[str, int]:
    prompt, output = answer.usage
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _last_event(error: ApiError) -> bytes:
    return as_event(error.body()) + b"data: [DONE]\n\n"
