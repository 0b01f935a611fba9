"""Recognise text that goes in circles, while it is being written.

A model that loops repeats a stretch of text with nothing changed, or with nothing changed but
coordinates or a running number, so no n-gram of tokens need ever come back. The text is therefore
cut into units (words, tags, single signs), boxes are left out, and the end of it is searched for a
period, once with its digits and once with every number made equal.

How often a stretch may honestly come back depends on what it is: a form repeats a line thirty
times, a table repeats empty cells by the hundred, a dotted line repeats a dot by the thousand.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNIT = re.compile(
    r"</?[a-z]{1,8}>|<\|/?[a-z]{1,12}\|>"  # tags
    r"|[A-Za-z\u00c0-\u06ff]{1,12}|\d{1,12}|_+"  # words where spaces stand between them
    r"|\S"  # anything else by the character, Chinese among it
)
_BOXES = re.compile(r"<\|det\|>.*?<\|/det\|>", re.DOTALL)
_TABLE_UNITS = {"<td>", "</td>", "|"}

_LONGEST_BOXES = 2000
"""Characters after which boxes that do not close are taken for text."""

_LONGEST_WORD = 60
"""Characters without a boundary after which text is cut anyway; a multiple of the longest unit and
of most short periods, so that "hahaha…" falls into equal units."""

_CHECK_EVERY = 32
"""Units between two searches; one costs up to two milliseconds."""


@dataclass(frozen=True)
class _Bound:
    """A loop is at least `repeats` repetitions that cover at least `units` units."""

    repeats: int
    units: int


# Bounds as (digits kept, digits made equal). The real loop in a one-letter form repeats twelve
# units some thirty times; few pages have a hundred lines.
_WORDS = (_Bound(20, 220), _Bound(100, 400))
_TABLE_WORDS = (_Bound(20, 1600), _Bound(20, 2400))
_NO_WORDS = (_Bound(20, 3000), _Bound(20, 4500))
_LONGEST_TAIL = max(bound.units for bound in (*_WORDS, *_TABLE_WORDS, *_NO_WORDS)) + _CHECK_EVERY


class LoopDetector:
    """Answers, as text arrives, whether it has begun to go in circles."""

    def __init__(self) -> None:
        self._pending = ""
        self._units: list[str] = []
        self._unchecked = 0

    def feed(self, text: str) -> bool:
        """Add `text` to what was fed before; True once the whole ends in a loop."""
        self._pending += text
        ready = self._take_ready()
        if not ready:
            return False
        units = _UNIT.findall(_BOXES.sub(" ", ready))
        self._units = (self._units + units)[-_LONGEST_TAIL:]
        self._unchecked += len(units)
        if self._unchecked < _CHECK_EVERY or len(self._units) < _WORDS[0].units:
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
    detector = LoopDetector()
    step = 256
    return any(detector.feed(text[at : at + step]) for at in range(0, len(text), step))


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
    bounds: dict[int, _Bound] = {}
    border = 0
    for at in range(1, len(backwards)):
        while border and backwards[at] != backwards[border]:
            border = borders[border - 1]
        border += backwards[at] == backwards[border]
        borders[at] = border
        covered, period = at + 1, at + 1 - border
        if border and covered >= 20 * period and covered >= _WORDS[0].units:
            if period not in bounds:
                bounds[period] = _bound(backwards[:period], digits_equal)
            bound = bounds[period]
            if covered >= bound.units and covered >= bound.repeats * period:
                return True
    return False


def _bound(period: list[str], digits_equal: bool) -> _Bound:
    if not any(unit[0].isalpha() for unit in period):
        return _NO_WORDS[digits_equal]
    if any(unit in _TABLE_UNITS for unit in period):
        return _TABLE_WORDS[digits_equal]
    return _WORDS[digits_equal]
