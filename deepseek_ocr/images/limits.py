"""Which pictures are taken: their suffixes, their formats, and how large they may be.

Imports neither Pillow nor torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ocr.settings import MAX_PICTURE_PIXELS

PICTURE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif",
     ".avif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"]
)  # fmt: skip
"""Suffixes, in small letters, of the files in folders and archives that are taken for pictures."""

PILLOW_FORMATS = (
    "JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "HEIF", "AVIF", "JPEG2000", "PPM",
)  # fmt: skip
"""What Pillow may try: the formats pages come in, none that starts another program (EPS does)."""


@dataclass(frozen=True)
class ImageLimits:
    """Refused before decoding: more bytes in the file, more pixels in the picture.

    The default `max_pixels` is the bound at which Pillow refuses to open a picture, so a larger one
    has no effect on files.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = MAX_PICTURE_PIXELS
