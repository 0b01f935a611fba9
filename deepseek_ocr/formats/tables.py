"""Tables that go on over a page break, joined where their columns agree.

The model writes tables as HTML. Only tables of a strict shape are joined (rows of cells, nothing
nested, nothing left open); all others stay where and as they are. No row is lost: a heading that
is repeated on the next page is named where it is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from deepseek_ocr import grounding
from deepseek_ocr.records import PageRecord

MARGIN_LABELS = frozenset({"header", "footer", "page_header", "page_footer", "page_number"})
"""Labels of what may stand between a table and the edge of its page."""

MOST_JOINED = 100
"""Pages one table is joined over; they are held in memory together."""

_WHOLE = re.compile(r"<(/?)table\b[^<>]*>", re.IGNORECASE)
_PART = re.compile(r"<(/?)(table|thead|tbody|tfoot|tr|td|th)\b[^<>]*>", re.IGNORECASE)
_SPAN = re.compile(r"\bcolspan\s*=\s*[\"']?([0-9]{1,3})\b", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>")
_YEAR = re.compile(r"(19|20)[0-9]{2}")


@dataclass(frozen=True)
class Row:
    """One row: its HTML from `<tr>` to `</tr>`, the text of its cells, and how wide it is."""

    html: str
    cells: tuple[str, ...]
    columns: int
    heading: bool


@dataclass(frozen=True)
class Table:
    """A table of the strict shape: where it stands in the page's text, and its rows."""

    start: int
    end: int
    rows: tuple[Row, ...]

    @property
    def columns(self) -> int:
        """Columns of its widest row."""
        return max((row.columns for row in self.rows), default=0)


@dataclass(frozen=True)
class Group:
    """The rows of a joined table that one page has, and its repeated heading, left out."""

    page: int
    rows: tuple[Row, ...]
    left_out: tuple[Row, ...] = ()


@dataclass(frozen=True)
class PageText:
    """The text of one page: `before`, then a table over several pages if any, then `after`.

    `before` and `after` are as the model wrote them. `continues` is the page on which the table
    stands that this page would begin with.
    """

    record: PageRecord
    before: str
    groups: tuple[Group, ...] = ()
    after: str = ""
    continues: int | None = None


@dataclass
class _Chain:
    """A page that ends with a table, the table's rows so far, and pages that only go on with it."""

    page: PageText
    table: Table
    groups: list[Group]
    waiting: list[PageText]

    def takes(self, record: PageRecord, table: Table) -> bool:
        """True where `table`, at the beginning of `record`, goes on with this one."""
        return (
            record.number == self.groups[-1].page + 1
            and table.columns == self.table.columns
            and len(self.groups) < MOST_JOINED
        )

    def add(self, record: PageRecord, table: Table) -> None:
        """Take over the rows of `table`, less the heading repeated in it."""
        repeated = 0
        for own, other in zip(self.table.rows, table.rows, strict=False):
            if own.cells != other.cells or not own.heading:
                break
            repeated += 1
        self.groups.append(Group(record.number, table.rows[repeated:], table.rows[:repeated]))

    def pages(self) -> list[PageText]:
        """The page on which the table begins, then those it alone went on over."""
        first = self.page
        if len(self.groups) > 1:
            before, after = (
                first.before[: self.table.start],
                first.before[self.table.end :],
            )
            first = replace(first, before=before, groups=tuple(self.groups), after=after)
        return [first, *self.waiting]


def page_texts(records: Iterable[PageRecord], join: bool) -> Iterator[PageText]:
    """Every page of `records` once and in order, with tables over page breaks joined if `join`."""
    if not join:
        yield from (PageText(record, record.text) for record in records)
        return
    chain: _Chain | None = None
    for record in records:
        page = PageText(record, record.text)
        first = table_at_start(page.before)
        if chain is not None and first is not None and chain.takes(record, first):
            chain.add(record, first)
            rest = page.before[: first.start] + page.before[first.end :]
            went_on = first == table_at_end(page.before)
            page = PageText(record, rest, continues=chain.page.record.number)
            if went_on:
                chain.waiting.append(page)
                continue
        if chain is not None:
            yield from chain.pages()
        last = table_at_end(page.before)
        chain = None
        if last is None:
            yield page
        else:
            chain = _Chain(page, last, [Group(record.number, last.rows)], [])
    if chain is not None:
        yield from chain.pages()


def table_at_start(text: str) -> Table | None:
    """The table that a page's text begins with, but for headers; None without one."""
    tags = list(_WHOLE.finditer(text))
    if len(tags) < 2 or not _is_margin(text[: tags[0].start()]):
        return None
    return _table(text, tags[0], tags[1])


def table_at_end(text: str) -> Table | None:
    """The table that a page's text ends with, but for footers; None without one."""
    tags = list(_WHOLE.finditer(text))
    if len(tags) < 2 or not _is_margin(text[tags[-1].end() :]):
        return None
    return _table(text, tags[-2], tags[-1])


def _is_margin(text: str) -> bool:
    """True where `text` holds nothing but headers, footers and tags of what is outside it."""
    regions = grounding.parse(text)
    if text[: regions[0].start if regions else len(text)].strip():
        return False
    return all(
        region.label in MARGIN_LABELS or not (region.text or region.is_figure) for region in regions
    )


def _table(text: str, begin: re.Match[str], end: re.Match[str]) -> Table | None:
    if begin[1] or not end[1]:
        return None
    rows = parse_rows(text[begin.end() : end.start()])
    return Table(begin.start(), end.end(), rows) if rows else None


def parse_rows(inner: str) -> tuple[Row, ...] | None:
    """The rows between `<table>` and `</table>`; None where they are not of the strict shape."""
    rows: list[Row] = []
    cells: list[str] = []
    columns, headed = 0, False
    row_start = cell_start = -1  # -1: outside
    at = 0
    for tag in _PART.finditer(inner):
        closing, name = bool(tag[1]), tag[2].lower()
        if cell_start < 0 and inner[at : tag.start()].strip():
            return None  # text between cells
        if name in ("td", "th") and row_start >= 0 and closing == (cell_start >= 0):
            if closing:
                cells.append(_plain(inner[cell_start : tag.start()]))
                cell_start = -1
            else:
                span = _SPAN.search(tag[0])
                columns += max(int(span[1]), 1) if span else 1
                headed |= name == "th"
                cell_start = tag.end()
        elif name == "tr" and cell_start < 0 and closing == (row_start >= 0):
            if closing:
                heading = headed or _reads_as_heading(cells)
                rows.append(Row(inner[row_start : tag.end()], tuple(cells), columns, heading))
                row_start = -1
            else:
                cells, columns, headed, row_start = [], 0, False, tag.start()
        elif name not in ("thead", "tbody", "tfoot") or row_start >= 0:
            return None
        at = tag.end()
    return None if row_start >= 0 or inner[at:].strip() else tuple(rows)


def _plain(cell: str) -> str:
    return " ".join(_TAG.sub(" ", cell).split())


def _reads_as_heading(cells: list[str]) -> bool:
    """True where every cell is words, a year or blank, and one has words: not a row of data."""
    words = [any(sign.isalpha() for sign in cell) for cell in cells]
    return any(words) and all(
        word or not cell or _YEAR.fullmatch(cell) for word, cell in zip(words, cells, strict=True)
    )
