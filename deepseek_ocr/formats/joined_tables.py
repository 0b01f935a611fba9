"""Tables that go on over a page break, joined if their columns agree.

Only regular tables in HTML are joined (rows of cells, nothing nested, nothing left open); all
others stay where and as they are. No row is lost: a heading that is repeated on the next page is
named where it is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.markup import PagePart, cell_text
from deepseek_ocr.markup.blocks import Row, Table

MARGIN_LABELS = frozenset({"header", "footer", "page_header", "page_footer", "page_number"})
"""Labels of what may stand between a table and the edge of its page."""

MOST_JOINED = 100
"""Pages one table is joined over; they are held in memory together."""

_YEAR = re.compile(r"(19|20)[0-9]{2}")


@dataclass(frozen=True)
class Group:
    """The rows of a joined table that one page has, and its repeated heading, left out."""

    page: int
    rows: tuple[Row, ...]
    left_out: tuple[Row, ...] = ()


@dataclass(frozen=True)
class PageContent:
    """What one page holds: `before`, then a table over several pages if any, then `after`.
    `continues` is the page on which the table stands that this page would begin with."""

    record: PageRecord
    before: tuple[PagePart, ...]
    groups: tuple[Group, ...] = ()
    after: tuple[PagePart, ...] = ()
    continues: int | None = None


@dataclass(frozen=True)
class _Place:
    """A table on a page: the numbers of its part and of its block in it."""

    part: int
    block: int
    table: Table


@dataclass
class _Chain:
    """A page that ends with a table, the table's rows so far, and pages that only go on with it."""

    page: PageContent
    place: _Place
    groups: list[Group]
    waiting: list[PageContent]

    def takes(self, record: PageRecord, table: Table) -> bool:
        """True if `table`, at the beginning of `record`, goes on with this one."""
        follows = record.number == self.groups[-1].page + 1 and len(self.groups) < MOST_JOINED
        return follows and _columns(table) == _columns(self.place.table)

    def add(self, record: PageRecord, table: Table) -> None:
        """Take over the rows of `table`, less the heading repeated in it."""
        repeated = 0
        for own, other in zip(self.place.table.rows, table.rows, strict=False):
            if row_texts(own) != row_texts(other) or not _is_heading(own):
                break
            repeated += 1
        self.groups.append(Group(record.number, table.rows[repeated:], table.rows[:repeated]))

    def pages(self) -> list[PageContent]:
        """The page on which the table begins, then those it alone went on over."""
        first = self.page
        if len(self.groups) > 1:
            before, after = _around(first.before, self.place)
            first = replace(first, before=before, groups=tuple(self.groups), after=after)
        return [first, *self.waiting]


def page_contents(records: Iterable[PageRecord], join: bool) -> Iterator[PageContent]:
    """Every page of `records` once and in order, with tables over page breaks joined if `join`."""
    chain: _Chain | None = None
    for record in records:
        page = PageContent(record, record.parts)
        if not join:
            yield page
            continue
        first, last = _table_at(0, page.before), _table_at(-1, page.before)
        if chain is not None and first is not None and chain.takes(record, first.table):
            chain.add(record, first.table)
            before, after = _around(page.before, first)
            page = PageContent(record, before + after, continues=chain.page.record.number)
            if first == last:
                chain.waiting.append(page)
                continue
            last = _table_at(-1, page.before)
        if chain is not None:
            yield from chain.pages()
        chain = None
        if last is None:
            yield page
        else:
            chain = _Chain(page, last, [Group(record.number, last.table.rows)], [])
    if chain is not None:
        yield from chain.pages()


def _table_at(end: Literal[0, -1], parts: Sequence[PagePart]) -> _Place | None:
    """The table that a page begins (0) or ends (-1) with, but for headers and footers, and for
    what has no content."""
    kept = [number for number, part in enumerate(parts) if part.blocks and not _is_margin(part)]
    if not kept:
        return None
    blocks = parts[kept[end]].blocks
    table = blocks[end]
    if isinstance(table, Table) and table.regular and table.alignment is None:
        return _Place(kept[end], len(blocks) - 1 if end else 0, table)
    return None


def row_texts(row: Row) -> tuple[str, ...]:
    """The text of each cell."""
    return tuple(map(cell_text, row))


def _is_margin(part: PagePart) -> bool:
    return part.region is not None and part.region.label in MARGIN_LABELS


def _around(
    parts: tuple[PagePart, ...], place: _Place
) -> tuple[tuple[PagePart, ...], tuple[PagePart, ...]]:
    """What stands before a table and after it."""
    holder = parts[place.part]
    begin = replace(holder, blocks=holder.blocks[: place.block])
    end = replace(holder, blocks=holder.blocks[place.block + 1 :])
    return (*parts[: place.part], begin), (end, *parts[place.part + 1 :])


def _columns(table: Table) -> int:
    """Columns of the widest row."""
    return max(sum(cell.columns for cell in row) for row in table.rows)


def _is_heading(row: Row) -> bool:
    """True for cells marked as headings, or all of words, years or blanks: not a row of data."""
    if any(cell.heading for cell in row):
        return True
    texts = row_texts(row)
    words = [any(sign.isalpha() for sign in text) for text in texts]
    return any(words) and all(
        word or not text or _YEAR.fullmatch(text) for word, text in zip(words, texts, strict=True)
    )
