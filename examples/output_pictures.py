"""What the examples share: the model's text for a page drawn by hand, and pictures of outputs."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pypdfium2
from PIL import Image, ImageDraw, ImageFont

from deepseek_ocr.formats import FORMATS
from deepseek_ocr.formats.export import write
from deepseek_ocr.formats.figures import save_figures
from deepseek_ocr.formats.records import DocumentRecord, PageRecord
from deepseek_ocr.grounding import parser

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent

DPI = 120
"""At which the pages are put into a PDF."""

COLUMN, GAP, HEADER = 580, 15, 34
"""Width of a tile, space around it, and height of its name, in pixels."""

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


def target(name: str) -> Path:
    """The folder that the command line names, else that of this `name` in `build`."""
    return (Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / name).resolve()


def write_all(
    name: str, pages: Sequence[Sequence[Item]], drawn: Sequence[Image.Image], folder: Path
) -> None:
    """Write the document whose pages were `drawn` and are read as `pages` say, and all its outputs,
    into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / f"{name}-scan.pdf"
    drawn[0].save(source, save_all=True, append_images=drawn[1:], resolution=DPI)
    records = []
    for number, (items, picture) in enumerate(zip(pages, drawn, strict=True), start=1):
        figures = save_figures(picture, reading(1, items, picture.size).regions, number, folder)
        records.append(reading(number, items, picture.size, figures))
    document = DocumentRecord(name, source, "pdf", records, {"reading": "by hand"})
    write(document, list(FORMATS), folder, lambda number: drawn[number - 1])


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


def shown(program: Browser, source: Path, width: int = COLUMN, height: int = 1) -> Image.Image:
    """The HTML file `source` as it is shown `width` pixels wide, all of it, and at least `height`
    pixels."""
    page = program.new_page(viewport={"width": width, "height": height})
    page.goto(source.resolve().as_uri())
    shot = page.screenshot(full_page=True)
    page.close()
    return Image.open(io.BytesIO(shot)).convert("RGB")


def rendered(path: Path, at: int = 0) -> Image.Image:
    """A page of a PDF, as wide as a column."""
    with pypdfium2.PdfDocument(path) as pdf:
        page = pdf[at]
        return as_wide(page.render(scale=COLUMN / page.get_width()).to_pil().convert("RGB"))


def as_wide(image: Image.Image) -> Image.Image:
    """`image` as wide as a column."""
    size = COLUMN, round(image.height * COLUMN / image.width)
    return image.resize(size, Image.Resampling.LANCZOS)


def compose(
    columns: Sequence[Sequence[tuple[str, Image.Image]]], picture: Path, colours: int
) -> None:
    """Save columns of named tiles, one beside the other, as a PNG of few colours."""
    high = max(sum(tile.height + HEADER + GAP for _, tile in column) for column in columns)
    whole = Image.new("RGB", (GAP + len(columns) * (COLUMN + GAP), GAP + high), "#4a5568")
    pen = ImageDraw.Draw(whole)
    font = ImageFont.truetype("DejaVuSans-Bold.ttf", 18)
    for number, column in enumerate(columns):
        left, top = GAP + number * (COLUMN + GAP), GAP
        for name, tile in column:
            pen.text((left + 2, top + 4), name, font=font, fill="white")
            whole.paste(tile, (left, top + HEADER))
            top += HEADER + tile.height + GAP
    whole.quantize(colours, dither=Image.Dither.NONE).save(picture, optimize=True)
