"""`/v1/chat/completions`: pages in a conversation, as OpenAI's API has it."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from deepseek_ocr.server.api_errors import ApiError, json_answer
from deepseek_ocr.server.openai.answers import Answer
from deepseek_ocr.server.openai.event_streams import (
    EventStream,
    as_event,
    log_fields,
    unless_hung_up,
)
from deepseek_ocr.server.openai.page_writers import Piece
from deepseek_ocr.server.openai.request_parsing import Wish, last_turn, make_order, refuse
from deepseek_ocr.server.openai.request_schemas import ChatRequest
from deepseek_ocr.server.server_state import Caller, caller_of

router = APIRouter(prefix="/v1")


@router.post("/chat/completions", response_class=Response)
async def complete(
    request: Request,
    asked: ChatRequest,
    caller: Annotated[Caller, Depends(caller_of)],
) -> Response:
    """Read the pictures of the last user turn, or else the latest that were sent."""

    async def answer() -> Answer:
        return Answer(caller.state, await make_order(caller, asked, _wish(asked)))

    if asked.stream:
        usage = bool(asked.stream_options and asked.stream_options.include_usage)
        made = await unless_hung_up(request.receive, answer())
        log_fields(request, model=made.order.model, pages=len(made.order.pages), stream=True)
        return EventStream(_chunks(made, usage), _last_event)

    async def whole() -> dict[str, Any]:
        made = await answer()
        log_fields(request, model=made.order.model, pages=len(made.order.pages), stream=False)
        text, tokens = await made.text()
        return _completion(made, text, tokens)

    return json_answer(await unless_hung_up(request.receive, whole()))


def _wish(asked: ChatRequest) -> Wish:
    refuse(asked.n not in (None, 1), "One answer is all there is; leave out n.", "n")
    refuse(bool(asked.stop), "Stop sequences are not supported; leave out stop.", "stop")
    refuse(
        bool(asked.top_logprobs),
        "Only the chosen token's log-probability is known; leave out top_logprobs.",
        "top_logprobs",
    )
    refuse(
        asked.tool_choice not in (None, "none", "auto"), "The model calls no tools.", "tool_choice"
    )
    limit = asked.max_completion_tokens
    return Wish(
        turn=last_turn(asked.messages, "messages"),
        turn_param="messages",
        max_tokens=asked.max_tokens if limit is None else limit,
        format=asked.response_format,
        format_param="response_format",
        logprobs=bool(asked.logprobs),
    )


def _completion(answer: Answer, text: str, tokens: list[tuple[str, float]]) -> dict[str, Any]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": _logprobs(tokens) if answer.order.logprobs else None,
        "finish_reason": answer.finish_reason,
    }
    return {
        **_head(answer, "chat.completion"),
        "choices": [choice],
        "usage": usage_of(answer),
        "deepseek_ocr": answer.details,
    }


async def _chunks(answer: Answer, usage: bool) -> AsyncGenerator[bytes, None]:
    head = _head(answer, "chat.completion.chunk")
    if usage:
        head["usage"] = None
    role: dict[str, Any] = {"role": "assistant"}
    async for piece in answer.pieces():
        if piece.text or piece.tokens:
            yield as_event({**head, "choices": [_choice(answer, piece, role)]})
            role = {}
    last = {"index": 0, "delta": role, "logprobs": None, "finish_reason": answer.finish_reason}
    yield as_event({**head, "choices": [last], "deepseek_ocr": answer.details})
    if usage:
        yield as_event({**head, "choices": [], "usage": usage_of(answer)})
    yield b"data: [DONE]\n\n"


def _choice(answer: Answer, piece: Piece, role: dict[str, Any]) -> dict[str, Any]:
    return {
        "index": 0,
        "delta": {**role, "content": piece.text},
        "logprobs": _logprobs(piece.tokens) if answer.order.logprobs else None,
        "finish_reason": None,
    }


def _head(answer: Answer, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": answer.order.model,
    }


def _logprobs(tokens: list[tuple[str, float]] | tuple[tuple[str, float], ...]) -> dict[str, Any]:
    return {
        "content": [
            {
                "token": text,
                "logprob": logprob,
                "bytes": list(text.encode("utf-8", "replace")),
                "top_logprobs": [],
            }
            for text, logprob in tokens
        ],
        "refusal": None,
    }


def usage_of(answer: Answer) -> dict[str, int]:
    """Tokens of an answer by the names of this API."""
    prompt, output = answer.usage
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }


def _last_event(error: ApiError) -> bytes:
    return as_event(error.body()) + b"data: [DONE]\n\n"
