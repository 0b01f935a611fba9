"""Blocks as Markdown that shows, in every viewer, the characters that were read.

What could be taken for Markdown and is none is escaped, and little else, since many read Markdown
as it is. Viewers agree on CommonMark and GitHub's tables; how they mark formulas is for the reader
to choose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from deepseek_ocr.markup import blocks
from deepseek_ocr.markup.html_tables import html_row
from deepseek_ocr.markup.plain_writer import plain_line
from deepseek_ocr.settings import FormulaDelimiters

NameFigure = Callable[[int], str | None]
"""The file of a figure (from 0) for a link; None if it has none."""

_ALWAYS = re.compile(
    r"`|\\(?=[!-/:-@\[-`{-~]|\Z)|<(?=[A-Za-z/!?])|&(?=#?[A-Za-z0-9]+;)|\](?=[(\[:])"
)
_RUN = re.compile(r"\*+|_+|~+|\$+")
_START = re.compile(
    r"#(?=#{0,5}(?:[ \t]|\Z))|>|[-+*](?=[ \t]|\Z)|~(?=~~)|[-=](?=[-= \t]*\Z)|[*_](?=[*_ \t]*\Z)"
    r"|[|:-](?=[|: \t-]*\Z)|(?<=[0-9])[.)](?=[ \t]|\Z)"
)
_NUMBER = re.compile(r"[0-9]{1,9}(?=[.)](?:[ \t]|\Z))")
_TASK_BOX = re.compile(r"\[(?=[ xX]\])")
_TAG_IN_FORMULA = re.compile(r"<(?=[A-Za-z/!?])")


def markdown_blocks(
    found: Iterable[blocks.Block], name_figure: NameFigure, formulas: FormulaDelimiters = "dollars"
) -> Iterator[str]:
    """Each of the blocks `found` as Markdown; blank lines are to stand between them."""
    before: blocks.Block | None = None
    for block in found:
        writer = _Writer(block, name_figure, formulas == "dollars")
        if made := writer.block(block):
            yield f"<!-- -->\n\n{made}" if _would_join(before, block) else made
            before = block


def to_markdown(
    found: Iterable[blocks.Block], name_figure: NameFigure, formulas: FormulaDelimiters = "dollars"
) -> str:
    """The blocks `found` as one text of Markdown."""
    return "\n\n".join(markdown_blocks(found, name_figure, formulas))


def markdown_row(row: blocks.Row, formulas: FormulaDelimiters = "dollars") -> str:
    """A row of a table as HTML in one line, as it stands in Markdown."""
    writer = _Writer(blocks.Table((row,)), lambda _: None, formulas == "dollars")
    return html_row(row, writer.html_line)


def _would_join(before: blocks.Block | None, block: blocks.Block) -> bool:
    """True if viewers would make one list of the two, and count on."""
    if not isinstance(before, blocks.ItemList) or not isinstance(block, blocks.ItemList):
        return False
    return before.items[0].marker[-1] == block.items[0].marker[-1]


class _Writer:
    """Writes one block: knows which signs would pair up in it if they were left alone."""

    def __init__(self, block: blocks.Block, name_figure: NameFigure, dollars: bool) -> None:
        self._name_figure = name_figure
        self._dollars = dollars
        parts = [part for line in _lines_of(block) for part in _flat(line)]
        text = "\n".join(part.text for part in parts if isinstance(part, blocks.Text))
        self._risky = {sign for sign in "_~$" if text.count(sign) > 1} | {"*"}
        if dollars and any(isinstance(part, blocks.Formula) for part in parts):
            self._risky.add("$")

    def block(self, block: blocks.Block) -> str:
        """The block, without blank lines around it."""
        if isinstance(block, blocks.Title):
            return f"{'#' * block.level} {self._title(block.line)}"
        if isinstance(block, blocks.Paragraph):
            body = self._paragraph(block.lines)
            return f"<center>\n\n{body}\n\n</center>" if block.centred and body else body
        if isinstance(block, blocks.ItemList):
            return self._list(block)
        if isinstance(block, blocks.Table):
            return self._table(block)
        if isinstance(block, blocks.Location):
            boxes = ", ".join(str(list(box)) for box in block.boxes)
            return f"{self._started(block.line)}: [{boxes}]"
        name = self._name_figure(block.number)
        return "" if name is None else f"![]({name})"

    def _list(self, block: blocks.ItemList) -> str:
        if any(_is_shown_otherwise(item.marker) for item in block.items):
            lines = [(blocks.Text(f"{item.marker} "), *item.line) for item in block.items]
            return self._paragraph(lines)
        return "\n".join(f"{item.marker} {self._item(item.line)}" for item in block.items)

    def _item(self, line: blocks.Line) -> str:
        """A line of a list; a pair of brackets in front must not become a box to tick."""
        text = self._started(line)
        return f"&#91;{text[1:]}" if _TASK_BOX.match(text) else text

    def _paragraph(self, lines: Sequence[blocks.Line]) -> str:
        """Lines, each ended by the two spaces that viewers break at."""
        written: list[list[str]] = [[]]
        for line in lines:
            for piece in self._without_display(line):
                if isinstance(piece, str):
                    written += [[piece], []]
                elif text := self._started(piece):
                    written[-1].append(text)
        return "\n\n".join("  \n".join(block) for block in written if block)

    def _without_display(self, line: blocks.Line) -> Iterator[blocks.Line | str]:
        """The pieces of a line, and between them its display formulas, as blocks of their own."""
        at = 0
        for number, part in enumerate(line):
            if isinstance(part, blocks.Formula) and part.display and self._is_set(part):
                yield line[at:number]
                yield f"$$\n{self._source(part)}\n$$"
                at = number + 1
        yield line[at:]

    def _title(self, line: blocks.Line) -> str:
        text = self._line(line)
        return f"{text[:-1]}\\#" if text.endswith("#") else text

    def _started(self, line: blocks.Line) -> str:
        """The line where a line begins: nothing in front makes it something else."""
        text = self._line(line)
        number = _NUMBER.match(text)
        at = number.end() if number else 0
        return f"{text[:at]}\\{text[at:]}" if number or _START.match(text) else text

    def _line(self, line: blocks.Line) -> str:
        return self._content(line).strip()

    def _content(self, line: blocks.Line) -> str:
        written = ""
        for at, part in enumerate(line):
            made = self._inline(part, _stands_free(line, at))
            beside = isinstance(part, blocks.Formula) or isinstance(line[at - 1], blocks.Formula)
            if written and beside:
                joins = written[-1] + made[:1]
                written += " " if joins == "$$" or any(map(str.isalnum, joins)) else ""
            written += made
        return written

    def _inline(self, part: blocks.Inline, stands_free: bool) -> str:
        if isinstance(part, blocks.Text):
            return self._escaped(part.text)
        if isinstance(part, blocks.Formula):
            return self._formula(part)
        content = self._content(part.content)
        if not content.strip():
            return content
        if part.style == "b" and stands_free and content == content.strip():
            return f"**{content}**"
        return f"<{part.style}>{content}</{part.style}>"

    def _is_set(self, formula: blocks.Formula) -> bool:
        """True if the formula can stand between dollar signs, and is to."""
        return self._dollars and "$" not in formula.source

    def _source(self, formula: blocks.Formula) -> str:
        """The source of a formula, in which nothing looks like a tag."""
        return _TAG_IN_FORMULA.sub("< ", formula.source)

    def _formula(self, formula: blocks.Formula) -> str:
        """A formula within a line."""
        if self._is_set(formula):
            return f"${' '.join(self._source(formula).split())}$"
        plain = plain_line((formula,))
        return self._escaped(plain) if self._dollars else plain

    def _escaped(self, text: str) -> str:
        text = _ALWAYS.sub(lambda found: f"\\{found[0]}", text)
        return _RUN.sub(self._escaped_run, text)

    def _escaped_run(self, run: re.Match[str]) -> str:
        sign = run[0][0]
        before = run.string[run.start() - 1 : run.start()]
        after = run.string[run.end() : run.end() + 1]
        if sign not in self._risky:
            return run[0]
        if sign != "$" and before.isspace() and after.isspace():
            return run[0]
        if sign == "_" and before.isalnum() and after.isalnum():
            return run[0]
        return "".join(f"\\{one}" for one in run[0])

    def _table(self, table: blocks.Table) -> str:
        """With bars, unless a row is wider than the line of dashes: viewers drop further cells."""
        dashes = table.alignment
        if dashes is None or any(len(row) > len(dashes) for row in table.rows):
            return f"<table>{''.join(html_row(row, self.html_line) for row in table.rows)}</table>"
        rows = ["| " + " | ".join(map(self._bar_cell, row)) + " |" for row in table.rows]
        rows.insert(1, "|" + "|".join(dashes) + "|")
        return "\n".join(rows)

    def _bar_cell(self, cell: blocks.Cell) -> str:
        return "<br>".join(map(self._line, cell.lines)).replace("|", "\\|")

    def html_line(self, line: blocks.Line) -> str:
        """A line within HTML."""
        return "".join(map(self._html_inline, line))

    def _html_inline(self, part: blocks.Inline) -> str:
        if isinstance(part, blocks.Styled):
            return f"<{part.style}>{self.html_line(part.content)}</{part.style}>"
        if isinstance(part, blocks.Formula) and self._dollars and "$" not in part.source:
            sign = "$$" if part.display else "$"
            return f"{sign}{_in_html(' '.join(part.source.split()))}{sign}"
        return _in_html(plain_line((part,))).replace("$", "&#36;")


def _in_html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _lines_of(block: blocks.Block) -> Iterator[blocks.Line]:
    if isinstance(block, (blocks.Title, blocks.Location)):
        yield block.line
    elif isinstance(block, blocks.Paragraph):
        yield from block.lines
    elif isinstance(block, blocks.ItemList):
        yield from (item.line for item in block.items)
    elif isinstance(block, blocks.Table):
        yield from (line for row in block.rows for cell in row for line in cell.lines)


def _flat(line: blocks.Line) -> Iterator[blocks.Text | blocks.Formula]:
    """What is in a line, whatever its style."""
    for part in line:
        if isinstance(part, blocks.Styled):
            yield from _flat(part.content)
        else:
            yield part


def _stands_free(line: blocks.Line, at: int) -> bool:
    """True if there is a space or nothing on both sides of a part of `line`."""
    before = plain_line(line[at - 1 : at])[-1:] if at else ""
    after = plain_line(line[at + 1 : at + 2])[:1]
    return not before.strip() and not after.strip()


def _is_shown_otherwise(marker: str) -> bool:
    """True for a marker that viewers replace by another: `01.`, or a bullet of no Markdown."""
    if marker in ("-", "*"):
        return False
    number = marker[:-1]
    return not number.isdecimal() or (number[0] == "0" and number != "0")
