"""The process that opens documents and makes pictures of their pages: what is hostile stays in it.

It reads one request a line (JSON) and answers each with one line of JSON, behind which the pixels
of a page follow as bytes, RGB, row by row. Nothing else crosses: no pickle, no objects. It may
crash, hang or be killed at any time; `rendering.py` starts another.
"""

from __future__ import annotations

import io
import json
import math
import os
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pypdfium2
from PIL import ExifTags, Image

from deepseek_ocr.documents import inputs
from deepseek_ocr.errors import DocumentError, OcrError
from deepseek_ocr.images.limits import PICTURE_SUFFIXES, ImageLimits
from deepseek_ocr.images.loading import check_pixels, open_frames, open_image

POINTS_PER_INCH = 72

MAX_PAGES = 100_000
"""Most pages of a document, members of an archive, frames of a picture."""

_TURN_OF_ORIENTATION = {3: 180, 4: 180, 5: 270, 6: 90, 7: 90, 8: 270}
"""Degrees clockwise by which an EXIF orientation turns a picture (mirroring aside)."""

_TURNS = {
    90: Image.Transpose.ROTATE_270,  # Pillow turns the other way
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}


class _Document(Protocol):
    kind: str
    count: int

    def render(self, index: int, request: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
        """The page `index` (from 0), upright, RGB, and what to say of it."""

    def close(self) -> None: ...


class _Pdf:
    """A PDF; its file is read as pages are asked for, never whole."""

    kind = "pdf"

    def __init__(self, path: Path, name: str, password: str | None) -> None:
        self._name = name
        # PDFium says why the last document failed that said so; let that be an empty one, not a
        # locked one, where the next fails without a word.
        pypdfium2.raw.FPDF_LoadMemDocument(b"", 0, None)
        try:
            self._pdf = pypdfium2.PdfDocument(path, password=password)
        except pypdfium2.PdfiumError as error:
            raise DocumentError(self._why(str(error), password)) from error
        self.count = len(self._pdf)
        with suppress(pypdfium2.PdfiumError):  # a damaged form is no reason not to read the page
            self._pdf.init_forms()

    def _why(self, message: str, password: str | None) -> str:
        if "password" in message.lower():
            return _locked(self._name, password is not None)
        return (
            f"{self._name} is damaged, has no pages, or is no PDF that can be opened ({message}); "
            "save it again, or repair it, for example with: qpdf IN.pdf OUT.pdf"
        )

    def render(self, index: int, request: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
        try:
            page = self._pdf[index]
            try:
                return self._picture(page, request)
            finally:
                page.close()
        except pypdfium2.PdfiumError as error:
            raise DocumentError(
                f"Page {index + 1} of {self._name} is damaged ({error}); save the document again."
            ) from error

    def _picture(
        self, page: pypdfium2.PdfPage, request: dict[str, Any]
    ) -> tuple[Image.Image, dict[str, Any]]:
        width, height = page.get_size()
        rotate = request["rotate"]
        turn = 0 if rotate is None else (rotate - page.get_rotation()) % 360
        scale = _scale(width, height, request["dpi"], request["max_pixels"])
        bitmap = page.render(scale=scale, rotation=turn, rev_byteorder=True)
        picture = bitmap.to_pil().convert("RGB")
        bitmap.close()
        text = _own_text(page)
        return picture, {"points": [width, height], "rotation": turn, "own_text": text}

    def close(self) -> None:
        self._pdf.close()


_MOST_CHARACTERS = 20_000
"""Of a page that are looked at to tell what text it has."""


def _own_text(page: pypdfium2.PdfPage) -> str | None:
    """What text the page has before it is read: "visible", "invisible" if at least half of it is
    (the layer of an earlier reading), or "none"; None if that cannot be told."""
    try:
        text = page.get_textpage()
    except pypdfium2.PdfiumError:  # its picture is there all the same
        return None
    try:
        visible = invisible = 0
        for at in range(min(text.count_chars(), _MOST_CHARACTERS)):
            if chr(pypdfium2.raw.FPDFText_GetUnicode(text, at)).isspace():
                continue
            if pypdfium2.raw.FPDFText_IsGenerated(text, at) == 1:
                continue  # a space or a line's end that nothing draws
            piece = pypdfium2.raw.FPDFText_GetTextObject(text, at)
            mode = pypdfium2.raw.FPDFTextObj_GetTextRenderMode(piece)
            if mode == pypdfium2.raw.FPDF_TEXTRENDERMODE_INVISIBLE:
                invisible += 1
            else:
                visible += 1
    finally:
        text.close()
    if not visible and not invisible:
        return "none"
    return "invisible" if invisible >= visible else "visible"


def _scale(width: float, height: float, dpi: int, most: int) -> float:
    """Pixels a point for a page of `width` x `height` points: as `dpi` says, or fewer, so that the
    page has `most` pixels or fewer."""
    area, longest = max(width * height, 1e-6), max(width, height, 1e-6)
    scale = min(dpi / POINTS_PER_INCH, math.sqrt(most / area), most / longest)
    if math.ceil(width * scale) * math.ceil(height * scale) > most:  # sides are rounded up
        sides = (max(1, math.floor(side * scale)) / side for side in (width, height))
        scale = min(sides) * (1 - 1e-9)  # or a rounding error adds a pixel again
    return scale


class _Picture:
    """A picture file; every frame of a TIFF is a page, of others the first."""

    kind = "image"

    def __init__(self, path: Path, name: str, password: str | None) -> None:
        self._path, self._name = path, name
        self._image = open_frames(path, name)
        self._last = -1
        is_tiff = self._image.format == "TIFF"
        self.count = getattr(self._image, "n_frames", 1) if is_tiff else 1

    def render(self, index: int, request: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
        if index <= self._last:  # decoding turns a TIFF in place, so none is decoded twice
            self._image.close()
            self._image = open_frames(self._path, self._name)
        self._last = index
        if self.count > 1:
            self._image.seek(index)
        picture, about = _upright(self._image, request)
        if self.count == 1 and not about["rotation"]:
            about["stored_jpeg"] = _mode_of_jpeg(self._image, picture)
        return picture, about

    def close(self) -> None:
        self._image.close()


class _Archive:
    """A zip whose pictures, in the order of their names with numbers as numbers, are the pages."""

    kind = "image"

    def __init__(self, path: Path, name: str, password: str | None) -> None:
        self._name = name
        self._password = password.encode() if password else None
        self._zip = zipfile.ZipFile(path)
        members = [member for member in self._zip.infolist() if not member.is_dir()]
        if len(members) > MAX_PAGES:
            raise DocumentError(f"{self._name} has more than {MAX_PAGES:,} files; split it.")
        self._members = sorted(filter(_is_picture, members), key=lambda m: _natural(m.filename))
        self.count = len(self._members)
        self.left_out = len(members) - self.count

    def render(self, index: int, request: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
        member = self._members[index]
        limit = ImageLimits().max_bytes
        try:
            with self._zip.open(member, pwd=self._password) as file:
                data = file.read(limit + 1)  # what the archive says of sizes need not be true
            if len(data) > limit:
                raise ValueError(f"it is larger than {limit >> 20} MiB")
        except Exception as error:  # zipfile raises what its decoders trip over
            if member.flag_bits & _ENCRYPTED and "password" in str(error).lower():
                locked = _locked(self._name, self._password is not None)
                raise DocumentError(locked) from error
            raise DocumentError(
                f"{member.filename!r} in {self._name} cannot be unpacked ({error}); pack it again."
            ) from error
        name = f"{member.filename!r} in {self._name}"
        with open_frames(io.BytesIO(data), name) as image:
            return _upright(image, request)

    def close(self) -> None:
        self._zip.close()


_ENCRYPTED = 1
"""Bit of a zip member's flags: its data are encrypted."""


def _locked(name: str, password_given: bool) -> str:
    if password_given:
        return f"{name} is encrypted and the password given does not open it; check the password."
    return f"{name} is encrypted; give its password."


def _is_picture(member: zipfile.ZipInfo) -> bool:
    parts = member.filename.split("/")
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not hidden and Path(parts[-1]).suffix.lower() in PICTURE_SUFFIXES


def _natural(name: str) -> list[tuple[int, str]]:
    """A key by which `page 2` comes before `page 10`."""
    pieces: list[tuple[int, str]] = []
    digits = text = ""
    for sign in name.casefold() + "\0":
        if sign in "0123456789":
            digits += sign
            continue
        if digits:
            pieces += [(0, text), (int(digits[:18]), digits)]
            digits = text = ""
        text += sign
    return [*pieces, (0, text)]


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


def _upright(image: Image.Image, request: dict[str, Any]) -> tuple[Image.Image, dict[str, Any]]:
    """The picture as RGB, turned as its EXIF flag says or, in place of that, as asked."""
    rotate, limits = request["rotate"], ImageLimits(max_pixels=request["max_picture_pixels"])
    check_pixels(image, "The image", limits)  # before its EXIF is asked for, which decodes a PNG
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    page = open_image(image, limits)
    turn = 0
    if rotate is not None:
        turn = (rotate - _TURN_OF_ORIENTATION.get(orientation, 0)) % 360
    page = page.transpose(_TURNS[turn]) if turn else page
    resolution = _resolution(image)
    if resolution and (page.width > page.height) != (image.width > image.height):
        resolution.reverse()
    return page, {"points": None, "rotation": turn, "dpi": resolution}


def open_document(path: Path, name: str, password: str | None) -> _Document:
    """The document in the file `path`: a PDF, an archive of pictures, a picture.

    `name` is what messages call it.

    Raises `DocumentError` and `ImageError`.
    """
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


def _archive(path: Path, name: str, password: str | None) -> _Archive:
    try:
        return _Archive(path, name, password)
    except DocumentError:
        raise
    except Exception as error:  # zipfile raises many things over a damaged one
        raise DocumentError(f"{name} is a damaged archive ({error}); pack it again.") from error


_KINDS: dict[str, Callable[[Path, str, str | None], _Document]] = {
    "pdf": _Pdf, "zip": _archive, "picture": _Picture,
}  # fmt: skip


class _Server:
    """Answers requests, holding the last document open."""

    def __init__(self) -> None:
        self._document: _Document | None = None
        self._is: tuple[object, ...] | None = None

    def answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """A reply and the pixels behind it; an error is a reply too."""
        try:
            document = self._opened(request["path"], request["name"], request["password"])
            if request["page"] is None:
                left_out = getattr(document, "left_out", 0)
                return {
                    "kind": document.kind, "pages": document.count, "left_out": left_out,
                }, b""  # fmt: skip
            picture, about = document.render(request["page"] - 1, request)
        except OcrError as error:
            return {"error": str(error)}, b""
        except MemoryError:
            return {"error": "It takes more memory to open than is allowed; scale it down."}, b""
        except Exception as error:  # whatever a decoder trips over is said, not hidden
            return {
                "error": f"It is damaged ({type(error).__name__}: {error}); save it again."
            }, b""
        return about | {"width": picture.width, "height": picture.height}, picture.tobytes()

    def _opened(self, path: str, name: str, password: str | None) -> _Document:
        wanted = (path, password, *_version(path))
        if self._is != wanted or self._document is None:
            if self._document is not None:
                self._document.close()
            self._document, self._is = None, None
            self._document = open_document(Path(path), name, password)
            self._is = wanted
        return self._document


def _version(path: str) -> tuple[int, ...]:
    """What tells a file from another that comes to have its path later."""
    try:
        found = os.stat(path)
    except OSError:  # opening it will say why
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _limit_memory(more: int) -> None:
    """Let this process take at most `more` bytes of address space beyond what it has."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # a system that cannot be asked
        return
    most = pages * os.sysconf("SC_PAGE_SIZE") + more
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard == resource.RLIM_INFINITY or most < hard:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _leave_with(parent: int) -> None:
    """End when the parent has gone, also in the middle of a page that never ends."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _private_output() -> BinaryIO:
    """The pipe to the parent, out of reach of libraries that print."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe


_GIVES_WAY = 10
"""Pages are rendered ahead, so this process takes the moments in which the model leaves a core
free, instead of a core that the model computes on."""


def main() -> None:
    """Serve requests from standard input until it ends; `memory` is the one argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    output = _private_output()
    threading.Thread(target=partial(_leave_with, os.getppid()), daemon=True).start()
    Image.init()
    _limit_memory(int(sys.argv[1]))
    if hasattr(os, "nice"):
        os.nice(_GIVES_WAY)
    server = _Server()
    output.write(b"{}\n")
    output.flush()
    for line in sys.stdin.buffer:
        reply, pixels = server.answer(json.loads(line))
        output.write(json.dumps(reply).encode() + b"\n")
        output.write(pixels)
        output.flush()


if __name__ == "__main__":
    main()
