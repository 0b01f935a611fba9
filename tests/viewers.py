"""What a person sees of an output: its characters in order, white space left out.

Formulas count by their LaTeX source, between the delimiters that `txt` has. Nothing here knows the
product's parser: Markdown is read by markdown-it, HTML by the standard library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape, unescape
from html.parser import HTMLParser
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin


def without_space(text: str) -> str:
    """`text` without white space."""
    return "".join(text.split())


def formula(source: str, display: bool) -> str:
    """A formula as the outputs are compared."""
    return f"\\[{source}\\]" if display else f"\\({source}\\)"


def seen_in_markdown(text: str, delimiters: str = "dollars") -> str:
    """The characters that a Markdown viewer shows, with the numbers that it gives to lists."""
    viewer = _Viewer()
    viewer.feed(_markdown(delimiters).render(text))
    viewer.close()
    return without_space("".join(viewer.seen))


def seen_in_html(text: str) -> str:
    """The characters that a browser shows of the body."""
    viewer = _Viewer()
    viewer.feed(text)
    viewer.close()
    return without_space("".join(viewer.seen))


def seen_in_nodes(nodes: Sequence[Any]) -> str:
    """The characters of a page's nodes."""
    return without_space("".join(map(_of_node, nodes)))


def _of_node(node: Any) -> str:
    if isinstance(node, str):
        return node
    name, attributes, children = node
    if name == "math":
        return formula(attributes["alttext"], attributes.get("display") == "block")
    return "".join(map(_of_node, children))


class _Viewer(HTMLParser):
    """Collects what is shown."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.seen: list[str] = []
        self._lists: list[int] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "math":
            self.seen.append(formula(values["alttext"], values.get("display") == "block"))
        if self._hidden or tag == "math" or values.get("class") == "note":
            self._hidden += tag != "br"
        if tag in ("ol", "ul"):
            self._lists.append(int(values.get("start", 1)))
        if tag == "li" and "data-marker" in values:
            marker = values["data-marker"]
            number = f"{self._lists[-1]}" if marker in (".", ")") else ""
            self.seen.append(number + marker)
            self._lists[-1] += 1

    def handle_endtag(self, tag: str) -> None:
        if self._hidden:
            self._hidden -= 1
        if tag in ("ol", "ul"):
            self._lists.pop()

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.seen.append(data)


def _markdown(delimiters: str) -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": True})
    parser.enable(["table", "strikethrough"])
    if delimiters == "dollars":
        parser.use(dollarmath_plugin, double_inline=True)
        for name in ("math_inline", "math_inline_double", "math_block"):
            parser.add_render_rule(name, _shown_formula)
        parser.add_render_rule("html_block", _shown_html)
    else:
        parser.inline.ruler.before("escape", "formula", _formula_in_brackets)
        parser.add_render_rule("formula", _shown_formula)
    parser.add_render_rule("list_item_open", _item)
    return parser


def _shown_formula(_self: Any, tokens: Sequence[Token], at: int, *_: Any) -> str:
    token = tokens[at]
    display = token.type in ("math_inline_double", "math_block") or token.markup == "\\["
    return _math(token.content.strip(), display)


def _math(source: str, display: bool) -> str:
    kind = ' display="block"' if display else ""
    return f'<math{kind} alttext="{escape(source)}"></math>'


def _shown_html(_self: Any, tokens: Sequence[Token], at: int, *_: Any) -> str:
    """HTML shows the formulas in it by their source, between its dollar signs."""
    return re.sub(
        r"(\$\$?)([^$]+)\1",
        lambda found: _math(unescape(found[2]), found[1] == "$$"),
        tokens[at].content,
    )


def _formula_in_brackets(state: StateInline, silent: bool) -> bool:
    found = re.compile(r"\\(?:\((.+?)\\\)|\[(.+?)\\\])", re.DOTALL).match(state.src, state.pos)
    if found is None:
        return False
    if not silent:
        token = state.push("formula", "", 0)
        token.content, token.markup = found[1] or found[2], found[0][:2]
    state.pos = found.end()
    return True


def _item(_self: Any, tokens: Sequence[Token], at: int, *_: Any) -> str:
    return f'<li data-marker="{tokens[at].markup}">'
