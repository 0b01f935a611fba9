"""The model's Markdown as HTML that can be trusted, and as plain lines.

Two libraries stand between a page's text and a browser: markdown-it makes HTML, with every tag but
those of tables and simple type shown as text and nothing linked; nh3 then keeps only a short list
of elements. What the page says stays visible: nothing is dropped for looking like a tag.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from html.parser import HTMLParser
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

_FROM_MODEL = (
    "table|thead|tbody|tfoot|tr|td|th|caption|br|hr|p|b|i|u|s|em|strong|sup|sub|ul|ol|li|center"
)
"""Elements that the model may write itself."""

_TAG = re.compile(rf"</?(?:{_FROM_MODEL})(?:\s[^<>]*)?/?>", re.IGNORECASE)

_ELEMENTS = {
    "table", "thead", "tbody", "tfoot", "tr", "td", "th", "caption", "br", "hr", "p", "b", "i",
    "u", "s", "em", "strong", "sup", "sub", "ul", "ol", "li", "h1", "h2", "h3", "h4", "h5", "h6",
    "pre", "code", "blockquote", "span", "div",
}  # fmt: skip
_ATTRIBUTES = {
    "td": {"colspan", "rowspan"},
    "th": {"colspan", "rowspan"},
    "ol": {"start"},
    "span": {"class"},
    "div": {"class"},
    "tbody": {"data-page"},
}

_INLINE = r"\\\((?P<inline>(?:(?!\\\)).){1,800})\\\)"
_DISPLAY = r"(?:\\\[(?P<display>(?:(?!\\\]).){1,2000})\\\]|\$\$(?P<dollars>[^$]{1,2000})\$\$)"
_FORMULA = re.compile(f"{_INLINE}|{_DISPLAY}", re.DOTALL)
_DISPLAY_BLOCK = re.compile(rf"{_DISPLAY}[^\S\n]*(?:\n|$)", re.DOTALL)

_FIGURE = re.compile(r'<span class="figure ([0-9]+)"></span>')
_FIGURE_LINK = re.compile(r"images/[0-9]+_([0-9]+)\.jpg")

LARGEST = 2_000_000
"""Characters of one page beyond which it is shown as it is; the model writes 40,000 or so."""


def to_html(markdown: str) -> str:
    """`markdown` of one page as safe HTML.

    Formulas stay as `\\(…\\)` and `\\[…\\]` in elements of the classes `math inline` and
    `math display`; a figure linked as images/<page>_<n>.jpg is `<span class="figure n"></span>`.
    """
    if len(markdown) > LARGEST:
        return f"<pre>{escape(markdown, quote=False)}</pre>"
    return clean(_markdown().render(markdown))


def table_html(groups: Sequence[tuple[int, str]]) -> str:
    """A table as safe HTML from the rows of each page: its number, and its rows as written."""
    bodies = "".join(
        f'<tbody data-page="{page}">{_keep_known_tags(rows)}</tbody>' for page, rows in groups
    )
    return clean(f"<table>{bodies}</table>")


def clean(html: str) -> str:
    """`html` with nothing in it but the listed elements; no link, address, style or script.

    Tables stand in a `<div class="wide">` each, so that wide ones scroll by themselves.
    """
    kept = nh3.clean(
        html,
        tags=_ELEMENTS,
        attributes=_ATTRIBUTES,
        clean_content_tags=set(),
        url_schemes=set(),
        link_rel=None,
    )
    return kept.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )


def with_figures(html: str, figure: Callable[[int], str]) -> str:
    """`html` of `to_html` with `figure(n)` in place of each figure."""
    return _FIGURE.sub(lambda match: figure(int(match[1])), html)


def lines_of(html: str) -> list[str]:
    """The text of safe `html`: a line a block or row, cells parted by tabs, none blank."""
    reader = _Lines()
    reader.feed(html)
    reader.close()
    reader.end_line()
    return reader.lines


@cache
def _markdown() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": True, "breaks": True, "maxNesting": 100})
    parser.enable("table")
    # Links stay as they are written. Indented code and underlined headings happen by accident
    # in text that was read off a page.
    parser.disable(["link", "autolink", "reference", "code", "lheading"])
    parser.inline.ruler.before("escape", "formula", _formula_rule)
    parser.block.ruler.before(
        "fence", "formula", _formula_block_rule, {"alt": ["paragraph", "blockquote", "list"]}
    )
    rules: dict[str, Callable[[Token], str]] = {
        "html_inline": lambda token: _keep_known_tags(token.content),
        "html_block": lambda token: _keep_known_tags(token.content),
        "formula": lambda token: token.content,
        "image": _image,
    }
    for name, rule in rules.items():
        parser.add_render_rule(name, _renderer(rule))
    return parser


def _renderer(rule: Callable[[Token], str]) -> Callable[..., str]:
    def render(_self: Any, tokens: Sequence[Token], at: int, *_: Any) -> str:
        return rule(tokens[at])

    return render


def _formula_rule(state: StateInline, silent: bool) -> bool:
    match = _FORMULA.match(state.src, state.pos, state.posMax)
    if match is None:
        return False
    if not silent:
        state.push("formula", "", 0).content = _formula(match)
    state.pos = match.end()
    return True


def _formula_block_rule(state: StateBlock, line: int, last: int, silent: bool) -> bool:
    start = state.bMarks[line] + state.tShift[line]
    match = _DISPLAY_BLOCK.match(state.src, start)
    if match is None or match.end() > state.eMarks[last - 1] + 1:
        return False
    if not silent:
        state.push("formula", "", 0).content = _formula(match) + "\n"
        while line < last and state.bMarks[line] < match.end():
            line += 1
        state.line = line
    return True


def _formula(match: re.Match[str]) -> str:
    parts = match.groupdict()
    if parts.get("inline") is not None:
        return f'<span class="math inline">\\({escape(parts["inline"], quote=False)}\\)</span>'
    body = escape(parts["display"] or parts["dollars"], quote=False)
    return f'<span class="math display">\\[{body}\\]</span>'


def _keep_known_tags(html: str) -> str:
    """`html` with formulas marked and all but the known tags as text."""
    parts, at = [], 0
    for tag in _TAG.finditer(html):
        parts += [_text_of_html(html[at : tag.start()]), tag[0]]
        at = tag.end()
    return "".join([*parts, _text_of_html(html[at:])])


def _text_of_html(text: str) -> str:
    parts, at = [], 0
    for match in _FORMULA.finditer(text):
        parts += [text[at : match.start()].replace("<", "&lt;"), _formula(match)]
        at = match.end()
    return "".join([*parts, text[at:].replace("<", "&lt;")])


def _image(token: Token) -> str:
    source = str(token.attrs.get("src", ""))
    if found := _FIGURE_LINK.fullmatch(source):
        return f'<span class="figure {int(found[1])}"></span>'
    return escape(f"![{token.content}]({source})", quote=False)


class _Lines(HTMLParser):
    """Collects the text of safe HTML line by line."""

    _BREAKS = frozenset({"p", "tr", "li", "br", "hr", "table", "pre", "blockquote", "div",
                         "h1", "h2", "h3", "h4", "h5", "h6", "caption"})  # fmt: skip

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.lines: list[str] = []
        self._line: list[str] = []
        self._cells = 0
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in self._BREAKS and not (tag == "br" and self._cells):
            self.end_line()
        if tag in ("td", "th"):
            self._line += ["\t"] if self._cells else []
            self._cells += 1
        elif tag == "br":
            self._line.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._BREAKS and not (self._cells and tag == "p"):
            self.end_line()

    def handle_data(self, data: str) -> None:
        if self._cells:
            data = " ".join(data.split("\n"))
        first, *others = data.split("\n")
        self._line.append(first)
        for other in others:
            self.end_line()
            self._line.append(other)

    def end_line(self) -> None:
        """Put what was collected down as a line, cells and all."""
        cells = [" ".join(cell.split()) for cell in "".join(self._line).split("\t")]
        if not self._cells:
            cells = [" ".join(cells)]
        if any(cells):
            self.lines.append("\t".join(cells))
        self._line, self._cells = [], 0
