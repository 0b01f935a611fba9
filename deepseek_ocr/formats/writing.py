"""What the writers of all formats are given, and what they say of the pages of PDFs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from deepseek_ocr.settings import ExistingText, FormulaDelimiters

Render = Callable[[int], Image.Image]
"""Gives the upright picture of a page (from 1) as it was read."""


@dataclass(frozen=True)
class WriteOptions:
    """How documents are written.

    - `join_tables`: whether tables that go on over a page break are joined
    - `existing_text`: for searchable PDFs; see `searchable_pdf.write_searchable_pdf`
    - `formulas`: for Markdown: what stands around them
    """

    join_tables: bool = True
    existing_text: ExistingText = "skip"
    formulas: FormulaDelimiters = "dollars"


@dataclass(frozen=True)
class PdfPages:
    """What became of those pages of a PDF that are not just the original's with something added.

    Their numbers count from 1 in the source. `rebuilt` were made from pictures, as the library
    that writes PDFs cannot use the original, for the reasons `reasons`. The others had text of
    their own: `skipped` keep it alone, of `replaced` it was taken out, and of those `redrawn` are
    pictures now.
    """

    skipped: tuple[int, ...] = ()
    replaced: tuple[int, ...] = ()
    redrawn: tuple[int, ...] = ()
    rebuilt: tuple[int, ...] = ()
    reasons: tuple[str, ...] = ()


def _no_picture(number: int) -> Image.Image:
    raise LookupError(f"page {number} has no picture here; give a `render`")


@dataclass(frozen=True)
class WriteContext:
    """What a writer needs beside the document.

    - `folder`: where the outputs of the document are, with the figures in it
    - `render`: makes pictures of pages, for PDFs
    - `password`: opens an encrypted PDF
    - `pdfs`: what became of the pages of the PDFs written so far, by format
    """

    folder: Path
    options: WriteOptions = WriteOptions()
    render: Render = _no_picture
    password: str | None = None
    pdfs: Mapping[str, PdfPages] = field(default_factory=dict)
