"""What a page holds, as frozen values: blocks, their lines, and what is in a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from deepseek_ocr.grounding.parser import Box

# --- what is in a line ----------------------------------------------------------------------------

Style = Literal["b", "i", "u", "s", "sup", "sub"]


@dataclass(frozen=True)
class Text:
    """Characters as they were read."""

    text: str


@dataclass(frozen=True)
class Formula:
    """LaTeX as it was read, less its delimiters; `display` if they set it on lines of its own."""

    source: str
    display: bool


@dataclass(frozen=True)
class Styled:
    """Part of a line in bold (`b`) and the like."""

    style: Style
    content: tuple[Inline, ...]


Inline = Text | Formula | Styled
Line = tuple[Inline, ...]

# --- what is on a page ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Title:
    """A title; `level` 1 to 6."""

    level: int
    line: Line


@dataclass(frozen=True)
class Paragraph:
    """Lines of text as they were read."""

    lines: tuple[Line, ...]
    centred: bool = False


@dataclass(frozen=True)
class Item:
    """A line of a list, and what it begins with: `4.`, `7)`, `-`."""

    marker: str
    line: Line


@dataclass(frozen=True)
class ItemList:
    """Lines of a list, in the order and with the numbers that were read."""

    items: tuple[Item, ...]


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its lines, and how many columns and rows it spans (1 to 1000)."""

    lines: tuple[Line, ...]
    columns: int = 1
    rows: int = 1
    heading: bool = False


Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    - `alignment`: the line of dashes of a table in `| … |`, None for one in HTML
    - `regular`: False for HTML that is more than rows of cells: nested, left open, with loose text
    """

    rows: tuple[Row, ...]
    alignment: tuple[str, ...] | None = None
    regular: bool = True


@dataclass(frozen=True)
class Figure:
    """A picture on the page; `number` counts the page's figures from 0."""

    number: int


@dataclass(frozen=True)
class Location:
    """What was to be located, and where it was found: boxes in 0–999 of the page."""

    line: Line
    boxes: tuple[Box, ...]


Block = Title | Paragraph | ItemList | Table | Figure | Location
