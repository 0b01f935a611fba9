"""The answer to a request: its text piece by piece, in the form that was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastapi import Request

from deepseek_ocr.engine.results import Delta, Page, Reading
from deepseek_ocr.formats import json_document
from deepseek_ocr.formats.export import page_to_json
from deepseek_ocr.formats.markdown import PAGE_SPLIT
from deepseek_ocr.grounding import parser
from deepseek_ocr.markup import blocks_in, settled_parts, to_markdown
from deepseek_ocr.server.observability.metrics import Metrics
from deepseek_ocr.server.openai.event_streams import log_fields
from deepseek_ocr.server.openai.request_parsing import (
    ReadingRequest,
    RequestOptions,
    reading_request,
)
from deepseek_ocr.server.openai.request_schemas import CommonFields, OutputFormat
from deepseek_ocr.server.queueing.page_streams import stream_pages
from deepseek_ocr.server.server_state import Caller

_ENOUGH = 200
"""New characters after which text is cleaned again, so that the work stays linear in practice."""


@dataclass(frozen=True)
class TextPiece:
    """Some text of the answer, and the tokens it is of: text and natural log-probability."""

    text: str
    tokens: tuple[tuple[str, float], ...] = ()


@dataclass
class Answer:
    """An answer in the making; `readings` grows as pages end."""

    metrics: Metrics
    order: ReadingRequest
    readings: list[Reading] = field(default_factory=list)

    async def pieces(self) -> AsyncIterator[TextPiece]:
        """The text, piece by piece, pages in order. Raises what reading raises."""
        order = self.order
        with stream_pages(self.metrics, order.pool, order.client, order.pages) as streams:
            for number, stream in enumerate(streams):
                writer = writer_for(order.form, number, order.pages)
                async for event in stream.events():
                    if isinstance(event, Reading):
                        self.readings.append(event)
                    yield writer.take(event)

    async def text(self) -> tuple[str, list[tuple[str, float]]]:
        """All of it, and all its tokens."""
        pieces = [piece async for piece in self.pieces()]
        return "".join(piece.text for piece in pieces), [
            token for piece in pieces for token in piece.tokens
        ]

    @property
    def finish_reason(self) -> str:
        """As OpenAI has it: "stop", or "length" where any page is not whole."""
        whole = all(page.finish_reason == "stop" for page in self.readings)
        return "stop" if whole else "length"

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens that went in, vision tokens included, and that came out."""
        return (
            sum(page.counts.prompt for page in self.readings),
            sum(page.counts.output for page in self.readings),
        )

    @property
    def details(self) -> dict[str, Any]:
        """What OpenAI's API has no place for: how each page ended and how sure the model was."""
        return {
            "pages": [
                {
                    "finish_reason": page.finish_reason,
                    "confidence": None if page.confidence is None else page.confidence.mean,
                    "vision_tokens": page.counts.vision,
                    "output_tokens": page.counts.output,
                    "more_pages": page.more_pages,
                }
                for page in self.readings
            ]
        }


async def begin_answer(
    request: Request, caller: Caller, asked: CommonFields, options: RequestOptions
) -> Answer:
    """The answer to what was `asked`, of which nothing is read yet; raises as `reading_request`."""
    order = await reading_request(caller, asked, options)
    log_fields(request, model=order.model, pages=len(order.pages), stream=bool(asked.stream))
    return Answer(caller.state.metrics, order)


def logprob_entries(tokens: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    """Tokens and their log-probabilities as OpenAI has them."""
    return [
        {
            "token": text,
            "logprob": logprob,
            "bytes": list(text.encode("utf-8", "replace")),
            "top_logprobs": [],
        }
        for text, logprob in tokens
    ]


class Writer(Protocol):
    """Writes one page of an answer."""

    def take(self, event: Delta | Reading) -> TextPiece:
        """What to send now that `event` has come; its text may be empty."""
        ...


def writer_for(form: OutputFormat, number: int, pages: Sequence[Page]) -> Writer:
    """The writer of page `number` (from 0) of `pages`."""
    if form == "json":
        return _Json(number, len(pages))
    if form == "markdown":
        return _Markdown(number, parser.reference_in(pages[number].prompt))
    return _Written(number)


class _Written:
    """The text as the model writes it, with its tokens."""

    def __init__(self, number: int) -> None:
        self._head = PAGE_SPLIT if number else ""
        self._sent = 0

    def take(self, event: Delta | Reading) -> TextPiece:
        head, self._head = self._head, ""
        if isinstance(event, Reading):
            return TextPiece(head)
        starts = [token.start - self._sent for token in event.tokens]
        ends = [*starts[1:], len(event.text)]
        tokens = tuple(
            (event.text[start:end], token.logprob)
            for token, start, end in zip(event.tokens, starts, ends, strict=True)
        )
        self._sent += len(event.text)
        return TextPiece(head + event.text, tokens)


class _Markdown:
    """The page as Markdown, as far as what follows can no longer change it."""

    def __init__(self, number: int, reference: str | None) -> None:
        self._reference = reference
        self._head = PAGE_SPLIT if number else ""
        self._text = ""
        self._looked_at = 0
        self._sent = ""

    def take(self, event: Delta | Reading) -> TextPiece:
        head, self._head = self._head, ""
        if isinstance(event, Reading):
            return TextPiece(head + self._more(event.markdown))
        self._text += event.text
        if len(self._text) - self._looked_at < _ENOUGH:
            return TextPiece(head)
        self._looked_at = len(self._text)
        parts = settled_parts(self._text, self._reference)
        return TextPiece(head + self._more(to_markdown(blocks_in(parts), parser.figure_name)))

    def _more(self, markdown: str) -> str:
        """What `markdown` has beyond what was sent."""
        if not markdown.startswith(self._sent):
            return ""
        more = markdown[len(self._sent) :]
        self._sent = markdown
        return more


class _Json:
    """The page as JSON data once it is read, and what makes a document of all pages."""

    def __init__(self, number: int, pages: int) -> None:
        self._number = number
        self._head = ", " if number else f'{{"version": {json_document.VERSION}, "pages": ['
        self._tail = "]}" if number == pages - 1 else ""

    def take(self, event: Delta | Reading) -> TextPiece:
        if isinstance(event, Delta):
            return TextPiece("")
        page = {**page_to_json(event, "image"), "number": self._number + 1}
        return TextPiece(self._head + json_document.dumps(page) + self._tail)
