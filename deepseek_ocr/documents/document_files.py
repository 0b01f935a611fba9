"""The files of documents, opened: PDFs, pictures, zips of pictures, and their pages as pictures.

This runs in the rendering process (`render_worker`), because nothing of a file can be trusted.
"""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from PIL import ExifTags, Image

from deepseek_ocr.documents import inputs
from deepseek_ocr.documents.pdf_file import PdfFile, encrypted_reason
from deepseek_ocr.errors import DocumentError
from deepseek_ocr.images.image_loading import check_pixels, open_frames, open_image
from deepseek_ocr.images.limits import PICTURE_SUFFIXES, ImageLimits
from deepseek_ocr.settings import RenderSettings

MAX_PAGES = 100_000
"""Most pages of a document, members of an archive, frames of a picture."""

_TURN_OF_ORIENTATION = {3: 180, 4: 180, 5: 270, 6: 90, 7: 90, 8: 270}
"""Degrees clockwise by which an EXIF orientation turns a picture (mirroring aside)."""


class DocumentFile(Protocol):
    """A document, open: what it is, how many pages it has, how many files in it are none."""

    kind: str
    count: int
    left_out: int

    def render(self, index: int, settings: RenderSettings) -> tuple[Image.Image, dict[str, Any]]:
        """The page `index` (from 0), upright, RGB, and what to say of it."""

    def close(self) -> None:
        """Close the file."""


class _PictureFile:
    """A picture file; every frame of a TIFF is a page, of others the first."""

    kind = "image"
    left_out = 0

    def __init__(self, path: Path, name: str, password: str | None) -> None:
        self._path, self._name = path, name
        self._image = open_frames(path, name)
        self._last = -1
        is_tiff = self._image.format == "TIFF"
        self.count = getattr(self._image, "n_frames", 1) if is_tiff else 1

    def render(self, index: int, settings: RenderSettings) -> tuple[Image.Image, dict[str, Any]]:
        if index <= self._last:  # decoding turns a TIFF in place, so none is decoded twice
            self._image.close()
            self._image = open_frames(self._path, self._name)
        self._last = index
        if self.count > 1:
            self._image.seek(index)
        picture, about = _upright(self._image, settings)
        if self.count == 1 and not about["rotation"]:
            about["stored_jpeg"] = _mode_of_jpeg(self._image, picture)
        return picture, about

    def close(self) -> None:
        self._image.close()


class _PictureArchive:
    """A zip whose pictures, in the order of their names with numbers as numbers, are the pages."""

    kind = "image"

    def __init__(self, path: Path, name: str, password: str | None) -> None:
        self._name = name
        self._password = password.encode() if password else None
        try:
            self._zip = zipfile.ZipFile(path)
        except Exception as error:  # zipfile raises many things over a damaged one
            raise DocumentError(f"{name} is a damaged archive ({error}); pack it again.") from error
        members = [member for member in self._zip.infolist() if not member.is_dir()]
        if len(members) > MAX_PAGES:
            raise DocumentError(f"{self._name} has more than {MAX_PAGES:,} files; split it.")
        self._members = sorted(filter(_is_picture, members), key=lambda m: _natural(m.filename))
        self.count = len(self._members)
        self.left_out = len(members) - self.count

    def render(self, index: int, settings: RenderSettings) -> tuple[Image.Image, dict[str, Any]]:
        member = self._members[index]
        name = f"{member.filename!r} in {self._name}"
        limit = ImageLimits().max_bytes
        try:
            with self._zip.open(member, pwd=self._password) as file:
                data = file.read(limit + 1)  # what the archive says of sizes need not be true
            if len(data) > limit:
                raise ValueError(f"it is larger than {limit >> 20} MiB")
        except Exception as error:  # zipfile raises what its decoders trip over
            if member.flag_bits & _ENCRYPTED and "password" in str(error).lower():
                locked = encrypted_reason(self._name, self._password is not None)
                raise DocumentError(locked) from error
            raise DocumentError(f"{name} cannot be unpacked ({error}); pack it again.") from error
        with open_frames(io.BytesIO(data), name) as image:
            return _upright(image, settings)

    def close(self) -> None:
        self._zip.close()


_ENCRYPTED = 1
"""Bit of a zip member's flags: its data are encrypted."""


def _is_picture(member: zipfile.ZipInfo) -> bool:
    parts = member.filename.split("/")
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not hidden and Path(parts[-1]).suffix.lower() in PICTURE_SUFFIXES


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which `page 2` comes before `page 10`."""
    pieces = re.findall(r"([^0-9]*)([0-9]*)", name.casefold() + "\0")
    numbered = (((0, text), (int(digits[:18] or 0), digits)) for text, digits in pieces)
    return list(chain.from_iterable(numbered))


def _mode_of_jpeg(image: Image.Image, picture: Image.Image) -> str | None:
    """RGB or L if the file `image` is a JPEG that shows just what `picture` does, which lets it be
    put into a PDF as it is."""
    plain = (
        image.format == "JPEG"
        and image.mode in ("RGB", "L")
        and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        and image.size == picture.size
        and image.convert("RGB").tobytes() == picture.tobytes()
    )
    return image.mode if plain else None


def _resolution(image: Image.Image) -> list[float] | None:
    """Pixels an inch across and down as the file says, if it does."""
    stated = image.info.get("dpi")
    try:
        across, down = (float(one) for one in stated or ())
    except (TypeError, ValueError, ZeroDivisionError):  # a fraction of nothing, in a TIFF
        return None
    return [across, down] if math.isfinite(across) and math.isfinite(down) else None


def _upright(image: Image.Image, settings: RenderSettings) -> tuple[Image.Image, dict[str, Any]]:
    """The picture as RGB, turned as its EXIF flag says or, in place of that, as asked."""
    rotate, limits = settings.rotate, ImageLimits(max_pixels=settings.max_picture_pixels)
    check_pixels(image, "The image", limits)  # before its EXIF is asked for, which decodes a PNG
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    page = open_image(image, limits)
    turn = 0
    if rotate is not None:
        turn = (rotate - _TURN_OF_ORIENTATION.get(orientation, 0)) % 360
    page = page.rotate(-turn, expand=True) if turn else page  # Pillow turns the other way
    resolution = _resolution(image)
    if resolution and (page.width > page.height) != (image.width > image.height):
        resolution.reverse()
    return page, {"points": None, "rotation": turn, "dpi": resolution}


def open_document(path: Path, name: str, password: str | None) -> DocumentFile:
    """The document in the file `path`: a PDF, an archive of pictures, a picture; `name` is what
    messages call it. Raises `DocumentError` and `ImageError`."""
    try:
        if not path.is_file():  # also keeps out pipes and devices that never end
            raise DocumentError(f"{name} is no file; give a picture, a PDF or a zip of pictures.")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        raise DocumentError(f"{name} cannot be read: {error.strerror}.") from error
    if not size:
        raise DocumentError(f"{name} is empty (zero bytes); check where it came from.")
    if size > inputs.MAX_BYTES:
        raise DocumentError(f"{name} is larger than {inputs.MAX_BYTES >> 30} GiB; split it.")
    document = _KINDS[inputs.kind_of(head)](path, name, password)
    if not 1 <= document.count <= MAX_PAGES:
        what = "no pages" if document.count < 1 else f"more than {MAX_PAGES:,} pages"
        raise DocumentError(f"{name} has {what}; check where it came from.")
    return document


_KINDS: dict[str, Callable[[Path, str, str | None], DocumentFile]] = {
    "pdf": PdfFile, "zip": _PictureArchive, "picture": _PictureFile,
}  # fmt: skip
