"""The original pages with the regions drawn on them and a legend below."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pikepdf import Array, Dictionary, Name

from deepseek_ocr.formats.glyphless import compressed, width_of
from deepseek_ocr.formats.joined_tables import PageContent
from deepseek_ocr.formats.markdown import remarks
from deepseek_ocr.formats.pdf_builder import Decorator, Leaf, build_pdf
from deepseek_ocr.formats.records import DocumentRecord, PageRecord
from deepseek_ocr.formats.writing import PdfPages, WriteContext
from deepseek_ocr.grounding.geometry import Rectangle, picture_to_user, to_displayed
from deepseek_ocr.grounding.parser import Region

Colour = tuple[float, float, float]

COLOURS: dict[str, Colour] = {
    "title": (0.78, 0.13, 0.16), "sub_title": (0.85, 0.40, 0.02), "text": (0.10, 0.40, 0.76),
    "table": (0.10, 0.52, 0.24), "image": (0.52, 0.20, 0.68), "image_caption": (0.74, 0.16, 0.52),
    "table_caption": (0.33, 0.47, 0.05), "formula": (0.00, 0.50, 0.54),
    "equation": (0.00, 0.50, 0.54), "list": (0.36, 0.30, 0.78), "header": (0.40, 0.42, 0.46),
    "footer": (0.40, 0.42, 0.46), "page_number": (0.40, 0.42, 0.46),
}  # fmt: skip
"""Red, green, blue of the labels the model uses most, dark enough for white letters on them."""

_LegendLine = list[tuple[str, Colour, bool]]
"""Texts, the colour of each, and whether a swatch of it goes before."""

_INK: Colour = (0.15, 0.15, 0.17)
_WARNING: Colour = (0.72, 0.10, 0.10)
_LONGEST_LABEL = 40
_LONGEST_NOTE = 300
_PRINTED_READ_ONLY_LOCKED = 4 + 64 + 128


def write_layout_pdf(document: DocumentRecord, context: WriteContext, path: Path) -> PdfPages:
    """Write `document` with its regions drawn to `path`; see `pdf_builder.build_pdf`."""
    return build_pdf(document, context, path, lambda pdf: Decorator(_page, lambda: None))


def colour_of(label: str) -> Colour:
    """The colour of a label: the same in every document."""
    if label in COLOURS:
        return COLOURS[label]
    digest = hashlib.sha256(label.encode("utf-8", "replace")).digest()
    red, green, blue = (0.05 + 0.6 * byte / 255 for byte in digest[:3])
    return red, green, blue


def _page(leaf: Leaf, record: PageRecord) -> None:
    """Draw in an annotation: it lies over all that the page draws, whatever state that leaves."""
    width, height = leaf.size
    unit = max(math.sqrt(width * height) / 90, 0.5)  # letters that can be read on any page
    legend = list(_legend(record, width, unit))
    strip = unit * 2 * len(legend)
    crop = _with_strip(leaf.crop, leaf.turned, strip)
    drawing = "\n".join([*_regions(record, width, height, unit), *_strip(legend, width, unit)])
    form = compressed(
        leaf.pdf, drawing.encode("cp1252", "replace"), Type=Name.XObject, Subtype=Name.Form,
        BBox=Array([0, -strip, width, height]),
        Matrix=Array(list(picture_to_user(leaf.crop, leaf.turned))),
        Resources=Dictionary(
            Font=Dictionary(F=Dictionary(Type=Name.Font, Subtype=Name.Type1,
                                         BaseFont=Name.Helvetica,
                                         Encoding=Name.WinAnsiEncoding)),
            ExtGState=Dictionary(T=Dictionary(ca=0.08)),
        ),
    )  # fmt: skip
    note = Dictionary(
        Type=Name.Annot, Subtype=Name.Stamp, Rect=Array(crop), F=_PRINTED_READ_ONLY_LOCKED,
        Contents="Regions", AP=Dictionary(N=leaf.pdf.make_indirect(form)),
    )  # fmt: skip
    page = leaf.page.obj
    page.MediaBox = page.CropBox = Array(crop)
    page.Annots = Array([*page.get("/Annots", Array()), leaf.pdf.make_indirect(note)])


def _with_strip(crop: Rectangle, turned: int, strip: float) -> list[float]:
    """`crop` with `strip` points more at the picture's lower edge."""
    larger, lower = [*crop], {0: 1, 90: 2, 180: 3, 270: 0}[turned]
    larger[lower] += strip if lower in (2, 3) else -strip
    return larger


