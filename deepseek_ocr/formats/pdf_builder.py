"""The pages of a document as a new PDF: the original's own where there are any, else pictures.

Pages are added one at a time. Of a PDF the library keeps the page objects that were touched and
what was added to them (a few kilobytes a page), never its pictures. Pages made of pictures are put
on disk in parts as they come, so memory does not grow with them.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import pikepdf
from PIL import Image

from deepseek_ocr.files import atomic_write, part_path
from deepseek_ocr.formats.pdf_images import add_picture_page, stored_jpeg
from deepseek_ocr.formats.records import DocumentRecord, PageRecord
from deepseek_ocr.formats.writing import PdfPages, WriteContext
from deepseek_ocr.grounding.geometry import Rectangle, picture_size

_PART_PAGES = 50
_PART_BYTES = 32 * 2**20
_DEEPEST = 50
"""Levels of a page tree that are searched for what a page inherits."""

_A4 = (595.0, 842.0)
_UNUSABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError,
             OverflowError, NotImplementedError, pikepdf.PdfError,
             pikepdf.PasswordError)  # fmt: skip
"""What the PDF library raises for objects that are not what they should be."""


@dataclass(frozen=True)
class Leaf:
    """One page of the new PDF and where its picture lies.

    `crop` is the visible part of the page in user space, `turned` the degrees clockwise from it
    to the upright picture. `is_original` is False for a page made from its picture.
    """

    pdf: pikepdf.Pdf
    page: pikepdf.Page
    crop: Rectangle
    turned: int
    is_original: bool = True

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the upright picture in points."""
        return picture_size(self.crop, self.turned)


TextOutcome = Literal["skipped", "replaced", "redrawn"]
"""What a decorator did with a page that has text of its own: nothing; replaced its invisible text;
or replaced the page by its picture with the text that was read."""


@dataclass(frozen=True)
class Decorator:
    """What is put on the pages of one PDF: `page` for each, `finish` after the last of it. `page`
    may raise `PictureWantedError` for an original page before it has changed anything."""

    page: Callable[[Leaf, PageRecord], TextOutcome | None]
    finish: Callable[[], None]


DecoratorFor = Callable[[pikepdf.Pdf], Decorator]
"""Makes the decorator of a new PDF."""


class PictureWantedError(Exception):
    """An original page is to be replaced by its picture before it is decorated."""


_PageOutcome = tuple[int, TextOutcome | None, str | None]
"""A page's number, what became of its own text, and why it was rebuilt, if it was."""


def _summary(pages: Sequence[_PageOutcome]) -> PdfPages:
    def with_text(*outcomes: TextOutcome) -> tuple[int, ...]:
        return tuple(number for number, outcome, _ in pages if outcome in outcomes)

    rebuilt = {number: reason for number, _, reason in pages if reason is not None}
    return PdfPages(
        skipped=with_text("skipped"),
        replaced=with_text("replaced", "redrawn"),
        redrawn=with_text("redrawn"),
        rebuilt=tuple(rebuilt),
        reasons=tuple(dict.fromkeys(rebuilt.values())),
    )


class _RenderError(Exception):
    """A page's picture could not be made; the cause says why."""


class _UnusableError(Exception):
    """An original that is not to be used; the message says why."""


def build_pdf(
    document: DocumentRecord, context: WriteContext, path: Path, decorator_for: DecoratorFor
) -> PdfPages:
    """Write the pages of `document`, each as its decorator leaves it, to the PDF file `path`.

    A page whose original cannot be used is rendered; one that cannot be rendered either, and has
    no text, is blank. Bookmarks and attachments of a PDF stay; its encryption does not.
    """
    builder = _PdfBuilder(document, context, decorator_for)
    reason = None
    try:
        if document.kind == "pdf":
            try:
                return builder.write_original(path)
            except _UnusableError as error:
                reason = str(error)
        return builder.write_pictures(path, reason)
    except _RenderError as error:
        raise error.__cause__ or error from None


