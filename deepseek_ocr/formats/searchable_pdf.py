"""The original pages with an invisible text layer: what one sees is untouched, what was read can
be searched, selected and copied."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pikepdf
from pikepdf import Dictionary, Name

from deepseek_ocr.formats.glyphless import GlyphlessFont, compressed
from deepseek_ocr.formats.invisible_text import remove_invisible_text
from deepseek_ocr.formats.pdf_builder import (
    Decorator,
    Leaf,
    PictureWantedError,
    TextOutcome,
    build_pdf,
    inherited,
)
from deepseek_ocr.formats.records import DocumentRecord, PageRecord
from deepseek_ocr.formats.text_placement import PlacedLine, place
from deepseek_ocr.formats.writing import PdfPages, WriteContext
from deepseek_ocr.grounding.geometry import Rectangle, picture_to_user, to_displayed
from deepseek_ocr.grounding.parser import Region
from deepseek_ocr.markup import plain_lines
from deepseek_ocr.settings import ExistingText

MARGIN = 0.05
"""Of the page's sides that text without regions leaves free, since nothing says where it stands."""

_TOP = 0.01


def write_searchable_pdf(document: DocumentRecord, context: WriteContext, path: Path) -> PdfPages:
    """Write `document` as a searchable PDF to `path`; see `pdf_builder.build_pdf`.

    The option `existing_text` says what becomes of pages that by their record have text of their
    own:

    - `skip`: they stay as they are
    - `replace`: a layer of invisible text is taken out, and what was read laid in its place; a page
      whose text is visible is replaced by its picture
    - `both`: what was read is added to what they have
    """
    existing_text = context.options.existing_text
    return build_pdf(document, context, path, lambda pdf: _text_layer(pdf, existing_text))


def _text_layer(pdf: pikepdf.Pdf, existing_text: ExistingText) -> Decorator:
    font = GlyphlessFont(pdf)

    def page(leaf: Leaf, record: PageRecord) -> TextOutcome | None:
        outcome = _apply_existing_text(leaf, record, existing_text)
        if outcome == "skipped":
            return outcome
        lines = list(page_lines(record, leaf.size))
        if lines:
            _add(leaf, lines, font)
        return outcome

    return Decorator(page, font.finish)


def _apply_existing_text(
    leaf: Leaf, record: PageRecord, existing_text: ExistingText
) -> TextOutcome | None:
    """Do with the page's own text what is asked for; what was done, None for nothing. Raises
    `PictureWantedError` if the page is to be replaced by its picture first."""
    if record.error is not None or record.own_text in (None, "none"):
        return None
    if existing_text == "both":
        return None
    if existing_text == "skip":
        return "skipped" if leaf.is_original else None
    if not leaf.is_original:
        return "redrawn"
    resources = inherited(leaf.page, "/Resources") or Dictionary()
    visible = record.own_text == "visible"
    if visible or not remove_invisible_text(leaf.pdf, leaf.page, resources):
        raise PictureWantedError
    return "replaced"


def page_lines(record: PageRecord, size: tuple[float, float]) -> Iterator[PlacedLine]:
    """The text of a page in lines, placed on its picture of `size` points. A region's text goes
    into the largest of its boxes; text without regions over the whole page."""
    width, height = size
    free = MARGIN * width, MARGIN * height
    whole = (*free, width - free[0], height - free[1])
    outside = (0.0, 0.0, width, _TOP * height) if record.regions else whole
    for part in record.parts:
        box = outside if part.region is None else _box(part.region, width, height)
        lines = ["".join(map(_printable, line)) for line in plain_lines(part.blocks)]
        yield from place(lines, box)


def _printable(sign: str) -> str:
    """`sign`, or what stands for it in a text layer: joiners of letters stay, other signs that
    print nothing part words."""
    return sign if sign.isprintable() or sign in "\t\u200c\u200d" else " "


def _box(region: Region, width: float, height: float) -> Rectangle:
    largest = max(region.boxes, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
    return to_displayed(largest, (width, height), 0)


def _add(leaf: Leaf, lines: list[PlacedLine], font: GlyphlessFont) -> None:
    """Put the lines before all that the page draws, so that nothing it does can move them."""
    name = _add_font(leaf.page, font)
    height = leaf.size[1]
    matrix = " ".join(f"{value:.4f}" for value in picture_to_user(leaf.crop, leaf.turned))
    parts = [f"q {matrix} cm BT 3 Tr"]
    for line in lines:
        look = f"{name} {line.size:.4f} Tf {100 * line.stretch:.3f} Tz"
        place_of = f"1 0 0 1 {line.x:.3f} {height - line.y:.3f} Tm"
        parts.append(f"{look} {place_of} {font.encode(line.text)} Tj")
    parts.append("ET Q")
    leaf.page.contents_add(compressed(leaf.pdf, "\n".join(parts).encode("ascii")), prepend=True)


def _add_font(page: pikepdf.Page, font: GlyphlessFont) -> str:
    """Give the page resources of its own with the font in them; the name it has there."""
    shared = inherited(page, "/Resources")
    resources = Dictionary() if shared is None else Dictionary(dict(shared.items()))
    fonts = Dictionary() if "/Font" not in resources else Dictionary(dict(resources.Font.items()))
    number = 0
    while f"/Read{number}" in fonts:
        number += 1
    fonts[f"/Read{number}"] = font.object
    resources.Font = fonts
    page.obj[Name.Resources] = resources
    return f"/Read{number}"
