"""Blocks → lines of plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from deepseek_ocr.markup.blocks import (
    Block,
    Inline,
    ItemList,
    Line,
    Location,
    Paragraph,
    Row,
    Styled,
    Table,
    Text,
    Title,
)


def plain_lines(blocks: Iterable[Block]) -> Iterator[str]:
    """The text of `blocks`, line by line; the cells of a table's row are parted by tabs."""
    for block in blocks:
        if isinstance(block, (Title, Location)):
            yield plain_line(block.line)
        elif isinstance(block, Paragraph):
            yield from map(plain_line, block.lines)
        elif isinstance(block, ItemList):
            yield from (f"{item.marker} {plain_line(item.line)}" for item in block.items)
        elif isinstance(block, Table):
            yield from map(plain_row, block.rows)


def plain_row(row: Row) -> str:
    """The text of the cells of `row`, parted by tabs."""
    return "\t".join(" ".join(map(plain_line, cell.lines)) for cell in row)


def plain_line(line: Line) -> str:
    """The characters of `line`, formulas as `\\(…\\)` and `\\[…\\]`."""
    return "".join(map(_plain, line))


def _plain(part: Inline) -> str:
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Styled):
        return plain_line(part.content)
    source = " ".join(part.source.split("\n"))
    return f"\\[{source}\\]" if part.display else f"\\({source}\\)"