def _in_words(error: Exception) -> str:
    """Why the PDF library cannot use an original."""
    if isinstance(error, pikepdf.PasswordError):
        return "parts of the original are encrypted in a way that keeps it from being copied"
    if isinstance(error, OSError):
        return f"the original cannot be read any more ({error.strerror})"
    return "the original is damaged in a way that keeps it from being copied"


class _PdfBuilder:
    """Builds one PDF of a document."""

    def __init__(
        self, document: DocumentRecord, context: WriteContext, decorator_for: DecoratorFor
    ) -> None:
        self._document, self._context = document, context
        self._decorator_for = decorator_for

    def write_original(self, path: Path) -> PdfPages:
        """Write the original's own pages. Raises `_UnusableError` if the library cannot."""
        password = self._context.password or ""
        try:
            pdf = pikepdf.open(self._document.source, password=password, suppress_warnings=True)
        except (OSError, *_UNUSABLE) as error:
            raise _UnusableError(_in_words(error)) from error
        with pdf:
            try:
                outcomes = self._decorate_original(pdf)
                _save(pdf, path)
            except _UNUSABLE as error:
                raise _UnusableError(_in_words(error)) from error
        return outcomes

    def write_pictures(self, path: Path, reason: str | None) -> PdfPages:
        """Write every page as its picture; `reason` says why, if the source is a PDF."""
        outcomes: list[_PageOutcome] = []
        with ExitStack() as stack:
            scratch = part_path(path).with_suffix(".pages")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            whole = stack.enter_context(pikepdf.new())
            whole.docinfo["/Title"] = self._document.name
            for number, part in enumerate(self._parts(reason, outcomes)):
                place = scratch / f"{number}.pdf"
                with part:
                    part.save(place)
                whole.pages.extend(stack.enter_context(pikepdf.open(place)).pages)
            _save(whole, path)
        return _summary(outcomes)

    def _decorate_original(self, pdf: pikepdf.Pdf) -> PdfPages:
        originals = len(pdf.pages)
        wanted: list[Any] = []
        decorator = self._decorator_for(pdf)
        outcomes: list[_PageOutcome] = []
        for record in self._document.pages:
            reason = None
            try:
                leaf = _leaf_of(pdf, record, originals)
                outcome = decorator.page(leaf, record)
            except (PictureWantedError, _UnusableError) as error:
                reason = str(error) if isinstance(error, _UnusableError) else None
                leaf = self._pictured(pdf, record)
                outcome = decorator.page(leaf, record)
            outcomes.append((record.number, outcome, reason))
            wanted.append(leaf.page.obj)
        decorator.finish()
        if [page.objgen for page in wanted] != [page.obj.objgen for page in pdf.pages]:
            del pdf.pages[:]
            for page in wanted:
                pdf.pages.append(pikepdf.Page(page))
        return _summary(outcomes)

    def _parts(self, reason: str | None, outcomes: list[_PageOutcome]) -> Iterator[pikepdf.Pdf]:
        """The pages as pictures, in PDFs of `_PART_PAGES` pages or some more than `_PART_BYTES`."""
        records = iter(self._document.pages)
        for first in records:
            pdf, held = pikepdf.new(), 0
            decorator = self._decorator_for(pdf)
            for record in chain([first], records):
                leaf = self._pictured(pdf, record)
                held += len(leaf.page.obj.Resources.XObject.Page.read_raw_bytes())
                outcomes.append((record.number, decorator.page(leaf, record), reason))
                if held > _PART_BYTES or len(pdf.pages) >= _PART_PAGES:
                    break
            decorator.finish()
            yield pdf

    def _pictured(self, pdf: pikepdf.Pdf, record: PageRecord) -> Leaf:
        """A new page of `pdf` that shows the picture of the page; blank for one without."""
        document = self._document
        image = self._picture_of(record)
        single = document.kind == "image" and record.rotation == 0 and len(document.pages) == 1
        jpeg = stored_jpeg(document.source, image) if single else None
        size = record.points and picture_size((0, 0, *record.points), record.rotation)
        page = add_picture_page(pdf, image, jpeg, size)
        width, height = (float(side) for side in page.mediabox[2:])
        return Leaf(pdf, page, (0.0, 0.0, width, height), 0, is_original=False)

    def _picture_of(self, record: PageRecord) -> Image.Image:
        try:
            return self._context.render(record.number)
        except Exception as error:  # not to be taken for a fault of the original
            if record.error is None:
                raise _RenderError from error
        # That it failed is known and reported; a blank sheet of its size keeps its place.
        sides = record.points or _A4
        size = tuple(min(max(round(side), 3), 14_400) for side in sides)
        blank = Image.new("1", (size[0], size[1]), 1)
        blank.info["dpi"] = (72.0, 72.0)
        return blank


