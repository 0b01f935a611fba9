"""What the examples share: the model's text for a page drawn by hand, and pictures of outputs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.grounding import parser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent

DPI = 120
"""At which the pages are put into a PDF."""

Item = tuple[str, tuple[int, int, int, int], str]
"""Label, box in pixels, text as the model would write it."""


def reading(
    number: int, items: Sequence[Item], size: tuple[int, int], figures: tuple[str, ...] = ()
) -> PageRecord:
    """The record of a page of `size` pixels that was read without a fault."""
    blocks = []
    for label, box, text in items:
        scaled = [round(v / side * parser.SCALE) for v, side in zip(box, size * 2, strict=True)]
        blocks.append(f"<|ref|>{label}<|/ref|><|det|>[{scaled}]<|/det|>\n{text}")
    text = "\n\n".join(blocks)
    return PageRecord(
        number,
        *size,
        points=(size[0] * 72 / DPI, size[1] * 72 / DPI),
        text=text,
        regions=tuple(parser.parse(text)),
        figures=figures,
        finish_reason="stop",
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table of plain rows as the model writes it."""
    cells = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def has_browser() -> bool:
    """True if the program `chromium` is installed."""
    return shutil.which("chromium") is not None


@contextmanager
def browser() -> Iterator[Browser]:
    """The program `chromium`, without a window."""
    from playwright.sync_api import sync_playwright  # only pictures of HTML need it

    with sync_playwright() as playwright:
        program = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        yield program
        program.close()


def screenshot(program: Browser, source: Path, picture: Path, width: int,
               height: int = 0) -> Image.Image:  # fmt: skip
    """The HTML file `source` as it is shown `width` pixels wide, kept in the file `picture`; all
    of it, and at least `height` pixels."""
    page = program.new_page(viewport={"width": width, "height": max(height, 1)})
    page.goto(source.resolve().as_uri())
    page.screenshot(path=picture, full_page=True)
    page.close()
    with Image.open(picture) as shot:
        return shot.convert("RGB")


def save_small(image: Image.Image, picture: Path, colours: int) -> None:
    """Save `image` as a PNG of few colours."""
    image.quantize(colours, dither=Image.Dither.NONE).save(picture, optimize=True)
