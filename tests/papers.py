"""Documents for tests, made with real libraries: PDFs, TIFFs, zips."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pikepdf
from PIL import Image
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.cidfonts import UnicodeCIDFont
from reportlab.pdfgen.canvas import Canvas

from tests.scripted import colour

SIDE = 72
"""Points of a side of a test's pages: small ones render fast."""


def pdf(
    path: Path,
    numbers: Iterable[int],
    faults: dict[int, str] | None = None,
    size: tuple[float, float] = (SIDE, SIDE),
) -> Path:
    """A PDF whose pages have the colours of `numbers` (see `scripted`)."""
    canvas = Canvas(str(path), pagesize=size)
    for number in numbers:
        red, green, blue = colour(number, (faults or {}).get(number, "none"))
        canvas.setFillColorRGB(red / 255, green / 255, blue / 255)
        canvas.rect(-1, -1, size[0] + 2, size[1] + 2, stroke=0, fill=1)
        if (faults or {}).get(number) != "is blank":
            canvas.setFillColorRGB(1, 1, 1)
            canvas.rect(0, 0, size[0] / 4, size[1] / 4, stroke=0, fill=1)
        canvas.showPage()
    canvas.save()
    return path


def line(path: Path, font: str, text: str, size: int) -> Path:
    """A PDF of one line whose font it names and does not embed: each character has a square of
    `size` points."""
    pdfmetrics.registerFont(UnicodeCIDFont(font))
    canvas = Canvas(str(path), pagesize=(size * len(text), size * 1.5))
    canvas.setFont(font, size)
    canvas.drawString(0, size * 0.4, text)
    canvas.save()
    return path


def picture_pdf(path: Path, pictures: Sequence[Path]) -> Path:
    """A PDF whose pages are pictures, a point a pixel at twice 72 dpi."""
    canvas = Canvas(str(path))
    for picture in pictures:
        with Image.open(picture) as image:
            width, height = (side / 2 for side in image.size)
        canvas.setPageSize((width, height))
        canvas.drawImage(str(picture), 0, 0, width, height)
        canvas.showPage()
    canvas.save()
    return path


def encrypted(path: Path, password: str, numbers: Iterable[int] = (1,)) -> Path:
    """The same PDF, locked."""
    pdf(path, numbers)
    with pikepdf.open(path, allow_overwriting_input=True) as document:
        document.save(path, encryption=pikepdf.Encryption(user=password, owner=password))
    return path


def rotated(path: Path, degrees: int, size: tuple[float, float]) -> Path:
    """A PDF page with a black square in the upper left corner of its unturned page."""
    canvas = Canvas(str(path), pagesize=size)
    canvas.rect(0, size[1] - 20, 20, 20, stroke=0, fill=1)
    canvas.showPage()
    canvas.save()
    with pikepdf.open(path, allow_overwriting_input=True) as document:
        document.pages[0].Rotate = degrees
        document.save(path)
    return path


def without_pages(path: Path) -> Path:
    """A PDF of no pages."""
    with pikepdf.new() as document:
        document.save(path)
    return path


def broken_xref(path: Path, numbers: Iterable[int]) -> Path:
    """A PDF whose cross-reference table points nowhere."""
    data = pdf(path, numbers).read_bytes()
    head, _, _ = data.rpartition(b"startxref")
    path.write_bytes(head.replace(b"0000", b"9999") + b"startxref\n999999\n%%EOF\n")
    return path


def cut_off(path: Path, numbers: Iterable[int]) -> Path:
    """The first third of a PDF: nothing can be made of it."""
    data = pdf(path, numbers).read_bytes()
    path.write_bytes(data[:40])
    return path


def nested_bomb(path: Path, depth: int = 12, width: int = 30) -> Path:
    """One page that draws a form which draws ten forms which draw ten …"""
    with pikepdf.new() as document:
        document.add_blank_page(page_size=(SIDE, SIDE))
        inner = document.make_stream(b"0 0 1 1 re f")
        for _ in range(depth):
            inner.Type, inner.Subtype = pikepdf.Name.XObject, pikepdf.Name.Form
            inner.BBox = [0, 0, SIDE, SIDE]
            outer = document.make_stream(b"/F Do " * width)
            outer.Resources = pikepdf.Dictionary(XObject=pikepdf.Dictionary(F=inner))
            inner = outer
        page = document.pages[0]
        page.Contents, page.Resources = inner, inner.Resources
        document.save(path)
    return path


def huge_image(path: Path, side: int = 60_000) -> Path:
    """One page with a picture of `side` x `side` px that is small when packed."""
    with pikepdf.new() as document:
        document.add_blank_page(page_size=(SIDE, SIDE))
        packer = zlib.compressobj(9)
        data = b"".join(packer.compress(bytes(side * 3)) for _ in range(side)) + packer.flush()
        image = pikepdf.Stream(document, data)
        image.write(data, filter=pikepdf.Name.FlateDecode)
        image.Type, image.Subtype = pikepdf.Name.XObject, pikepdf.Name.Image
        image.Width, image.Height = side, side
        image.ColorSpace, image.BitsPerComponent = pikepdf.Name.DeviceRGB, 8
        page = document.pages[0]
        page.Resources = pikepdf.Dictionary(XObject=pikepdf.Dictionary(I=image))
        page.Contents = document.make_stream(b"%d 0 0 %d 0 0 cm /I Do" % (SIDE, SIDE))
        document.save(path)
    return path


def picture(number: int, fault: str = "none", side: int = SIDE) -> Image.Image:
    """A page as a picture."""
    page = Image.new("RGB", (side, side), colour(number, fault))
    page.paste((255, 255, 255), (0, 0, side // 4, side // 4))
    return page


def tiff(path: Path, numbers: Sequence[int]) -> Path:
    """A TIFF with a frame for each of `numbers`."""
    first, *others = [picture(number) for number in numbers]
    first.save(path, save_all=True, append_images=others, compression="tiff_lzw")
    return path


def png(number: int) -> bytes:
    """A page as the bytes of a PNG."""
    data = io.BytesIO()
    picture(number).save(data, "PNG")
    return data.getvalue()


def archive(path: Path, members: dict[str, bytes]) -> Path:
    """A zip."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path
