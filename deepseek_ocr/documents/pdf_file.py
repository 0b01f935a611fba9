"""A PDF, opened with PDFium; its pages as pictures."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pypdfium2
from PIL import Image

from deepseek_ocr.errors import DocumentError
from deepseek_ocr.settings import RenderSettings

POINTS_PER_INCH = 72

_MOST_CHARACTERS = 20_000
"""Of a page that are looked at to tell what text it has."""


class PdfFile:
    """A PDF; its file is read as pages are asked for, never whole."""

    kind = "pdf"
    left_out = 0

    def __init__(self, path: Path, name: str, password: str | None) -> None:
        self._name = name
        # PDFium says why the last document failed that said so; let that be an empty one, not a
        # locked one, where the next fails without a word.
        pypdfium2.raw.FPDF_LoadMemDocument(b"", 0, None)
        try:
            self._pdf = pypdfium2.PdfDocument(path, password=password)
        except pypdfium2.PdfiumError as error:
            reason = (
                f"{name} is damaged, has no pages, or is no PDF that can be opened ({error}); "
                "save it again, or repair it, for example with: qpdf IN.pdf OUT.pdf"
            )
            if "password" in str(error).lower():
                reason = encrypted_reason(name, password is not None)
            raise DocumentError(reason) from error
        self.count = len(self._pdf)
        with suppress(pypdfium2.PdfiumError):  # a damaged form is no reason not to read the page
            self._pdf.init_forms()

    def render(self, index: int, settings: RenderSettings) -> tuple[Image.Image, dict[str, Any]]:
        """See `document_files.DocumentFile.render`. Raises `DocumentError`."""
        try:
            page = self._pdf[index]
            try:
                return self._picture(page, settings)
            finally:
                page.close()
        except pypdfium2.PdfiumError as error:
            what = f"Page {index + 1} of {self._name} is damaged ({error})"
            raise DocumentError(f"{what}; save the document again.") from error

    def _picture(
        self, page: pypdfium2.PdfPage, settings: RenderSettings
    ) -> tuple[Image.Image, dict[str, Any]]:
        width, height = page.get_size()
        rotate = settings.rotate
        turn = 0 if rotate is None else (rotate - page.get_rotation()) % 360
        scale = _scale(width, height, settings.dpi, settings.max_pixels)
        bitmap = page.render(scale=scale, rotation=turn, rev_byteorder=True)
        picture = bitmap.to_pil().convert("RGB")
        bitmap.close()
        text = _own_text(page)
        return picture, {"points": [width, height], "rotation": turn, "own_text": text}

    def close(self) -> None:
        """Close the file."""
        self._pdf.close()


def _own_text(page: pypdfium2.PdfPage) -> str | None:
    """What text the page has before it is read: "visible", "invisible" if at least half of it is
    (the layer of an earlier reading), or "none"; None if that cannot be told."""
    try:
        text = page.get_textpage()
    except pypdfium2.PdfiumError:  # its picture is there all the same
        return None
    try:
        signs: Counter[bool] = Counter()  # by whether they are invisible
        for at in range(min(text.count_chars(), _MOST_CHARACTERS)):
            if chr(pypdfium2.raw.FPDFText_GetUnicode(text, at)).isspace():
                continue
            if pypdfium2.raw.FPDFText_IsGenerated(text, at) == 1:
                continue  # a space or a line's end that nothing draws
            piece = pypdfium2.raw.FPDFText_GetTextObject(text, at)
            mode = pypdfium2.raw.FPDFTextObj_GetTextRenderMode(piece)
            signs[mode == pypdfium2.raw.FPDF_TEXTRENDERMODE_INVISIBLE] += 1
    finally:
        text.close()
    if not signs:
        return "none"
    return "invisible" if signs[True] >= signs[False] else "visible"


def _scale(width: float, height: float, dpi: int, most: int) -> float:
    """Pixels a point for a page of `width` x `height` points: as `dpi` says, or fewer, so that the
    page has `most` pixels or fewer."""
    area, longest = max(width * height, 1e-6), max(width, height, 1e-6)
    scale = min(dpi / POINTS_PER_INCH, math.sqrt(most / area), most / longest)
    if math.ceil(width * scale) * math.ceil(height * scale) > most:  # sides are rounded up
        sides = (max(1, math.floor(side * scale)) / side for side in (width, height))
        scale = min(sides) * (1 - 1e-9)  # or a rounding error adds a pixel again
    return scale


def encrypted_reason(name: str, password_given: bool) -> str:
    """Why the document called `name` cannot be opened, and what to do."""
    if password_given:
        return f"{name} is encrypted and the password given does not open it; check the password."
    return f"{name} is encrypted; give its password."
