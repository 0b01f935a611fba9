"""`/v1/responses`: the same as `/v1/chat/completions` in OpenAI's newer form."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from deepseek_ocr.server.api_errors import ApiError, json_answer
from deepseek_ocr.server.openai.answers import Answer, begin_answer, logprob_entries
from deepseek_ocr.server.openai.event_streams import EventStream, as_event, unless_hung_up
from deepseek_ocr.server.openai.request_parsing import RequestOptions, last_turn, refuse
from deepseek_ocr.server.openai.request_schemas import ResponsesRequest
from deepseek_ocr.server.server_state import CurrentCaller

router = APIRouter(prefix="/v1")

_WITH_LOGPROBS = "message.output_text.logprobs"


@router.post("/responses", response_class=Response)
async def respond(request: Request, asked: ResponsesRequest, caller: CurrentCaller) -> Response:
    """Read the pictures of the last user turn, or else the latest that were sent."""
    report = _Report(asked, await begin_answer(request, caller, asked, _options(asked)))
    if asked.stream:
        return EventStream(report.events(), report.last_event)
    text, tokens = await unless_hung_up(request.receive, report.answer.text())
    return json_answer(report.response(report.status, [report.item("completed", text, tokens)]))


def _options(asked: ResponsesRequest) -> RequestOptions:
    follows = asked.previous_response_id is not None
    message = "Answers are not kept here; send the picture again in input."
    refuse(follows, message, "previous_response_id")
    refuse(asked.background, "Use /v1/ocr for work in the background.", "background")
    return RequestOptions(
        turn=last_turn(asked.input, "input"), turn_param="input",
        max_tokens=asked.max_output_tokens, logprobs=_WITH_LOGPROBS in (asked.include or ()),
        format=asked.text.format if asked.text else None, format_param="text.format",
    )  # fmt: skip


class _Report:
    """One answer in the form of this API: the response, its one message, the events of a stream."""

    def __init__(self, asked: ResponsesRequest, answer: Answer) -> None:
        self.answer = answer
        self._asked = asked
        self._id = f"resp_{secrets.token_hex(12)}"
        self._item_id = f"msg_{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._sent = 0

    @property
    def status(self) -> str:
        """Of a response whose pages are all read."""
        return "completed" if self.answer.finish_reason == "stop" else "incomplete"

    def response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        """The response, with usage once it is over."""
        asked = self._asked
        cut = status == "incomplete"
        return {
            "id": self._id, "object": "response", "created_at": self._created, "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {}, "model": asked.model, "output": output,
            "parallel_tool_calls": False, "previous_response_id": None, "store": False,
            "temperature": asked.temperature or 0.0,
            "text": {"format": (asked.text and asked.text.format) or {"type": "text"}},
            "tool_choice": asked.tool_choice or "auto", "tools": [],
            "top_p": 1.0 if asked.top_p is None else asked.top_p, "truncation": "disabled",
            "usage": None if status == "in_progress" else self._usage(),
            "deepseek_ocr": self.answer.details,
        }  # fmt: skip

    def item(
        self, status: str, text: str | None = None, tokens: Sequence[tuple[str, float]] = ()
    ) -> dict[str, Any]:
        """The message, empty while it is being written."""
        content = [] if text is None else [self._part(text, tokens)]
        head = {"id": self._item_id, "type": "message", "role": "assistant"}
        return {**head, "status": status, "content": content}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream, from the first piece of text on."""
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        texts: list[str] = []
        tokens: list[tuple[str, float]] = []
        async for piece in self.answer.pieces():
            if not self._sent:
                for event in self._opening(place):
                    yield event
            texts.append(piece.text)
            tokens += piece.tokens
            if piece.text or piece.tokens:
                said = {"delta": piece.text, "logprobs": self._logprobs(piece.tokens)}
                yield self._event("response.output_text.delta", **place, **said)
        for event in self._closing(place, "".join(texts), tokens):
            yield event

    def last_event(self, error: ApiError) -> bytes:
        """The event of a stream that ends in `error`."""
        return self._event("error", code=error.code, message=str(error), param=error.param)

    def _opening(self, place: dict[str, Any]) -> list[bytes]:
        begun, item = self.response("in_progress", []), self.item("in_progress")
        return [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
            self._event("response.output_item.added", output_index=0, item=item),
            self._event("response.content_part.added", **place, part=self._part("", ())),
        ]

    def _closing(
        self, place: dict[str, Any], text: str, tokens: Sequence[tuple[str, float]]
    ) -> list[bytes]:
        item = self.item(self.status, text, tokens)
        part = item["content"][0]
        logprobs = self._logprobs(tokens)
        return [
            self._event("response.output_text.done", **place, text=text, logprobs=logprobs),
            self._event("response.content_part.done", **place, part=part),
            self._event("response.output_item.done", output_index=0, item=item),
            self._event(f"response.{self.status}", response=self.response(self.status, [item])),
        ]

    def _event(self, kind: str, **fields: object) -> bytes:
        event = as_event({"type": kind, "sequence_number": self._sent, **fields}, kind)
        self._sent += 1
        return event

    def _part(self, text: str, tokens: Sequence[tuple[str, float]]) -> dict[str, Any]:
        logprobs = self._logprobs(tokens)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, tokens: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
        return logprob_entries(tokens) if self.answer.logprobs else []

    def _usage(self) -> dict[str, Any]:
        prompt, output = self.answer.usage
        return {
            "input_tokens": prompt, "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": output, "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + output,
        }  # fmt: skip
