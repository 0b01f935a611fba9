"""The text of a page while it is decoded, parted into regions as soon as each is known.

`parser.parse` reads a page that is whole. Here its tags arrive in pieces: what may become a tag
is held back until it is one, or cannot be one any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deepseek_ocr.grounding import parser
from deepseek_ocr.grounding.parser import Box, without_cut_tag

_OPEN, _CLOSE = "<|ref|>", "<|/det|>"

_LONGEST_HEAD = 40_000
"""Characters of a region's label and boxes; what is longer and still open is text."""


@dataclass(frozen=True)
class RegionFound:
    """A region whose label and boxes are known; its text comes next. `order` counts from 1."""

    order: int
    label: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class RegionText:
    """Text without tags, of the region `order`; 0 is before all regions."""

    order: int
    text: str


class Splitter:
    """Takes a page's text in pieces and gives it without tags, with its regions."""

    def __init__(self) -> None:
        self._held = ""
        self._order = 0

    def feed(self, text: str) -> Iterator[RegionFound | RegionText]:
        """What is certain once `text` has come too."""
        self._held += text
        while self._held:
            begin = self._held.find(_OPEN)
            if begin < 0:
                yield from self._give(len(self._held) - _overlap(self._held, _OPEN))
                return
            yield from self._give(begin)
            end = self._held.find(_CLOSE)
            if end >= 0:
                yield from self._close(end + len(_CLOSE))
            elif len(self._held) > _LONGEST_HEAD:
                yield from self._give(len(_OPEN))
            else:
                return

    def finish(self) -> Iterator[RegionText]:
        """What is left at the end of the page, less the tag in the middle of which it ends."""
        self._held = "".join(without_cut_tag(self._held))
        yield from self._give(len(self._held))

    def _give(self, length: int) -> Iterator[RegionText]:
        text, self._held = self._held[:length], self._held[length:]
        if text:
            yield RegionText(self._order, text)

    def _close(self, end: int) -> Iterator[RegionFound | RegionText]:
        """The first `end` characters end as a region does; what is no region in them is text."""
        regions = parser.parse(self._held[:end])
        if not regions or regions[0].text_start != end:
            yield from self._give(end)
            return
        yield from self._give(regions[0].start)
        self._held = self._held[end - regions[0].start :]
        self._order += 1
        yield RegionFound(self._order, regions[0].label, regions[0].boxes)


def _overlap(text: str, tag: str) -> int:
    """How many characters at the end of `text` may be the beginning of `tag`."""
    return next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
