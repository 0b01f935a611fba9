"""Where the lines of a text stand inside its box, when only the box is known.

Points of the picture throughout: x to the right, y down, from its top left corner.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from deepseek_ocr.formats import bidi
from deepseek_ocr.formats.glyphless import width_of
from deepseek_ocr.grounding.geometry import Rectangle

_FILL = 0.9
"""Size of the letters in line pitches."""

_NARROWEST = 0.5
"""Least factor by which letters are squeezed sideways; readers take narrower ones for drawn twice.
Text that is set sideways in a tall box would be."""

_PADDING = 2.0
"""Of a cell of a table, left and right together, in sizes of its letters."""

_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
"""The scripts from Thai to Khmer, which part no words. So do wide characters."""

_LEAST = 1.0
"""Smallest side of a box in points; flatter ones are widened to hold their text all the same."""


@dataclass(frozen=True)
class PlacedLine:
    """A piece of text: its characters from left to right, where its baseline begins, its size in
    points, and the factor by which it is stretched sideways."""

    text: str
    x: float
    y: float
    size: float
    stretch: float


def place(lines: Sequence[str], box: Rectangle) -> Iterator[PlacedLine]:
    """The `lines` of a region spread over its box, wrapped as the page must have wrapped them. A
    line with tabs is a row of cells and is not wrapped."""
    left, top, right, bottom = box
    right, bottom = max(right, left + _LEAST), max(bottom, top + _LEAST)
    width, height = right - left, bottom - top
    edges = _column_edges([line.split("\t") for line in lines], left, width)
    wrapped = _fit(lines, width, height)
    if not wrapped:
        return
    pitch = height / len(wrapped)
    widest = max(width_of(text) for text, _ in wrapped) or 1.0
    size = min(_FILL * pitch, width / (_NARROWEST * widest))
    for at, (text, goes_on) in enumerate(wrapped):
        baseline = top + pitch * (at + 0.5) + 0.3 * size
        if len(edges) > 2:
            yield from _row(text.split("\t"), edges, baseline, size)
            continue
        natural = width_of(text) or 1.0
        share = width / ((natural if goes_on else widest) * size)
        own = natural * size * share
        x = right - own if bidi.is_right_to_left(text) else left
        yield PlacedLine(bidi.visual_order(text), x, baseline, size, share)


def _column_edges(rows: Sequence[Sequence[str]], left: float, width: float) -> list[float]:
    """Where the columns of a table begin, and where the last ends: as wide as their widest cell."""
    widest = [_PADDING] * max(map(len, rows), default=1)
    for row in rows:
        for column, cell in enumerate(row if len(row) > 1 else ()):
            widest[column] = max(widest[column], width_of(cell) + _PADDING)
    scale = width / sum(widest)
    return [left, *(left + scale * end for end in accumulate(widest))]


def _row(
    cells: list[str], edges: Sequence[float], baseline: float, size: float
) -> Iterator[PlacedLine]:
    """The cells of a table row, each in its column."""
    for cell, begin, end in zip(cells, edges, edges[1:], strict=False):
        if cell:
            share = min(1.0, 0.95 * (end - begin) / ((width_of(cell) or 1.0) * size))
            yield PlacedLine(bidi.visual_order(cell), begin, baseline, size, share)


def _fit(lines: Sequence[str], width: float, height: float) -> list[tuple[str, bool]]:
    """`lines` wrapped so that the letters are about as wide as they are high. Each comes with True
    where its paragraph goes on in the next."""
    lines = [line for line in lines if line.strip()]
    if not lines:
        return []
    area = sum(width_of(line) for line in lines) * _FILL * height / width
    count = max(len(lines), int(math.sqrt(area)))
    while True:
        wrapped = [part for line in lines for part in _wrap(line, width * count / (_FILL * height))]
        if len(wrapped) <= count or count > 2 * sum(map(len, lines)):
            return wrapped
        count += max(1, count // 8)


def _wrap(line: str, most: float) -> list[tuple[str, bool]]:
    """`line` in pieces of at most `most` times the size, but never less than a word."""
    if "\t" in line or width_of(line) <= most:
        return [(line, False)]
    pieces: list[str] = []
    piece, used = "", 0.0
    for word in _words(line):
        wide = width_of(word)
        if piece and used + width_of(word.rstrip()) > most:
            pieces.append(piece)
            piece, used = "", 0.0
        piece, used = piece + word, used + wide
    pieces.append(piece)
    last = len(pieces) - 1
    return [(piece.rstrip(), at < last) for at, piece in enumerate(pieces)]


def _words(line: str) -> Iterator[str]:
    """Where a line may be broken: after spaces, and in scripts that have none, but for marks."""
    start = 0
    for at, sign in enumerate(line, start=1):
        marked = at < len(line) and unicodedata.category(line[at]).startswith("M")
        alone = width_of(sign) == 1.0 or _UNSPACED.match(sign)
        if sign == " " or (alone and not marked):
            yield line[start:at]
            start = at
    if start < len(line):
        yield line[start:]
