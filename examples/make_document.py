"""Make the example of the output formats: `python -m examples.make_document [FOLDER]`.

Draws a report of two pages, takes a reading of it written by hand (no model runs), writes it in
every format into FOLDER (default: build/example), and puts what they look like side by side into
docs/outputs.png. Needs the fonts DejaVu and Noto Sans CJK or WenQuanYi Micro Hei, the packages of
requirements/checkout.txt, and the program `chromium` for the picture.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pypdfium2
from PIL import Image, ImageDraw, ImageFont

from deepseek_ocr.formats import FORMATS
from deepseek_ocr.formats.export import write
from deepseek_ocr.formats.figures import save_figures
from deepseek_ocr.formats.records import DocumentRecord, PageRecord
from examples import output_pictures
from examples.output_pictures import DPI, ROOT, Item, table

SIZE = (1000, 1400)
"""Of a page in pixels."""

ROWS = [("March", "412", "38"), ("April", "455", "41"), ("May", "503", "29"), ("June", "520", "33"),
        ("July", "488", "52"), ("August", "431", "47")]  # fmt: skip
HEADING = ("Month", "Loaves", "Returned")

PAGES: list[list[Item]] = [
    [
        ("title", (100, 90, 760, 150), "# Harbour Lane Bakery"),
        ("text", (100, 180, 900, 290), "The bakery sold more bread in every month of the spring. "
         "The chart shows the loaves of each month; what came back was given to the food bank."),
        ("image", (100, 330, 700, 680), ""),
        ("image_caption", (100, 695, 720, 730), "Figure 1. Loaves sold from March to August"),
        ("formula", (300, 780, 700, 830), r"\[ s = \frac{n - r}{n} \]"),
        ("text", (100, 870, 900, 980), "Here s is the share sold of n loaves when r came back. "
         "The table gives both numbers for every month and goes on overleaf."),
        ("table", (100, 1020, 900, 1260), table([HEADING, *ROWS[:3]])),
        ("footer", (480, 1330, 520, 1360), "1"),
    ],
    [
        ("table", (100, 90, 900, 330), table([HEADING, *ROWS[3:]])),
        ("sub_title", (100, 390, 500, 430), "## 面包与盐"),
        ("text", (100, 460, 900, 530), "A note to our neighbours: thank you, and see you in "
         "autumn."),
        ("footer", (480, 1330, 520, 1360), "2"),
    ],
]  # fmt: skip


def draw(items: list[Item]) -> Image.Image:
    """The page that `items` were read from."""
    page = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(page)
    for label, box, text in items:
        left, top, right, _ = box
        if label == "table":
            rows = [HEADING, *(ROWS[:3] if top > 500 else ROWS[3:])]
            _draw_table(pen, box, rows)
        elif label == "image":
            _draw_chart(pen, box)
        elif label == "formula":
            pen.text((left + 90, top), "s = (n − r) / n", font=_font(36), fill="black")
        else:
            bold = label in ("title", "sub_title")
            size = {"title": 46, "sub_title": 34, "footer": 24}.get(label, 26)
            _draw_text(pen, (left, top), right - left, text.lstrip("# "), _font(size, bold))
    return page


def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf", size)


def _draw_text(pen: ImageDraw.ImageDraw, at: tuple[int, int], width: int, text: str,
               font: ImageFont.FreeTypeFont) -> None:  # fmt: skip
    if not text.isascii():
        font = _chinese(int(font.size))
    line, top = "", at[1]
    for word in [*text.split(), None]:
        longer = f"{line} {word}".strip()
        if word is None or font.getlength(longer) > width:
            pen.text((at[0], top), line, font=font, fill="black")
            line, top = word or "", top + int(1.4 * font.size)
        else:
            line = longer


def _chinese(size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype("NotoSansCJK-Regular.ttc", size)
    except OSError:
        return ImageFont.truetype("wqy-microhei.ttc", size)


def _draw_table(pen: ImageDraw.ImageDraw, box: tuple[int, ...],
                rows: Sequence[tuple[str, ...]]) -> None:  # fmt: skip
    left, top, right, bottom = box
    wide, high = (right - left) / 3, (bottom - top) / len(rows)
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            x, y = left + column * wide, top + row * high
            pen.rectangle((x, y, x + wide, y + high), outline="black", width=2)
            pen.text((x + 14, y + 14), cell, font=_font(26, row == 0), fill="black")


def _draw_chart(pen: ImageDraw.ImageDraw, box: tuple[int, ...]) -> None:
    left, top, right, bottom = box
    pen.line((left, top, left, bottom, right, bottom), fill="black", width=3)
    for at, (_, loaves, _returned) in enumerate(ROWS):
        x = left + 40 + at * 95
        pen.rectangle((x, bottom - int(loaves) * 0.6, x + 60, bottom - 2), fill="#3f6fa8")


def reading(number: int, items: list[Item], figures: tuple[str, ...] = ()) -> PageRecord:
    """The record of one of the two pages."""
    return output_pictures.reading(number, items, SIZE, figures)


def make(folder: Path) -> DocumentRecord:
    """Write the document and all its outputs into `folder`."""
    drawn = [draw(items) for items in PAGES]
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "report-scan.pdf"
    drawn[0].save(source, save_all=True, append_images=drawn[1:], resolution=DPI)
    pages = []
    for number, (items, picture) in enumerate(zip(PAGES, drawn, strict=True), start=1):
        page = reading(number, items)
        pages.append(reading(number, items, save_figures(picture, page.regions, number, folder)))
    document = DocumentRecord("report", source, "pdf", pages, {"reading": "by hand"})
    write(document, list(FORMATS), folder, lambda number: drawn[number - 1])
    return document


def show(folder: Path, picture: Path) -> None:
    """What the outputs in `folder` look like, side by side in the file `picture`."""
    with pypdfium2.PdfDocument(folder / "report_layouts.pdf") as pdf:
        drawn = [pdf[at].render(scale=0.9).to_pil().convert("RGB") for at in range(2)]
    high = drawn[0].height
    with output_pictures.browser() as program:
        page = output_pictures.screenshot(
            program, folder / "report.html", folder / "report.png", width=640, height=1240
        )
    html = page.resize((round(page.width * high / page.height), high))
    sheets = [*drawn, html]
    whole = Image.new("RGB", (sum(sheet.width for sheet in sheets) + 40, high + 20), "#888")
    left = 10
    for sheet in sheets:
        whole.paste(sheet, (left, 10))
        left += sheet.width + 10
    output_pictures.save_small(whole, picture, 160)


def main() -> None:
    """Write the example; its picture too where chromium is installed."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "example"
    folder = folder.resolve()
    make(folder)
    if output_pictures.has_browser():
        show(folder, ROOT / "docs" / "outputs.png")


if __name__ == "__main__":
    main()
