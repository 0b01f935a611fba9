"""Make the example of the output formats: `python -m examples.make_document [FOLDER]`.

Draws a report of two pages, takes a reading of it written by hand (no model runs), writes it in
every format into FOLDER (default: build/example), and puts what they look like side by side into
docs/outputs.png. Needs the fonts DejaVu and Noto Sans CJK or WenQuanYi Micro Hei, the packages of
requirements/checkout.txt, and the program `chromium` for the picture.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from examples import output_pictures
from examples.make_pages import BOLD, SANS, draw_table
from examples.output_pictures import ROOT, Item, table

SIZE = (1000, 1400)
"""Of a page in pixels."""

ROWS = [["March", "412", "38"], ["April", "455", "41"], ["May", "503", "29"], ["June", "520", "33"],
        ["July", "488", "52"], ["August", "431", "47"]]  # fmt: skip
HEADING = ["Month", "Loaves", "Returned"]

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
            draw_table(pen, box, rows, BOLD, 14)
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
    return ImageFont.truetype(BOLD if bold else SANS, size)


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


def _draw_chart(pen: ImageDraw.ImageDraw, box: tuple[int, ...]) -> None:
    left, top, right, bottom = box
    pen.line((left, top, left, bottom, right, bottom), fill="black", width=3)
    for at, (_, loaves, _returned) in enumerate(ROWS):
        x = left + 40 + at * 95
        pen.rectangle((x, bottom - int(loaves) * 0.6, x + 60, bottom - 2), fill="#3f6fa8")


def show(folder: Path, picture: Path) -> None:
    """What the outputs in `folder` look like, side by side in the file `picture`."""
    layouts = "report_layouts.pdf"
    columns = [
        [(f"{layouts}, page {at + 1}", output_pictures.rendered(folder / layouts, at))]
        for at in range(2)
    ]
    with output_pictures.browser() as program:
        page = output_pictures.shown(program, folder / "report.html")
    output_pictures.compose([*columns, [("report.html", page)]], picture, 160)


def main() -> None:
    """Write the example; its picture too where chromium is installed."""
    folder = output_pictures.target("example")
    output_pictures.write_all("report", PAGES, [draw(items) for items in PAGES], folder)
    if shutil.which("chromium"):
        show(folder, ROOT / "docs" / "outputs.png")


if __name__ == "__main__":
    main()
