"""A picture as a page of a PDF, without loss."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pikepdf
from pikepdf import Dictionary, Name
from PIL import Image

from deepseek_ocr.formats.glyphless import compressed

DPI = 144
"""Taken where a picture does not say, as the official PDF script renders."""

LONGEST_SIDE = 14_400.0
"""Points; PDF readers are not bound to show more."""

_CREDIBLE_DPI = (36.0, 2400.0)
_JPEG = b"\xff\xd8\xff"
_COLOURS = {"RGB": (Name.DeviceRGB, 3, 8), "L": (Name.DeviceGray, 1, 8),
            "1": (Name.DeviceGray, 1, 1)}  # fmt: skip
"""Mode → colour space, channels, bits a channel."""


def add_picture_page(
    pdf: pikepdf.Pdf,
    image: Image.Image,
    jpeg: bytes | None,
    size: tuple[float, float] | None = None,
) -> pikepdf.Page:
    """Append a page that shows `image`; `jpeg`, if given, is the same picture as it was stored, and
    `image.info["stored_jpeg"]` its mode. `size` is the page's in points, else `page_size` gives it.
    """
    width, height = page_size(image) if size is None else _scaled(size, 1.0)
    stream = _from_jpeg(pdf, image, jpeg) if jpeg is not None else _from_pixels(pdf, image)
    page = pdf.add_blank_page(page_size=(width, height))
    page.obj.Resources = Dictionary(XObject=Dictionary(Page=stream))
    drawing = f"q {width:.3f} 0 0 {height:.3f} 0 0 cm /Page Do Q"
    page.obj.Contents = compressed(pdf, drawing.encode("ascii"))
    return page


def page_size(image: Image.Image) -> tuple[float, float]:
    """Width and height of a page for `image` in points, by its own resolution or `DPI`."""
    dpi: float = DPI
    stated = image.info.get("dpi")
    if isinstance(stated, tuple) and stated:
        low, high = _CREDIBLE_DPI
        dpi = float(stated[0]) if low <= float(stated[0]) <= high else DPI
    return _scaled(image.size, 72 / dpi)


def _scaled(size: tuple[float, float], scale: float) -> tuple[float, float]:
    """`size` by `scale`, made smaller or larger if PDF does not allow pages of it."""
    scale = min(scale, LONGEST_SIDE / max(size))
    width, height = (min(max(side * scale, 3.0), LONGEST_SIDE) for side in size)
    return width, height


def stored_jpeg(path: Path, image: Image.Image) -> bytes | None:
    """The bytes of the file `path` if they are a JPEG that shows just what `image` does, as the
    rendering process found and put down in `image.info["stored_jpeg"]`; they are not decoded here.
    """
    if image.info.get("stored_jpeg") not in ("RGB", "L"):
        return None
    try:
        data = path.read_bytes()
    except OSError:
        return None  # then its pixels are stored, which needs no file
    return data if data.startswith(_JPEG) else None


def _from_jpeg(pdf: pikepdf.Pdf, image: Image.Image, jpeg: bytes) -> pikepdf.Stream:
    colours, _, bits = _COLOURS[image.info["stored_jpeg"]]
    return pikepdf.Stream(pdf, jpeg, Type=Name.XObject, Subtype=Name.Image, Width=image.width,
                          Height=image.height, ColorSpace=colours, BitsPerComponent=bits,
                          Filter=Name.DCTDecode)  # fmt: skip


def _from_pixels(pdf: pikepdf.Pdf, image: Image.Image) -> pikepdf.Stream:
    """The pixels as PNG packs them, which PDF understands as it is."""
    image = _simplest(image)
    colours, channels, bits = _COLOURS[image.mode]
    packed = io.BytesIO()
    image.save(packed, "PNG")
    parameters = Dictionary(Predictor=15, Colors=channels, BitsPerComponent=bits,
                            Columns=image.width)  # fmt: skip
    return pikepdf.Stream(pdf, _png_data(packed.getvalue()), Type=Name.XObject,
                          Subtype=Name.Image, Width=image.width, Height=image.height,
                          ColorSpace=colours, BitsPerComponent=bits, Filter=Name.FlateDecode,
                          DecodeParms=parameters)  # fmt: skip


def _simplest(image: Image.Image) -> Image.Image:
    """`image` in grey or black and white where that is all there is in it."""
    colour = image.convert("RGB")
    grey = colour.convert("L")
    if grey.convert("RGB").tobytes() != colour.tobytes():
        return colour
    if sum(grey.histogram()[1:255]) == 0:
        return grey.convert("1", dither=Image.Dither.NONE)
    return grey


def _png_data(png: bytes) -> bytes:
    """The compressed rows of a PNG that Pillow has just written."""
    parts, at = [], 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        if kind == b"IDAT":
            parts.append(png[at + 8 : at + 8 + length])
        at += 12 + length
    return b"".join(parts)
