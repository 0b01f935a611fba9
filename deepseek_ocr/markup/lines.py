"""What is in a line: text, formulas and emphasis."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from typing import cast

from deepseek_ocr.markup.blocks import Formula, Inline, Line, Style, Styled, Text

_BREAK = re.compile(r"<br[ \t]{0,9}/?>", re.IGNORECASE)
_STYLE_TAG = re.compile(r"<(/?)(sup|sub|b|i|u|s|em|strong)>", re.IGNORECASE)
_SAME_STYLE = {"em": "i", "strong": "b"}
_BOLD = re.compile(r"(?<![\w*])\*\*(?!\s)([^*]+)(?<!\s)\*\*(?![\w*])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

_DEEPEST = 20
"""Styles within each other; those further in are text."""


class LineReader:
    """Reads lines in which the number of each of `formulas` stands between two `stand_in`."""

    def __init__(self, stand_in: str, formulas: Sequence[Formula]) -> None:
        self._stand_in = re.compile(f"{stand_in}([0-9]+){stand_in}")
        self._formulas = formulas

    def lines(self, text: str, entities: bool = False) -> tuple[Line, ...]:
        """The lines of `text`, also those parted by `<br>`; `entities` decodes those of HTML."""
        stripped = (line.strip() for line in _BREAK.sub("\n", text).split("\n"))
        return tuple(self.line(line, entities) for line in stripped if line)

    def line(self, text: str, entities: bool = False) -> Line:
        """What is in one line. A tag of style that has no partner is text."""
        pieces = _STYLE_TAG.split(_BREAK.sub(" ", text))  # text, slash, name, text, slash, …
        return tuple(self._inlines(pieces, _partners(pieces), 0, len(pieces), entities))

    def _inlines(
        self, pieces: list[str], ends: dict[int, int], begin: int, end: int, entities: bool
    ) -> Iterator[Inline]:
        at = begin
        while at < end:
            if at % 3 == 0:
                yield from self._emphasised(pieces[at], entities)
                at += 1
            elif at in ends:
                name = pieces[at + 1].lower()
                style = cast(Style, _SAME_STYLE.get(name, name))
                yield Styled(style, tuple(self._inlines(pieces, ends, at + 2, ends[at], entities)))
                at = ends[at] + 2
            else:
                yield Text(f"<{pieces[at]}{pieces[at + 1]}>")
                at += 2

    def _emphasised(self, text: str, entities: bool) -> Iterator[Inline]:
        at = 0
        for bold in _BOLD.finditer(text):
            if not any(sign.isalnum() for sign in bold[1]):
                continue  # signs of a form, such as **__**
            yield from self._plain(text[at : bold.start()], entities)
            yield Styled("b", tuple(self._plain(bold[1], entities)))
            at = bold.end()
        yield from self._plain(text[at:], entities)

    def _plain(self, text: str, entities: bool) -> Iterator[Inline]:
        for at, part in enumerate(self._stand_in.split(text)):
            if at % 2:
                formula = self._formulas[int(part)]
                yield Formula(_decoded(formula.source), formula.display) if entities else formula
            elif part:
                yield Text(_decoded(part) if entities else part)


def _partners(pieces: Sequence[str]) -> dict[int, int]:
    """For each opening tag in `pieces` (text, slash, name, text, …) where its closing one is."""
    found: dict[int, int] = {}
    opened: list[int] = []
    for at in range(1, len(pieces), 3):
        if not pieces[at]:
            opened.append(at)
        elif opened and pieces[opened[-1] + 1].lower() == pieces[at + 1].lower():
            if len(opened) <= _DEEPEST:
                found[opened[-1]] = at
            opened.pop()
        else:
            opened.clear()
    return found


def _decoded(text: str) -> str:
    """`text` with the entities of HTML as characters; control characters are spaces."""
    return _CONTROL.sub(" ", _ENTITY.sub(lambda found: html.unescape(found[0]), text))
