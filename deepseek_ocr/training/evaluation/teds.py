"""Tables in a page's text, as grids and as trees, and how alike two of them are (TEDS).

Model output is hostile: what is not closed ends with the text, sizes are bounded before anything
is built, spans are clamped, and a table inside a cell is the text of that cell.

TEDS (tree edit distance based similarity, Zhong et al., 2019, arXiv 1911.10683): 1 less the edit
distance of the two trees over the nodes of the larger, and never less than 0. Inserting or deleting
a node costs 1, changing a cell's spans 1, its text the normalised edit distance. Before, `th`
becomes `td`, and `thead`, `tbody` and `tfoot` are dropped, as they are a matter of taste.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from apted import APTED, Config
from lxml import etree, html
from rapidfuzz.distance import Levenshtein
from rapidfuzz.process import cdist
from scipy.optimize import linear_sum_assignment

from deepseek_ocr.training.evaluation.text_metrics import normalise

MOST_TABLES = 50
"""Of one page; further ones are not looked at."""

LONGEST_TABLE = 200_000
"""Characters of one table's HTML; what is beyond is cut off."""

MOST_NODES = 1_000
"""Of a tree: comparing two of them takes tens of seconds, and time grows with the cube."""

MOST_CELLS = 10_000
"""Of a grid, with spans spelt out."""

_MARK = re.compile(r"<(/?)table\b[^<>]*>", re.IGNORECASE)
_BREAK = re.compile(r"<br\b[^<>]{0,100}>", re.IGNORECASE)
_RULE = re.compile(r"\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?")
_LARGEST_SPAN = 100


@dataclass(frozen=True)
class GridCell:
    """Text of a cell, white space normalised, and how many columns and rows it spans."""

    text: str
    colspan: int = 1
    rowspan: int = 1


Rows = tuple[tuple[GridCell, ...], ...]
"""A table as it is written: its rows, each with the cells that begin in it."""


Grid = dict[tuple[int, int], GridCell]
"""A table as it is seen: which cell lies at (row, column); a spanning cell lies at several."""


def html_tables(text: str) -> list[Rows]:
    """The HTML tables in `text`, in order; one that cannot be parsed has no rows."""
    return [_parse(source) for source in _sources(text)]


def markdown_tables(text: str) -> list[Rows]:
    """The pipe tables in `text`: a row, a rule of dashes, further rows. Of one page `MOST_CELLS`
    cells at most, all tables together; what is beyond is left out."""
    tables: list[Rows] = []
    lines = text.splitlines()
    at, left = 1, MOST_CELLS
    while at < len(lines) and len(tables) < MOST_TABLES and left > 0:
        line = lines[at].strip()
        if "-" not in line or len(line) > 10_000 or not _RULE.fullmatch(line):
            at += 1
            continue
        start = at
        at += 1
        while at < len(lines) and "|" in lines[at]:
            at += 1
        head, rule = _pipe_row(lines[start - 1]), _pipe_row(lines[start])
        if "|" in lines[start - 1] and len(head) == len(rule):
            rows = _pipe_rows([lines[start - 1], *lines[start + 1 : at]], left)
            left -= sum(len(row) for row in rows)
            tables.append(rows)
    return tables


def grid(rows: Rows) -> Grid:
    """`rows` with their spans laid out, as a browser does; beyond `MOST_CELLS` it is cut off."""
    cells: Grid = {}
    for row, line in enumerate(rows):
        column = 0
        for cell in line:
            while (row, column) in cells:
                column += 1
            for down in range(min(cell.rowspan, len(rows) - row)):
                for right in range(cell.colspan):
                    if len(cells) >= MOST_CELLS:
                        return cells
                    cells.setdefault((row + down, column + right), cell)
            column += cell.colspan
    return cells


def node_count(rows: Rows) -> int:
    """Nodes of the tree: the table, its rows, their cells."""
    return 1 + len(rows) + sum(len(row) for row in rows)


def teds(truth: Rows, predicted: Rows) -> float:
    """Similarity of two tables, 0 to 1 (equal). A predicted one of more than `MOST_NODES` nodes
    scores 0: it is no reading of a table within bounds. Raises `ValueError` if the true one has."""
    if node_count(truth) > MOST_NODES:
        raise ValueError(f"A table has more than {MOST_NODES} rows and cells and is not compared.")
    if node_count(predicted) > MOST_NODES:
        return 0.0
    distance = APTED(_tree(truth), _tree(predicted), _Costs()).compute_edit_distance()
    # Trees of other shapes may be further apart than the larger has nodes.
    return max(0.0, 1.0 - float(distance) / max(node_count(truth), node_count(predicted)))


