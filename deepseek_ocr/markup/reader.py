"""Text → blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from deepseek_ocr.markup.blocks import Block, Cell, Formula, Item, ItemList, Paragraph, Table, Title
from deepseek_ocr.markup.formulas import formulas_in
from deepseek_ocr.markup.html_tables import RawCell, html_tables_in
from deepseek_ocr.markup.lines import LineReader

TITLE_LABELS = {"title": 1, "sub_title": 2}
"""Labels of regions that hold a title, and its level if the text does not say."""

_TITLE = re.compile(r"(#{1,6})[ \t]+(\S.*)")
_SURELY_A_TITLE = re.compile(r"##|#[ \t]+(?![a-z])[^\W\d_]")
_NUMBERED = re.compile(r"([0-9]{1,9})([.)])[ \t]+(?=\S)")
_BULLET = re.compile(r"[-*\u2022][ \t]+(?=[^\W\d_])")
_CENTRED = re.compile(r"<center>(.*)</center>", re.IGNORECASE | re.DOTALL)
_DASHES = re.compile(r"[ \t]*:?-+:?[ \t]*")
_BAR = re.compile(r"(?<!\\)\|")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_PRIVATE_USE = range(0xE000, 0x110000)


def blocks_of(text: str, label: str | None = None) -> tuple[Block, ...]:
    """The blocks of `text`: of a region with this `label`, or of a page without regions. Takes time
    linear in the length of `text` and never fails."""
    return tuple(_Reader(text, label).blocks())


class _Reader:
    """Reads one text. Its formulas are taken out first, since what is in them is never markup; a
    character that the text does not have stands for each."""

    def __init__(self, text: str, label: str | None) -> None:
        self._label = label
        signs = set(text)
        stand_in = next(sign for sign in map(chr, _PRIVATE_USE) if sign not in signs)
        text = _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text))
        text = "\n".join(line.strip() for line in text.split("\n"))
        formulas: list[Formula] = []
        parts, at = [], 0
        for start, end, formula in formulas_in(text):
            parts += [text[at:start], f"{stand_in}{len(formulas)}{stand_in}"]
            formulas.append(formula)
            at = end
        self._text = "".join([*parts, text[at:]])
        self._lines = LineReader(stand_in, formulas)

    def blocks(self) -> Iterator[Block]:
        """What the text holds, in its order."""
        at = 0
        for table in html_tables_in(self._text):
            yield from self._paragraphs(self._text[at : table.start])
            rows = tuple(tuple(map(self._cell, row)) for row in table.rows)
            if rows:
                yield Table(rows, regular=table.regular)
            at = table.end
        yield from self._paragraphs(self._text[at:])

    def _cell(self, raw: RawCell) -> Cell:
        lines = self._lines.lines(raw.text, entities=True)
        return Cell(lines, raw.columns, raw.rows, raw.heading)

    def _paragraphs(self, text: str) -> Iterator[Block]:
        lines: list[str] = []
        for line in [*text.split("\n"), ""]:
            if line := line.strip():
                lines.append(line)
            elif lines:
                yield from self._paragraph(lines)
                lines = []

    def _paragraph(self, lines: list[str]) -> Iterator[Block]:
        """The blocks in lines without a blank one between them."""
        if centred := _CENTRED.fullmatch("\n".join(lines)):
            yield Paragraph(self._lines.lines(centred[1]), centred=True)
            return
        if self._label in TITLE_LABELS and not _TITLE.fullmatch(lines[0]):
            yield Title(TITLE_LABELS[self._label], self._lines.line(" ".join(lines)))
            return
        at = plain = 0
        while at < len(lines):
            make, count = self._markup_at(lines, at)
            if make is not None:
                if plain < at:
                    yield Paragraph(self._lines.lines("\n".join(lines[plain:at])))
                yield make(lines[at : at + count])
                plain = at + count
            at += count
        if plain < at:
            yield Paragraph(self._lines.lines("\n".join(lines[plain:])))

    def _markup_at(
        self, lines: list[str], at: int
    ) -> tuple[Callable[[list[str]], Block] | None, int]:
        """What makes a block of the lines from `at` on, and of how many; None and 1 for text."""
        if self._is_title(lines, at):
            return self._title, 1
        if count := _bar_table_from(lines, at):
            return self._bar_table, count
        if count := _list_from(lines, at):
            return self._list, count
        return None, 1

    def _is_title(self, lines: list[str], at: int) -> bool:
        if not _TITLE.fullmatch(lines[at]):
            return False
        if self._label is not None:
            return self._label in TITLE_LABELS
        alone = len(lines) == 1 and _SURELY_A_TITLE.match(lines[at]) is not None
        return alone or lines[at].startswith("##")

    def _title(self, lines: list[str]) -> Title:
        found = _TITLE.fullmatch(lines[0])
        assert found is not None
        return Title(len(found[1]), self._lines.line(found[2]))

    def _list(self, lines: list[str]) -> ItemList:
        halves = (line.split(None, 1) for line in lines)
        return ItemList(tuple(Item(marker, self._lines.line(rest)) for marker, rest in halves))

    def _bar_table(self, lines: list[str]) -> Table:
        rows = [_bar_cells(line) for line in lines]
        alignment = tuple(cell.strip() for cell in rows.pop(1))
        cells = (
            tuple(Cell(self._lines.lines(raw.replace("\\|", "|")), heading=at == 0) for raw in row)
            for at, row in enumerate(rows)
        )
        return Table(tuple(cells), alignment)


def _list_from(lines: Sequence[str], at: int) -> int:
    """How many lines from `at` on make a list: 0, or 2 and more. They count up by one, or begin
    with the same bullet and a letter."""
    first = _NUMBERED.match(lines[at]) or _BULLET.match(lines[at])
    end = at
    while first is not None and end < len(lines):
        if first.re is _NUMBERED:
            found = _NUMBERED.match(lines[end])
            goes_on = found and (int(found[1]), found[2]) == (int(first[1]) + end - at, first[2])
        else:
            goes_on = (found := _BULLET.match(lines[end])) and found[0][0] == first[0][0]
        if not goes_on:
            break
        end += 1
    return end - at if end - at > 1 else 0


def _bar_table_from(lines: Sequence[str], at: int) -> int:
    """How many lines from `at` on make a table of `| cell | cell |`."""
    if at + 1 >= len(lines) or not _is_row(lines[at]) or not _is_row(lines[at + 1]):
        return 0
    heading, dashes = _bar_cells(lines[at]), _bar_cells(lines[at + 1])
    if len(dashes) != len(heading) or not all(map(_DASHES.fullmatch, dashes)):
        return 0
    if all(map(_DASHES.fullmatch, heading)):
        return 0
    end = at + 2
    while end < len(lines) and _is_row(lines[end]):
        end += 1
    return end - at


def _is_row(line: str) -> bool:
    return len(line) > 2 and line[0] == line[-1] == "|" and line[-2] != "\\"


def _bar_cells(line: str) -> list[str]:
    return _BAR.split(line[1:-1])
