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
from deepseek_ocr.markup import blocks, html_row, plain_line

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
    **{name: {"colspan", "rowspan"} for name in ("td", "th")},
    **{name: {"class"} for name in ("p", "ul", "code", "span", "div")},
    "tbody": {"data-page"},
}

_FIGURE = re.compile(r'<span class="figure ([0-9]+)"></span>')


def blocks_html(found: Iterable[blocks.Block]) -> str:
    """The blocks as safe HTML; a figure is `<span class="figure n"></span>`, see `with_figures`.

    Formulas are MathML, or their source in `<code class="formula">` if they cannot be converted.
    Items of a list (`ul.list`) begin with the marker that was read, as text.
    """
    return clean("".join(map(_block, found)))


def table_html(groups: Sequence[tuple[int, Sequence[blocks.Row]]]) -> str:
    """A table as safe HTML from the rows of each page: its number, and its rows."""
    return clean(_table(groups))


def clean(html: str) -> str:
    """`html` with nothing in it but the listed elements; no link, address or script."""
    return nh3.clean(
        html, tags=_ELEMENTS, attributes=_ATTRIBUTES, filter_style_properties=_STYLES,
        clean_content_tags=set(), url_schemes=set(), link_rel=None,
    )  # fmt: skip


def with_figures(html: str, figure: Callable[[int], str]) -> str:
    """`html` of `blocks_html` with `figure(n)` in place of each figure."""
    return _FIGURE.sub(lambda match: figure(int(match[1])), html)


def _block(block: blocks.Block) -> str:
    if isinstance(block, blocks.Title):
        return f"<h{block.level}>{_line(block.line)}</h{block.level}>\n"
    if isinstance(block, blocks.Paragraph):
        kind = ' class="centred"' if block.centred else ""
        return f"<p{kind}>{'<br>'.join(map(_line, block.lines))}</p>\n"
    if isinstance(block, blocks.ItemList):
        items = (f"<li>{escape(item.marker)} {_line(item.line)}</li>" for item in block.items)
        return f'<ul class="list">{"".join(items)}</ul>\n'
    if isinstance(block, blocks.Table):
        return f"{_table([(None, block.rows)])}\n"
    if isinstance(block, blocks.Location):
        return f"<p>{_line(block.line)}</p>\n"
    return f'<p><span class="figure {block.number}"></span></p>\n'


def _table(groups: Iterable[tuple[int | None, Sequence[blocks.Row]]]) -> str:
    """A table in a `<div class="wide">`, so that a wide one scrolls by itself."""
    bodies = []
    for page, rows in groups:
        name = "" if page is None else f' data-page="{page}"'
        bodies.append(f"<tbody{name}>{''.join(html_row(row, _line) for row in rows)}</tbody>")
    return f'<div class="wide"><table>{"".join(bodies)}</table></div>'


def _line(line: blocks.Line) -> str:
    return "".join(map(_inline, line))


def _inline(part: blocks.Inline) -> str:
    if isinstance(part, blocks.Text):
        return escape(part.text, quote=False)
    if isinstance(part, blocks.Styled):
        return f"<{part.style}>{_line(part.content)}</{part.style}>"
    return to_mathml(part.source, part.display) or _source(part)


def _source(formula: blocks.Formula) -> str:
    return f'<code class="formula">{escape(plain_line((formula,)), quote=False)}</code>'