def _regions(record: PageRecord, width: float, height: float, unit: float) -> Iterator[str]:
    """Every box with its label above, or inside where there is no room above."""
    for order, region in enumerate(record.regions, start=1):
        name = _name_of(record, region)
        colour = colour_of(name)
        line = unit * (0.2 if region.label in ("title", "sub_title") else 0.12)
        for box in region.boxes:
            left, upper, right, lower = to_displayed(box, (width, height), 0)
            top, bottom = height - upper, height - lower
            shape = f"{left:.2f} {bottom:.2f} {right - left:.2f} {top - bottom:.2f} re"
            yield f"q {_rgb(colour)} rg {_rgb(colour)} RG /T gs {line:.2f} w {shape} B Q"
            label = _printable(f"{order} {name}", _LONGEST_LABEL)
            yield _label(label, left, min(top, height - 1.3 * unit), unit, colour)


def _name_of(record: PageRecord, region: Region) -> str:
    """What a region is called; a line that was read with its box has its text for a label."""
    is_line = region.label_is_text and not region.text and record.reference is None
    return "text" if is_line else region.label


def _label(text: str, x: float, y: float, unit: float, colour: Colour) -> str:
    wide = (width_of(text) + 0.6) * unit
    written = _text(text, x + 0.3 * unit, y + 0.35 * unit, unit, (1.0, 1.0, 1.0))
    return f"q {_rgb(colour)} rg {x:.2f} {y:.2f} {wide:.2f} {1.3 * unit:.2f} re f Q {written}"


def _legend(record: PageRecord, width: float, unit: float) -> Iterator[_LegendLine]:
    """The lines below the page: its number and what to know of it, then the labels on it."""
    found = remarks(PageContent(record, ()))
    notes = found or [f"page {record.number}" + ("" if record.regions else ", no regions")]
    for note in notes:
        yield [(_printable(note, _LONGEST_NOTE), _WARNING if found else _INK, False)]
    line: _LegendLine = []
    used = 0.0
    for label, count in Counter(_name_of(record, one) for one in record.regions).most_common(200):
        text = _printable(f"{label} ({count})", _LONGEST_LABEL)
        wide = (width_of(text) + 2.5) * unit
        if line and used + wide > width - unit:
            yield line
            line, used = [], 0.0
        line.append((text, colour_of(label), True))
        used += wide
    if line:
        yield line


def _strip(legend: list[_LegendLine], width: float, unit: float) -> Iterator[str]:
    strip = 2 * unit * len(legend)
    yield f"q 1 g 0 {-strip:.2f} {width:.2f} {strip:.2f} re f Q"
    for row, line in enumerate(legend):
        x, y = 0.5 * unit, -2 * unit * (row + 1) + 0.6 * unit
        for text, colour, swatch in line:
            if swatch:
                yield f"q {_rgb(colour)} rg {x:.2f} {y:.2f} {unit:.2f} {0.8 * unit:.2f} re f Q"
                x += 1.3 * unit
            size = min(unit, (width - x) / (width_of(text) or 1.0))
            yield _text(text, x, y, max(size, 0.1), _INK if swatch else colour)
            x += (width_of(text) + 1.2) * unit


def _text(text: str, x: float, y: float, size: float, colour: Colour) -> str:
    escaped = text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
    return f"BT {_rgb(colour)} rg /F {size:.3f} Tf {x:.2f} {y:.2f} Td ({escaped}) Tj ET"


def _rgb(colour: Colour) -> str:
    return " ".join(f"{part:.3f}" for part in colour)


def _printable(text: str, longest: int) -> str:
    """`text` in one line of Western letters, which are all that the drawn labels have."""
    line = "".join(sign if sign.isprintable() else " " for sign in " ".join(text.split()))
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    return line.encode("cp1252", "replace").decode("cp1252")