def _save(pdf: pikepdf.Pdf, path: Path) -> None:
    with atomic_write(path) as stream, warnings.catch_warnings():
        # Form fields that are not listed in the form are so in the original too.
        warnings.simplefilter("ignore", pikepdf.PageCopyWarning)
        # XMP metadata that are no XML stay as they are: putting a version into them fails.
        pdf.save(stream, stream_decode_level=pikepdf.StreamDecodeLevel.none,
                 object_stream_mode=pikepdf.ObjectStreamMode.generate,
                 fix_metadata_version=False)  # fmt: skip


def _leaf_of(pdf: pikepdf.Pdf, record: PageRecord, originals: int) -> Leaf:
    """The original page of `record`. Raises `_UnusableError` if it is not to be used as it is."""
    if record.number > originals:
        raise _UnusableError("the page is missing in the damaged original's list of pages")
    try:
        page = pdf.pages[record.number - 1]
        turn = inherited(page, "/Rotate")
        own = int(turn) // 90 * 90 % 360 if turn is not None else 0
        crop = _visible(page)
        _check_contents(page)
    except _UNUSABLE as error:
        raise _UnusableError("the page's own description is damaged") from error
    if record.points is not None and not _same_shape(picture_size(crop, own), record.points):
        raise _UnusableError("the size of the page in the damaged original is uncertain")
    turned = (own + record.rotation) % 360
    page.obj.Rotate = turned
    return Leaf(pdf, page, crop, turned)


def inherited(page: pikepdf.Page, name: str) -> Any:
    """An entry of the page or of what it inherits from; None without one."""
    node: Any = page.obj
    for _ in range(_DEEPEST):
        if name in node:
            return node[name]
        if "/Parent" not in node:
            return None
        node = node["/Parent"]
    return None


def _visible(page: pikepdf.Page) -> Rectangle:
    """The crop box within the media box, as the renderer sees it."""
    media = _rectangle(inherited(page, "/MediaBox")) or (0.0, 0.0, 612.0, 792.0)
    crop = _rectangle(inherited(page, "/CropBox")) or media
    left, bottom = max(media[0], crop[0]), max(media[1], crop[1])
    right, top = min(media[2], crop[2]), min(media[3], crop[3])
    return (left, bottom, right, top) if left < right and bottom < top else media


def _rectangle(box: Any) -> Rectangle | None:
    if box is None or len(box) != 4:
        return None
    x1, y1, x2, y2 = (float(value) for value in box)
    found = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    return found if found[0] < found[2] and found[1] < found[3] else None


def _same_shape(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """True where both have about the same sides; the renderer may count in other units."""
    return abs(one[0] * other[1] - one[1] * other[0]) <= 0.02 * one[0] * other[1] + 4


def _check_contents(page: pikepdf.Page) -> None:
    """Raise `TypeError` where what will be added to is not of the type it must be."""
    resources = inherited(page, "/Resources")
    fonts = resources.get("/Font") if isinstance(resources, pikepdf.Dictionary) else None
    for name, value, kinds in (
        ("contents", page.obj.get("/Contents"), (pikepdf.Stream, pikepdf.Array)),
        ("resources", resources, pikepdf.Dictionary),
        ("fonts", fonts, pikepdf.Dictionary),
        ("annotations", page.obj.get("/Annots"), pikepdf.Array),
    ):
        if value is not None and not isinstance(value, kinds):
            raise TypeError(name)