def table_scores(truth: Sequence[Rows], predicted: Sequence[Rows]) -> list[float | None]:
    """TEDS of each true table with the predicted one it is paired with; None if it is too large.
    Each table is in one pair at most; pairs are chosen so that their texts are as alike as can be.
    A table without a partner scores 0."""
    scores: list[float | None] = [0.0] * len(truth)
    partners: dict[int, int] = {}
    if truth and predicted:
        texts = [[_text_of(rows) for rows in side] for side in (truth, predicted)]
        alike = cdist(*texts, scorer=Levenshtein.normalized_similarity, dtype=np.float64)
        chosen = linear_sum_assignment(alike, maximize=True)
        partners = dict(zip(*(side.tolist() for side in chosen), strict=True))
    for at, rows in enumerate(truth):
        if node_count(rows) > MOST_NODES:
            scores[at] = None
        elif at in partners:
            scores[at] = teds(rows, predicted[partners[at]])
    return scores


def _text_of(rows: Rows) -> str:
    return " ".join(cell.text for row in rows for cell in row)


def _sources(text: str) -> list[str]:
    """The outermost `<table>…</table>` of `text`, the last one perhaps not closed."""
    found: list[str] = []
    depth = start = 0
    for mark in _MARK.finditer(text):
        if not mark[1]:
            start = mark.start() if depth == 0 else start
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                found.append(text[start : mark.end()])
        if len(found) >= MOST_TABLES:
            return found
    if depth:
        found.append(text[start:])
    return found


def _parse(source: str) -> Rows:
    try:
        root = html.fromstring(_BREAK.sub(" ", source[:LONGEST_TABLE]))
    except (etree.LxmlError, ValueError, AssertionError):  # whatever a parser trips over
        return ()
    table = root if root.tag == "table" else root.find(".//table")
    rows = [] if table is None else _own_rows(table)
    return tuple(tuple(_cell(cell) for cell in row) for row in rows)


def _own_rows(table: html.HtmlElement) -> Iterator[list[html.HtmlElement]]:
    """The cells of each row of `table` itself, not of tables in its cells. Cells that the model put
    between rows make up a row."""
    stray: list[html.HtmlElement] = []
    for element in table.xpath("(. | thead | tbody | tfoot)/*"):  # in the order of the text
        if element.tag in ("td", "th"):
            stray.append(element)
        elif element.tag == "tr":
            if stray:
                yield stray
            stray = []
            yield [cell for cell in element if cell.tag in ("td", "th")]
    if stray:
        yield stray


def _cell(cell: html.HtmlElement) -> GridCell:
    text = normalise("".join(cell.itertext()))
    return GridCell(text, _span(cell.get("colspan")), _span(cell.get("rowspan")))


def _span(value: str | None) -> int:
    digits = (value or "").strip()
    known = digits.isascii() and digits.isdigit() and len(digits) < 9
    return min(max(int(digits), 1), _LARGEST_SPAN) if known else 1


def _pipe_rows(lines: Sequence[str], most: int) -> Rows:
    """The rows in `lines`, until they hold `most` cells."""
    rows: list[tuple[GridCell, ...]] = []
    for line in lines:
        if most <= 0:
            break
        rows.append(_pipe_row(line, most))
        most -= len(rows[-1])
    return tuple(rows)


def _pipe_row(line: str, most: int = MOST_CELLS) -> tuple[GridCell, ...]:
    """The first `most` cells of a row; it has one at least."""
    inner = line.strip().removeprefix("|")
    inner = inner[:-1] if inner.endswith("|") and not inner.endswith("\\|") else inner
    parts = re.split(r"(?<!\\)\|", inner[:LONGEST_TABLE], maxsplit=most)
    return tuple(GridCell(normalise(part.replace("\\|", "|"))) for part in parts[:most])


@dataclass(frozen=True)
class _Node:
    """A node as `apted` wants it; `cell` is None for the table and its rows."""

    tag: str
    cell: GridCell | None
    children: tuple[_Node, ...] = ()


def _tree(rows: Rows) -> _Node:
    lines = (_Node("tr", None, tuple(_Node("td", cell) for cell in row)) for row in rows)
    return _Node("table", None, tuple(lines))


class _Costs(Config):  # type: ignore[misc, unused-ignore]
    """What changing one node into another costs; deleting and inserting cost 1."""

    valuecls = float

    def rename(self, first: _Node, second: _Node) -> float:
        a, b = first.cell, second.cell
        if a is None or b is None:
            return float(first.tag != second.tag)
        if (a.colspan, a.rowspan) != (b.colspan, b.rowspan):
            return 1.0
        return float(Levenshtein.normalized_distance(a.text, b.text))
