"""Opening pictures of any kind as upright 8-bit RGB, within limits."""

from __future__ import annotations

import functools
import io
import os
import threading
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from deepseek_ocr.errors import ImageError, ImageTooLargeError
from deepseek_ocr.images.colors import to_rgb
from deepseek_ocr.images.limits import PILLOW_FORMATS, ImageLimits

Source = str | os.PathLike[str] | bytes | BinaryIO | Image.Image
"""What a picture is opened from: a path, its bytes, a binary stream, a Pillow image."""


def open_image(source: Source, limits: ImageLimits = ImageLimits()) -> Image.Image:
    """Open a picture as RGB, upright (EXIF), first frame, from a path, bytes, stream or image.

    `info["more_pages"]` of what is returned is True where a TIFF holds further pages.

    Transparency, palettes, CMYK, grey, 16-bit and floating point become 8-bit RGB. The size is
    checked before any pixel is decoded.

    Raises `ImageTooLargeError` beyond `limits`, `ImageError` for anything that is no picture.
    """
    if isinstance(source, Image.Image):
        return _decode(source, "The image", limits)
    data, name = _read(source, limits)
    if data.getvalue().startswith(b"%PDF-"):
        raise ImageError(
            f"{name} is a PDF, a document of many pages; give it to deepseek-ocr read, or make "
            "pictures of its pages with deepseek_ocr.documents.renderer."
        )
    with open_frames(data, name, limits) as image:
        return _decode(image, name, limits)


def open_frames(
    file: Path | BinaryIO, name: str, limits: ImageLimits = ImageLimits()
) -> Image.Image:
    """Open a picture without decoding it: `seek` chooses a frame, `open_image` decodes it. `name`
    is what messages call it. Raises as `open_image`."""
    try:
        with _quiet:
            return Image.open(file, formats=_formats())
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(
            f"{name} has more than the {limits.max_pixels:,} pixels allowed; scale it down (the "
            "model sees at most about 1920 x 1920 of them)."
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not a picture that can be opened; use JPEG, PNG, WebP, HEIC, TIFF, BMP, "
            "GIF, JPEG 2000, AVIF or PPM."
        ) from error
    except Exception as error:
        raise _damaged(name, error) from error


def _decode(image: Image.Image, name: str, limits: ImageLimits) -> Image.Image:
    check_pixels(image, name, limits)
    try:
        with _quiet:
            more_pages = isinstance(image, TiffImageFile) and bool(image.tag_v2.next)
            page = to_rgb(image)
            page.info["more_pages"] = more_pages
            return page
    except Exception as error:  # decoders of damaged files raise whatever they tripped over
        raise _damaged(name, error) from error


class _Quiet:
    """Without Pillow's warnings: of half the bound enforced here, of odd metadata.

    What Python warns of belongs to the whole process, and pages are opened in several threads: the
    first in sets it, the last out puts it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._kept = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._kept = warnings.catch_warnings()
                self._kept.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._kept.__exit__(*error)


_quiet = _Quiet()


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name} is damaged or incomplete ({error}); save or download it again.")


def _read(
    source: str | os.PathLike[str] | bytes | BinaryIO, limits: ImageLimits
) -> tuple[io.BytesIO, str]:
    """The bytes behind `source`, no more than allowed, and what to call it in messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), "The image"
    elif isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ImageError(
            f"{source} is an address, and addresses are not fetched here; download the picture, "
            "for example with: curl -fsSLo page.jpg ADDRESS"
        )
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        name = str(path)
        try:
            if not path.is_file():  # also keeps out pipes and devices that never end
                what = "is a folder" if path.is_dir() else "does not exist or is not a file"
                raise ImageError(f"{name} {what}; give the path of a picture.")
            with path.open("rb") as file:
                data = file.read(limits.max_bytes + 1)
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror}.") from error
    elif hasattr(source, "read"):
        data, name = _read_stream(source, limits.max_bytes + 1), "The image"
    else:
        raise ImageError(
            f"An image cannot be made from {type(source).__name__}; "
            "give a path, bytes, a binary stream or a PIL image."
        )
    if not data:
        raise ImageError(f"{name} is empty (zero bytes); check where it came from.")
    if len(data) > limits.max_bytes:
        raise ImageTooLargeError(
            f"{name} is larger than {limits.max_bytes / 2**20:.0f} MiB; compress or scale it down."
        )
    return io.BytesIO(data), name


def _read_stream(stream: BinaryIO, most: int) -> bytes:
    """Up to `most` bytes; a raw stream may give fewer at a time than it is asked for."""
    pieces: list[bytes] = []
    while most and (piece := stream.read(most)):
        if not isinstance(piece, bytes):
            raise ImageError("The image stream gave text; open it in binary mode.")
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)


def check_pixels(image: Image.Image, name: str, limits: ImageLimits) -> None:
    """Look at the size that a picture's head gives, before anything of it is decoded. Raises
    `ImageTooLargeError`, and `ImageError` where a side is empty."""
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"{name} is {width} x {height} px, more than the {limits.max_pixels:,} px allowed; "
            "scale it down (the model sees at most about 1920 x 1920 px of it)."
        )
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels; check where it came from.")


@functools.cache
def _formats() -> list[str]:
    """Those of `PILLOW_FORMATS` that this Pillow can read; HEIC comes from `pillow-heif`."""
    from pillow_heif import register_heif_opener

    register_heif_opener()
    Image.init()  # Pillow knows only a few formats before
    return [name for name in PILLOW_FORMATS if name in Image.OPEN]
