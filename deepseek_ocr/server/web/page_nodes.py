"""A page's text as nodes: nested lists from which a browser builds elements without parsing HTML.

A node is a string, or [name, attributes, children]. The HTML they are made of is `safe_html`'s.
"""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from deepseek_ocr.formats import safe_html
from deepseek_ocr.formats.records import PageRecord

_EMPTY = frozenset({"br", "hr"})


def page_blocks(record: PageRecord) -> list[dict[str, Any]]:
    """The text of a page that was read, formatted: `{"region": order, "nodes": [...]}` for each
    region, and for the text in front of them (order 0). Figures are spans of the class `figure n`.
    """
    blocks, order = [], 0
    for part in record.parts:
        order += part.region is not None
        if part.blocks:
            nodes = nodes_of(safe_html.blocks_html(part.blocks))
            blocks.append({"region": 0 if part.region is None else order, "nodes": nodes})
    return blocks


def nodes_of(html: str) -> list[Any]:
    """Safe `html` as nodes."""
    builder = _Builder()
    builder.feed(html)
    builder.close()
    return builder.top


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.top: list[Any] = []
        self._open: list[tuple[str, list[Any]]] = [("", self.top)]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        children: list[Any] = []
        self._open[-1][1].append([tag, {name: value or "" for name, value in attrs}, children])
        if tag not in _EMPTY:
            self._open.append((tag, children))

    def handle_endtag(self, tag: str) -> None:
        for at in range(len(self._open) - 1, 0, -1):
            if self._open[at][0] == tag:
                del self._open[at:]
                return

    def handle_data(self, data: str) -> None:
        self._open[-1][1].append(data)
