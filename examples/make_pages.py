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

PAGES: dict[str, tuple[str, int, list[str]]] = {
    "invoice": ("DejaVuSerif.ttf", 60, ["Invoice"]),
    "total": ("DejaVuSans.ttf", 60, ["Total 498"]),
    "fruit": ("DejaVuSans.ttf", 60, ["Apple 12", "Lemon 34"]),
}
"""File name → font, height of the letters in pixels, lines."""

LETTER: list[tuple[int, int, int, str, str]] = [
    (120, 120, 44, "DejaVuSans-Bold.ttf", "Harbour Lane Bakery"),
    (120, 190, 26, "DejaVuSans.ttf", "12 Harbour Lane, Port Ellis"),
    (120, 300, 26, "DejaVuSerif.ttf", "Dear Ms Winter,"),
    (
        120,
        360,
        26,
        "DejaVuSerif.ttf",
        "thank you for your order of 3 March. We have baked and packed",
    ),
    (
        120,
        400,
        26,
        "DejaVuSerif.ttf",
        "everything below; the van leaves at half past five on Friday.",
    ),
    (120, 760, 26, "DejaVuSerif.ttf", "Please pay within fourteen days. With kind regards,"),
    (120, 820, 26, "DejaVuSerif.ttf", "Thomas Abel"),
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
    font = ImageFont.truetype("DejaVuSans.ttf", 26)
    for row, cells in enumerate(TABLE):
        for column, text in enumerate(cells):
            left, top = 120 + 330 * column, 480 + 60 * row
            pen.rectangle((left, top, left + 330, top + 60), outline="black", width=2)
            pen.text((left + 16, top + 14), text, font=font, fill="black")
    return page


def main() -> None:
    """Write every page beside this script."""
    here = Path(__file__).parent
    for name, (face, height, lines) in PAGES.items():
        draw(face, height, lines).save(here / f"{name}.png", optimize=True)
    draw_letter().save(here / "letter.png", optimize=True)


if __name__ == "__main__":
    main()
