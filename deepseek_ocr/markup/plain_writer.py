"""Blocks → lines of plain text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from deepseek_ocr.markup import blocks

_WIDEST = 200


def plain_lines(found: Iterable[blocks.Block]) -> Iterator[str]:
    """The text of blocks, line by line; the cells of a table's row are parted by tabs."""
    for block in found:
        if isinstance(block, (blocks.Title, blocks.Location)):
            yield plain_line(block.line)
        elif isinstance(block, blocks.Paragraph):
            yield from map(plain_line, block.lines)
        elif isinstance(block, blocks.ItemList):
            yield from (f"{item.marker} {plain_line(item.line)}" for item in block.items)
        elif isinstance(block, blocks.Table):
            yield from plain_rows(block.rows)


def plain_rows(rows: Sequence[blocks.Row]) -> Iterator[str]:
    """The text of each row of a table, its cells parted by tabs.

    A cell that spans several columns or rows is blank in all but the first of them, so that what
    stands below each other on the page has as many tabs in front; not in tables wider than
    `_WIDEST` columns.
    """
    wide = max((sum(cell.columns for cell in row) for row in rows), default=0) > _WIDEST
    below: dict[int, int] = {}  # column → rows that a cell above still covers
    for row in rows:
        texts: list[str] = []
        for cell in row:
            if not wide:
                texts += _covered(below, len(texts))
                below.update(dict.fromkeys(range(len(texts), len(texts) + cell.columns), cell.rows))
            texts.append(cell_text(cell))
            texts += [] if wide else [""] * (cell.columns - 1)
        yield "\t".join([*texts, *_covered(below, len(texts))])
        below = {column: left - 1 for column, left in below.items() if left > 1}


def _covered(below: Mapping[int, int], column: int) -> list[str]:
    """A blank for each column from `column` on that a cell above covers."""
    end = column
    while end in below:
        end += 1
    return [""] * (end - column)


def cell_text(cell: blocks.Cell) -> str:
    """The text of a cell in one line."""
    return " ".join(" ".join(map(plain_line, cell.lines)).split())


def plain_line(line: blocks.Line) -> str:
    """The characters of `line`, formulas as `\\(…\\)` and `\\[…\\]`."""
    return "".join(map(_plain, line))


def _plain(part: blocks.Inline) -> str:
    if isinstance(part, blocks.Text):
        return part.text
    if isinstance(part, blocks.Styled):
        return plain_line(part.content)
    source = " ".join(part.source.split("\n"))
    return f"\\[{source}\\]" if part.display else f"\\({source}\\)"
