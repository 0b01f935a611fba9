"""Draw the example pages: `python examples/make_pages.py`, from the root of the checkout.

The three small ones are within reach of the bundled model: one to three lines of large, clean
print on 512 px. The letter is an A4 page for the real one. Needs the font DejaVu (Debian package
fonts-dejavu-core).
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE = 512
"""Side of a small page in pixels: the view of preset Tiny."""

A4 = (1240, 1754)
"""Size of the letter in pixels: 150 dpi."""

SANS, BOLD, SERIF = "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf"

PAGES: dict[str, tuple[str, int, list[str]]] = {
    "invoice": (SERIF, 60, ["Invoice"]),
    "total": (SANS, 60, ["Total 498"]),
    "fruit": (SANS, 60, ["Apple 12", "Lemon 34"]),
}
"""File name → font, height of the letters in pixels, lines."""

LETTER: list[tuple[int, int, int, str, str]] = [
    (120, 120, 44, BOLD, "Harbour Lane Bakery"),
    (120, 190, 26, SANS, "12 Harbour Lane, Port Ellis"),
    (120, 300, 26, SERIF, "Dear Ms Winter,"),
    (120, 360, 26, SERIF, "thank you for your order of 3 March. We have baked and packed"),
    (120, 400, 26, SERIF, "everything below; the van leaves at half past five on Friday."),
    (120, 760, 26, SERIF, "Please pay within fourteen days. With kind regards,"),
    (120, 820, 26, SERIF, "Thomas Abel"),
]
"""Left, top, height in pixels, font, text."""

TABLE = [["Item", "Pieces", "Price"], ["Rye bread", "40", "132.00"], ["Plum cake", "6", "81.50"],
         ["Total", "46", "213.50"]]  # fmt: skip


def draw(face: str, height: int, lines: list[str]) -> Image.Image:
    """A small white page with `lines` in black, one below the other."""
    page = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(page)
    font = ImageFont.truetype(face, height)
    for number, line in enumerate(lines):
        pen.text((40, 60 + 2 * height * number), line, font=font, fill="black")
    return page


def draw_letter() -> Image.Image:
    """An A4 letter with a heading, paragraphs and a table."""
    page = Image.new("L", A4, "white")
    pen = ImageDraw.Draw(page)
    for left, top, height, font, text in LETTER:
        pen.text((left, top), text, font=ImageFont.truetype(font, height), fill="black")
    draw_table(pen, (120, 480, 1110, 720), TABLE, SANS, 16)
    return page


def draw_table(
    pen: ImageDraw.ImageDraw, box: tuple[int, ...], rows: list[list[str]], heading: str, margin: int
) -> None:
    """A table that fills `box`; its first row is in the font `heading`."""
    left, top, right, bottom = box
    wide, high = (right - left) / len(rows[0]), (bottom - top) / len(rows)
    for row, cells in enumerate(rows):
        font = ImageFont.truetype(SANS if row else heading, 26)
        for column, cell in enumerate(cells):
            x, y = left + column * wide, top + row * high
            pen.rectangle((x, y, x + wide, y + high), outline="black", width=2)
            pen.text((x + margin, y + 14), cell, font=font, fill="black")


def main() -> None:
    """Write every page beside this script."""
    here = Path(__file__).parent
    for name, (face, height, lines) in PAGES.items():
        draw(face, height, lines).save(here / f"{name}.png", optimize=True)
    draw_letter().save(here / "letter.png", optimize=True)


if __name__ == "__main__":
    main()
