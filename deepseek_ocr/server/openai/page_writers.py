"""What is read of one page as text of an answer, while it is read: as written, cleaned, as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from deepseek_ocr.engine.results import Delta, Page, Reading
from deepseek_ocr.formats import json_document
from deepseek_ocr.formats.export import page_to_json
from deepseek_ocr.formats.markdown import PAGE_SPLIT
from deepseek_ocr.grounding import parser
from deepseek_ocr.markup import blocks_in, settled_parts, to_markdown
from deepseek_ocr.server.openai.request_schemas import OutputFormat

_ENOUGH = 200
"""New characters after which text is cleaned again, so that the work stays linear in practice."""


@dataclass(frozen=True)
class Piece:
    """Some text of the answer, and the tokens it is of: text and natural log-probability."""

    text: str
    tokens: tuple[tuple[str, float], ...] = ()


class Writer(Protocol):
    """Writes one page of an answer."""

    def take(self, event: Delta | Reading) -> Piece:
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

    def take(self, event: Delta | Reading) -> Piece:
        head, self._head = self._head, ""
        if isinstance(event, Reading):
            return Piece(head)
        starts = [token.start - self._sent for token in event.tokens]
        ends = [*starts[1:], len(event.text)]
        tokens = tuple(
            (event.text[start:end], token.logprob)
            for token, start, end in zip(event.tokens, starts, ends, strict=True)
        )
        self._sent += len(event.text)
        return Piece(head + event.text, tokens)


class _Markdown:
    """The page as Markdown, as far as what follows can no longer change it."""

    def __init__(self, number: int, reference: str | None) -> None:
        self._reference = reference
        self._head = PAGE_SPLIT if number else ""
        self._text = ""
        self._looked_at = 0
        self._sent = ""

    def take(self, event: Delta | Reading) -> Piece:
        head, self._head = self._head, ""
        if isinstance(event, Reading):
            return Piece(head + self._more(event.markdown))
        self._text += event.text
        if len(self._text) - self._looked_at < _ENOUGH:
            return Piece(head)
        self._looked_at = len(self._text)
        parts = settled_parts(self._text, self._reference)
        return Piece(head + self._more(to_markdown(blocks_in(parts), parser.figure_name)))

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

    def take(self, event: Delta | Reading) -> Piece:
        if isinstance(event, Delta):
            return Piece("")
        page = {**page_to_json(event, "image"), "number": self._number + 1}
        return Piece(self._head + json_document.dumps(page) + self._tail)
