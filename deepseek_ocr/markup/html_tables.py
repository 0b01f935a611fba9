"""Tables in HTML: gathered leniently (whatever the model leaves open or out, nothing is lost), and
written again."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from deepseek_ocr.markup.blocks import Line, Row

_TAG = re.compile(
    r"<(/?)(table|thead|tbody|tfoot|tr|td|th|caption|colgroup|col|p|div|ul|ol|li|center|hr)"
    r"(\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_LINES = frozenset({"p", "div", "ul", "ol", "li", "center", "hr"})
"""Elements of which each begins a line of its cell."""

_SPAN = re.compile(r"\b(col|row)span\s?=\s?[\"']?\s?([0-9]{1,9})", re.IGNORECASE)
_LARGEST_SPAN = 1000
"""As in the HTML standard for columns."""


@dataclass
class RawCell:
    """A cell as it stands in the HTML; `text` may hold tags of style and entities."""

    text: str = ""
    columns: int = 1
    rows: int = 1
    heading: bool = False


@dataclass
class RawTable:
    """A table, and where it starts and ends in the text; see `blocks.Table` for `regular`."""

    start: int
    end: int = -1
    rows: list[list[RawCell]] = field(default_factory=list)
    regular: bool = True


def html_tables_in(text: str) -> Iterator[RawTable]:
    """The tables of `text`; one that is not closed goes on to its end."""
    table: _Builder | None = None
    at = 0
    for found in _TAG.finditer(text):
        closing, name = bool(found[1]), found[2].lower()
        begins = name == "table" and not closing
        if begins and (table is None or table.is_empty):
            table = _Builder(found.start())
        elif table is not None:
            table.add_text(text[at : found.start()])
            table.add_tag(name, closing, found[3] or "")
            if not table.depth:
                if table.has_cells or table.is_empty:  # or it is prose that names the tags
                    yield table.finish(found.end(), closed=True)
                table = None
        at = found.end()
    if table is not None and table.has_cells:
        table.add_text(text[at:])
        yield table.finish(len(text), closed=False)


def open_table_in(text: str) -> int | None:
    """Where a table starts that `text` does not close; None without one."""
    start: int | None = None
    depth = 0
    for found in _TAG.finditer(text):
        if found[2].lower() != "table":
            continue
        if found[1]:
            depth = max(depth - 1, 0)
        else:
            start = found.start() if depth == 0 else start
            depth += 1
    return start if depth else None


class _Builder:
    """Gathers the rows of one table. Nothing moves: text between cells is a cell of its own, a
    table in a cell is lines of that cell."""

    def __init__(self, start: int) -> None:
        self._table = RawTable(start)
        self.depth = 1
        self.has_cells = False
        self._row: list[RawCell] | None = None
        self._cell: RawCell | None = None

    @property
    def is_empty(self) -> bool:
        return not self._table.rows

    def finish(self, end: int, closed: bool) -> RawTable:
        """The table, which ends at `end`."""
        self._table.end = end
        self._table.regular &= closed
        return self._table

    def add_text(self, text: str) -> None:
        """Take in text between two tags."""
        if self._cell is not None:
            self._cell.text += text
        elif text.strip():
            alone = self._row is None
            self._begin_cell(text)
            self._cell = None
            self._row = None if alone else self._row
            self._table.regular = False

    def add_tag(self, name: str, closing: bool, attributes: str) -> None:
        """Take in one of the tags of `_TAG`."""
        nested = self.depth > 1
        if name == "table":
            self.depth += -1 if closing else 1
        if nested or self.depth > 1 or name in _LINES:
            self._table.regular &= name in _LINES
            self.add_text("\n")
        elif name in ("td", "th"):
            self._cell = None
            if not closing:
                self.has_cells = True
                self._begin_cell("", attributes, name == "th")
        else:
            self._row = self._cell = None
            if name == "caption" and not closing:
                self._begin_cell("")
                self._table.regular = False

    def _begin_cell(self, text: str, attributes: str = "", heading: bool = False) -> None:
        if self._row is None:
            self._row = []
            self._table.rows.append(self._row)
        spans = {found[1].lower(): int(found[2]) for found in _SPAN.finditer(attributes)}
        columns, rows = (min(max(spans.get(way, 1), 1), _LARGEST_SPAN) for way in ("col", "row"))
        self._cell = RawCell(text, columns, rows, heading)
        self._row.append(self._cell)


def html_row(row: Row, write: Callable[[Line], str]) -> str:
    """A row with its tags; `write` gives the lines of its cells as HTML."""
    written = []
    for cell in row:
        name = "th" if cell.heading else "td"
        spans = f' colspan="{cell.columns}"' if cell.columns > 1 else ""
        spans += f' rowspan="{cell.rows}"' if cell.rows > 1 else ""
        written.append(f"<{name}{spans}>{'<br>'.join(map(write, cell.lines))}</{name}>")
    return f"<tr>{''.join(written)}</tr>"
