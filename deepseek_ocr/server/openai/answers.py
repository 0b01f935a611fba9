"""The answer to a request: its text piece by piece, in the form that was asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from deepseek_ocr import presets
from deepseek_ocr.engine.results import Delta, Page, Reading
from deepseek_ocr.formats import json_document
from deepseek_ocr.formats.export import page_to_json
from deepseek_ocr.formats.markdown import PAGE_SPLIT
from deepseek_ocr.grounding import parser
from deepseek_ocr.markup import blocks_in, settled_parts, to_markdown
from deepseek_ocr.server.api_errors import ApiError
from deepseek_ocr.server.openai import request_parsing
from deepseek_ocr.server.openai.event_streams import unless_hung_up
from deepseek_ocr.server.openai.image_inputs import pictures
from deepseek_ocr.server.openai.request_schemas import CommonFields, OutputFormat
from deepseek_ocr.server.queueing.model_pools import ModelPool
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
    """An answer in the making: what is to be read for `client`, by which model, and what is to
    come of it. `model` is the name the client gave; `readings` grows as pages end."""

    client: str
    model: str
    pool: ModelPool
    pages: Sequence[Page]
    form: OutputFormat
    logprobs: bool
    readings: list[Reading] = field(default_factory=list)

    async def pieces(self) -> AsyncIterator[TextPiece]:
        """The text, piece by piece, pages in order. Raises what reading raises."""
        with stream_pages(self.pool, self.client, self.pages) as streams:
            for number, stream in enumerate(streams):
                writer = writer_for(self.form, number, self.pages)
                async for event in stream.events():
                    if isinstance(event, Reading):
                        self.readings.append(event)
                    yield writer.take(event)

    async def text(self) -> tuple[str, list[tuple[str, float]]]:
        """All of it, and all its tokens."""
        pieces = [piece async for piece in self.pieces()]
        tokens = [token for piece in pieces for token in piece.tokens]
        return "".join(piece.text for piece in pieces), tokens

    @property
    def finish_reason(self) -> str:
        """As OpenAI has it: "stop", or "length" where any page is not whole."""
        whole = all(page.finish_reason == "stop" for page in self.readings)
        return "stop" if whole else "length"

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens that went in, vision tokens included, and that came out."""
        counts = [page.counts for page in self.readings]
        return sum(one.prompt for one in counts), sum(one.output for one in counts)

    @property
    def details(self) -> dict[str, Any]:
        """What OpenAI's API has no place for: how each page ended and how sure the model was."""
        pages = [
            {
                "finish_reason": page.finish_reason,
                "confidence": None if page.confidence is None else page.confidence.mean,
                "vision_tokens": page.counts.vision, "output_tokens": page.counts.output,
                "more_pages": page.more_pages,
            }
            for page in self.readings
        ]  # fmt: skip
        return {"pages": pages}


async def begin_answer(
    request: Request, caller: Caller, asked: CommonFields, options: request_parsing.RequestOptions
) -> Answer:
    """The answer to what was `asked`, of which nothing is read yet. Raises `ApiError`, and the
    errors of settings, prompts and pictures, which are answered 400; `HungUpError` too."""
    state = caller.state
    request_parsing.refuse_unsupported(asked)
    pool, preset = state.pool_for(asked.model)
    prompt = request_parsing.prompt_of(asked, options.turn.text, pool.known)
    crop = presets.crop_for(asked.resolution or preset)
    decode = request_parsing.decode_of(asked, options.max_tokens, state.server.page_timeout)
    form = request_parsing.form_of(asked, options)
    images = options.turn.images
    if not images:
        raise ApiError(
            400, f"There is no picture in {options.turn_param}; add a part of type image_url "
            "(input_image in /v1/responses) with a data URI.", "missing_image", options.turn_param,
        )  # fmt: skip
    if len(images) > state.server.max_pages:
        raise ApiError(
            413, f"These are {len(images)} pictures; {state.server.max_pages} are the most a "
            "request may have.", "too_many_pages",
        )  # fmt: skip
    found = await unless_hung_up(request.receive, pictures(caller, images))
    pages = [Page(data, prompt, crop, decode) for data in found]
    logged = {"model": asked.model, "pages": len(pages), "stream": bool(asked.stream)}
    request.scope["deepseek_ocr.log"] = logged
    return Answer(caller.client, asked.model, pool, pages, form, options.logprobs)


def logprob_entries(tokens: Iterable[tuple[str, float]]) -> list[dict[str, Any]]:
    """Tokens and their log-probabilities as OpenAI has them."""
    return [
        {
            "token": text, "logprob": logprob, "bytes": [*text.encode("utf-8", "replace")],
            "top_logprobs": [],
        }
        for text, logprob in tokens
    ]  # fmt: skip


def writer_for(
    form: OutputFormat, number: int, pages: Sequence[Page]
) -> _Written | _Markdown | _Json:
    """What writes page `number` (from 0) of `pages`: its `take` gives what to send now that an
    event has come, whose text may be empty."""
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
