"""Blocks as HTML that can be trusted.

Two walls stand between a page's text and a browser: everything that was read is escaped here, and
nh3 then keeps only a short list of elements and attributes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape

import nh3

from deepseek_ocr.formats.mathml import to_mathml
from deepseek_ocr.markup import plain_line
from deepseek_ocr.markup.blocks import (
    Block,
    Cell,
    Formula,
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

_MATHML = {
    "math", "mi", "mo", "mn", "mtext", "mspace", "mrow", "mfrac", "msqrt", "mroot", "mstyle",
    "mpadded", "mphantom", "menclose", "msub", "msup", "msubsup", "munder", "mover", "munderover",
    "mmultiscripts", "mprescripts", "none", "mtable", "mtr", "mtd",
}  # fmt: skip
_MATHML_ATTRIBUTES = {
    "accent", "accentunder", "alttext", "columnspan", "depth", "display", "displaystyle", "fence",
    "form", "height", "largeop", "linethickness", "lspace", "mathvariant", "maxsize", "minsize",
    "movablelimits", "notation", "rspace", "scriptlevel", "separator", "stretchy", "style",
    "symmetric", "voffset", "width",
}  # fmt: skip
_STYLES = {
    "text-align", "justify-items", "padding-left", "padding-right", "padding-top",
    "padding-bottom", "margin-left", "width", "border-top", "border-bottom", "border-left",
    "border-right",
}  # fmt: skip
"""What the MathML of aligned formulas, matrices and arrays says in `style`."""

_ELEMENTS = _MATHML | {
    "h1", "h2", "h3", "h4", "h5", "h6", "p", "br", "ul", "li", "table", "tbody", "tr", "td", "th",
    "b", "i", "u", "s", "sup", "sub", "code", "span", "div",
}  # fmt: skip
_ATTRIBUTES = {
    **dict.fromkeys(_MATHML, _MATHML_ATTRIBUTES),
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan"},
    "p": {"class"},
    "ul": {"class"},
    "code": {"class"},
    "span": {"class"},
    "div": {"class"},
    "tbody": {"data-page"},
}

_FIGURE = re.compile(r'<span class="figure ([0-9]+)"></span>')


def blocks_html(blocks: Iterable[Block]) -> str:
    """`blocks` as safe HTML; a figure is `<span class="figure n"></span>`, see `with_figures`.

    Formulas are MathML, or their source in `<code class="formula">` if they cannot be converted.
    Items of a list (`ul.list`) begin with the marker that was read, as text.
    """
    return clean("".join(map(_block, blocks)))


def table_html(groups: Sequence[tuple[int, Sequence[Row]]]) -> str:
    """A table as safe HTML from the rows of each page: its number, and its rows."""
    return clean(_table(groups))


def clean(html: str) -> str:
    """`html` with nothing in it but the listed elements; no link, address or script."""
    return nh3.clean(
        html,
        tags=_ELEMENTS,
        attributes=_ATTRIBUTES,
        filter_style_properties=_STYLES,
        clean_content_tags=set(),
        url_schemes=set(),
        link_rel=None,
    )


def with_figures(html: str, figure: Callable[[int], str]) -> str:
    """`html` of `blocks_html` with `figure(n)` in place of each figure."""
    return _FIGURE.sub(lambda match: figure(int(match[1])), html)


def _block(block: Block) -> str:
    if isinstance(block, Title):
        return f"<h{block.level}>{_line(block.line)}</h{block.level}>\n"
    if isinstance(block, Paragraph):
        kind = ' class="centred"' if block.centred else ""
        return f"<p{kind}>{_lines(block.lines)}</p>\n"
    if isinstance(block, ItemList):
        items = (f"<li>{escape(item.marker)} {_line(item.line)}</li>" for item in block.items)
        return f'<ul class="list">{"".join(items)}</ul>\n'
    if isinstance(block, Table):
        return f"{_table([(None, block.rows)])}\n"
    if isinstance(block, Location):
        return f"<p>{_line(block.line)}</p>\n"
    return f'<p><span class="figure {block.number}"></span></p>\n'


def _table(groups: Iterable[tuple[int | None, Sequence[Row]]]) -> str:
    """A table in a `<div class="wide">`, so that a wide one scrolls by itself."""
    bodies = []
    for page, rows in groups:
        name = "" if page is None else f' data-page="{page}"'
        bodies.append(f"<tbody{name}>{''.join(map(_row, rows))}</tbody>")
    return f'<div class="wide"><table>{"".join(bodies)}</table></div>'


def _row(row: Row) -> str:
    return f"<tr>{''.join(map(_cell, row))}</tr>"


def _cell(cell: Cell) -> str:
    name = "th" if cell.heading else "td"
    spans = f' colspan="{cell.columns}"' if cell.columns > 1 else ""
    spans += f' rowspan="{cell.rows}"' if cell.rows > 1 else ""
    return f"<{name}{spans}>{_lines(cell.lines)}</{name}>"


def _lines(lines: Iterable[Line]) -> str:
    return "<br>".join(map(_line, lines))


def _line(line: Line) -> str:
    return "".join(map(_inline, line))


def _inline(part: Inline) -> str:
    if isinstance(part, Text):
        return escape(part.text, quote=False)
    if isinstance(part, Styled):
        return f"<{part.style}>{_line(part.content)}</{part.style}>"
    return to_mathml(part.source, part.display) or _source(part)


def _source(formula: Formula) -> str:
    return f'<code class="formula">{escape(plain_line((formula,)), quote=False)}</code>'
