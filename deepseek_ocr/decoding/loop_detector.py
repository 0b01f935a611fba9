"""Recognise text that goes in circles, while it is being written.

A model that loops repeats a stretch of text with nothing changed, or with nothing changed but
coordinates or a running number, so no n-gram of tokens need ever come back. The text is therefore
cut into units (words, tags, single signs), boxes are left out, and the end of it is searched for a
period, once with its digits and once with every number made equal.

How often a stretch may honestly come back depends on what it is: a form repeats a line thirty
times, a table repeats cells by the hundred, a dotted line repeats a dot by the thousand.
"""

from __future__ import annotations

import re

_UNIT = re.compile(
    r"</?[a-z]{1,8}>|<\|/?[a-z]{1,12}\|>"  # tags
    r"|[A-Za-z\u00c0-\u06ff]{1,12}|\d{1,12}|_+"  # words where spaces stand between them
    r"|\S"  # anything else by the character, Chinese among it
)
_BOXES = re.compile(r"<\|det\|>.*?<\|/det\|>", re.DOTALL)

_FEWEST_ROUNDS = 4
"""However long a stretch is, it is no loop before it has come this often."""

_LONGEST_BOXES = 2000
"""Characters after which boxes that do not close are taken for text."""

_PIECE = 256
"""Characters taken in at a time, however much arrives at once."""

_LONGEST_WORD = 60
"""Characters without a boundary after which text is cut anyway; a multiple of the longest unit and
of most short periods, so that "hahaha…" falls into equal units."""

_LONGEST_TAIL = 8000
"""Units at the end of the text that are searched: about as many tokens as the context holds."""

_FIRST_CHECK, _CHECK_SHARE = 200, 32
"""Units before the first search, and the share of the tail that has to be new for the next one:
the longer the tail the dearer the search, so that a unit costs the same throughout."""

_EQUAL_CELLS, _NUMBERED_CELLS = 1250, 1500
"""Table cells that may be equal, or differ in their numbers alone."""

_LONGEST_TABLE = 5000
"""Units of a table that may repeat whatever its cells hold; more would not fit the tail."""

_SIGNS = 3000
"""Units without a word, outside tables, that may repeat: dotted lines, rows of boxes to tick."""


class LoopDetector:
    """Answers, as text arrives, whether it has begun to go in circles."""

    def __init__(self) -> None:
        self._pending = ""
        self._units: list[str] = []
        self._unchecked = 0

    def feed(self, text: str) -> bool:
        """Add `text` to what was fed before; True once it has gone in circles."""
        pieces = (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))
        return any(self._feed_piece(piece) for piece in pieces)

    def _feed_piece(self, text: str) -> bool:
        self._pending += text
        ready = self._take_ready()
        if not ready:
            return False
        units = _UNIT.findall(_BOXES.sub(" ", ready))
        self._units = (self._units + units)[-_LONGEST_TAIL:]
        self._unchecked += len(units)
        enough = max(_CHECK_SHARE, len(self._units) // _CHECK_SHARE)
        if self._unchecked < enough or len(self._units) < _FIRST_CHECK:
            return False
        self._unchecked = 0
        return _ends_in_loop(self._units)

    def _take_ready(self) -> str:
        """Text up to the last boundary that more text cannot change, taken off the pending."""
        end = len(self._pending)
        opened = self._pending.rfind("<|det|>")
        if opened > self._pending.rfind("<|/det|>") and end - opened < _LONGEST_BOXES:
            end = opened
        whole = end
        while end and not self._pending[end - 1].isspace() and self._pending[end - 1] != ">":
            end -= 1
        if not end:
            end = whole // _LONGEST_WORD * _LONGEST_WORD
        ready, self._pending = self._pending[:end], self._pending[end:]
        return ready


def is_loop(text: str) -> bool:
    """True where `text`, read from its beginning, falls into a loop at some point."""
    return LoopDetector().feed(text)


def _ends_in_loop(units: list[str]) -> bool:
    if _periodic_end(units, digits_equal=False):
        return True
    masked = ["0" if unit.isdecimal() else unit for unit in units]
    return _periodic_end(masked, digits_equal=True)


def _periodic_end(units: list[str], digits_equal: bool) -> bool:
    """True where the end of `units` is periodic for longer than its content excuses.

    The prefix function of the reversed list gives the smallest period of every ending in one
    pass.
    """
    backwards = units[::-1]
    borders = [0] * len(backwards)
    needed: dict[int, int] = {}
    border = 0
    for at in range(1, len(backwards)):
        while border and backwards[at] != backwards[border]:
            border = borders[border - 1]
        border += backwards[at] == backwards[border]
        borders[at] = border
        covered, period = at + 1, at + 1 - border
        if covered >= _FEWEST_ROUNDS * period and covered >= _FIRST_CHECK:
            if period not in needed:
                needed[period] = _units_needed(backwards[:period], digits_equal)
            if covered >= needed[period]:
                return True
    return False


def _units_needed(period: list[str], digits_equal: bool) -> int:
    """Units that a repetition of `period` must cover to be more than a page has for good reason."""
    cells = sum(unit in ("</td>", "</th>") for unit in period)
    pipes = period.count("|")
    if not cells and 3 * pipes >= len(period):  # fewer are no Markdown table but prose or formulas
        cells = pipes
    if cells:
        most = _NUMBERED_CELLS if digits_equal else _EQUAL_CELLS
        need = min(most * len(period) // cells, _LONGEST_TABLE)
        return max(need, _FEWEST_ROUNDS * len(period))
    if not any(unit[0].isalpha() for unit in period):
        return _SIGNS
    # Words: a form repeats a line thirty times; a paragraph, however long, hardly ever comes four
    # times. Lines that are equal but for their numbers are what lists and registers are made of.
    if digits_equal:
        return max(600, min(200, max(_FEWEST_ROUNDS + 2, 4800 // len(period))) * len(period))
    return max(220, min(20, max(_FEWEST_ROUNDS, 1200 // len(period))) * len(period))
