"""Draw the example pages: `python examples/make_pages.py`, from the root of the checkout.

They are within reach of the bundled model: one to three lines of large, clean print on 512 px.
Needs the font DejaVu Sans (Debian package fonts-dejavu-core).
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIDE = 512
"""Side of a page in pixels: the view of preset Tiny."""

PAGES: dict[str, tuple[int, list[str]]] = {
    "invoice": (60, ["Invoice"]),
    "total": (60, ["Total 498"]),
    "fruit": (60, ["Apple 12", "Lemon 34"]),
}
"""File name → height of the letters in pixels, lines."""


def draw(lines: list[str], height: int) -> Image.Image:
    """A white page with `lines` in black, one below the other."""
    page = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(page)
    font = ImageFont.truetype("DejaVuSans.ttf", height)
    for number, line in enumerate(lines):
        pen.text((40, 60 + 2 * height * number), line, font=font, fill="black")
    return page


def main() -> None:
    """Write every page beside this script."""
    for name, (height, lines) in PAGES.items():
        draw(lines, height).save(Path(__file__).with_name(f"{name}.png"), optimize=True)


if __name__ == "__main__":
    main()
