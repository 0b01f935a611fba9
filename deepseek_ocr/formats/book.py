"""The pages of a document as a new PDF: the original's own where there are any, else pictures.

Pages are added one at a time. Of a PDF the library keeps the page objects that were touched and
what was added to them (a few kilobytes a page), never its pictures. Pages made of pictures are put
on disk in parts as they come, so memory does not grow with them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pikepdf
from PIL import Image

from deepseek_ocr.files import part_of, replacing
from deepseek_ocr.formats.pictures import add_picture_page, stored_jpeg
from deepseek_ocr.geometry import Rectangle, picture_size
from deepseek_ocr.records import DocumentRecord, PageRecord

_PART_PAGES = 50
_PART_BYTES = 32 * 2**20
_DEEPEST = 50
"""Levels of a page tree that are searched for what a page inherits."""

_A4 = (595.0, 842.0)
_UNUSABLE = (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError,
             OverflowError, NotImplementedError, pikepdf.PdfError)  # fmt: skip
"""What the PDF library raises for objects that are not what they should be."""


@dataclass(frozen=True)
class Leaf:
    """One page of the new PDF and where its picture lies.

    `crop` is the visible part of the page in user space, `turned` the degrees clockwise from it
    to the upright picture.
    """

    pdf: pikepdf.Pdf
    page: pikepdf.Page
    crop: Rectangle
    turned: int

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the upright picture in points."""
        return picture_size(self.crop, self.turned)


Decorate = Callable[[Leaf, PageRecord], None]


@dataclass(frozen=True)
class Decorator:
    """What is put on the pages of one PDF: `page` for each, `finish` after the last of it."""

    page: Decorate
    finish: Callable[[], None]


def write_book(
    document: DocumentRecord,
    render: Callable[[int], Image.Image],
    decorator: Callable[[pikepdf.Pdf], Decorator],
    path: Path,
    password: str | None,
) -> None:
    """Write the pages of `document`, each as `decorator` leaves it, to the PDF file `path`.

    A page whose original cannot be used is `render`ed; one that cannot be rendered either, and
    has no text, is blank. Bookmarks and attachments of a PDF stay; its encryption does not.
    """
    with ExitStack() as stack:
        original = _open(document, password)
        if original is None:
            scratch = part_of(path).with_suffix(".pages")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            stack.callback(shutil.rmtree, scratch, ignore_errors=True)
            pdf = _of_pictures(document, render, decorator, scratch, stack)
        else:
            pdf = stack.enter_context(original)
            _of_original(pdf, document, render, decorator)
        with replacing(path) as stream:
            pdf.save(stream, stream_decode_level=pikepdf.StreamDecodeLevel.none,
                     object_stream_mode=pikepdf.ObjectStreamMode.generate)  # fmt: skip


def _open(document: DocumentRecord, password: str | None) -> pikepdf.Pdf | None:
    """The source as a PDF; None where it is none, or the library cannot make sense of it."""
    if document.kind != "pdf":
        return None
    try:
        return pikepdf.open(document.source, password=password or "", suppress_warnings=True)
    except (OSError, *_UNUSABLE):
        return None


def _of_original(
    pdf: pikepdf.Pdf,
    document: DocumentRecord,
    render: Callable[[int], Image.Image],
    decorator: Callable[[pikepdf.Pdf], Decorator],
) -> None:
    originals = len(pdf.pages)
    wanted: list[Any] = []
    marks = decorator(pdf)
    for record in document.pages:
        leaf = _leaf_of(pdf, record, originals) or _pictured(pdf, document, record, render)
        marks.page(leaf, record)
        wanted.append(leaf.page.obj)
    marks.finish()
    if [page.objgen for page in wanted] != [page.obj.objgen for page in pdf.pages]:
        del pdf.pages[:]
        for page in wanted:
            pdf.pages.append(pikepdf.Page(page))


def _of_pictures(
    document: DocumentRecord,
    render: Callable[[int], Image.Image],
    decorator: Callable[[pikepdf.Pdf], Decorator],
    scratch: Path,
    stack: ExitStack,
) -> pikepdf.Pdf:
    whole = stack.enter_context(pikepdf.new())
    whole.docinfo["/Title"] = document.name
    for number, part in enumerate(_parts(document, render, decorator)):
        path = scratch / f"{number}.pdf"
        with part:
            part.save(path)
        whole.pages.extend(stack.enter_context(pikepdf.open(path)).pages)
    return whole


def _parts(
    document: DocumentRecord,
    render: Callable[[int], Image.Image],
    decorator: Callable[[pikepdf.Pdf], Decorator],
) -> Iterator[pikepdf.Pdf]:
    """The pages as pictures, in PDFs of `_PART_PAGES` pages or some more than `_PART_BYTES`."""
    pdf: pikepdf.Pdf | None = None
    marks: Decorator | None = None
    held = 0
    for record in document.pages:
        if pdf is None or marks is None:
            pdf, held = pikepdf.new(), 0
            marks = decorator(pdf)
        leaf = _pictured(pdf, document, record, render)
        held += len(leaf.page.obj.Resources.XObject.Page.read_raw_bytes())
        marks.page(leaf, record)
        if held > _PART_BYTES or len(pdf.pages) >= _PART_PAGES:
            marks.finish()
            yield pdf
            pdf = marks = None
    if pdf is not None and marks is not None:
        marks.finish()
        yield pdf


def _pictured(
    pdf: pikepdf.Pdf,
    document: DocumentRecord,
    record: PageRecord,
    render: Callable[[int], Image.Image],
) -> Leaf:
    """A new page of `pdf` that shows the picture of the page; blank for one without."""
    image = _picture_of(record, render)
    single = document.kind == "image" and record.rotation == 0 and len(document.pages) == 1
    jpeg = stored_jpeg(document.source, image) if single else None
    page = add_picture_page(pdf, image, jpeg)
    width, height = (float(side) for side in page.mediabox[2:])
    return Leaf(pdf, page, (0.0, 0.0, width, height), 0)


def _picture_of(record: PageRecord, render: Callable[[int], Image.Image]) -> Image.Image:
    try:
        return render(record.number)
    except Exception:
        if record.error is None:
            raise
    # That it failed is known and told; its place is kept by an empty sheet of its size.
    sides = record.points or _A4
    size = tuple(min(max(round(side), 3), 14_400) for side in sides)
    blank = Image.new("1", (size[0], size[1]), 1)
    blank.info["dpi"] = (72.0, 72.0)
    return blank


def _leaf_of(pdf: pikepdf.Pdf, record: PageRecord, originals: int) -> Leaf | None:
    """The original page of `record`; None where it is not to be used as it is."""
    try:
        if record.number > originals:
            return None
        page = pdf.pages[record.number - 1]
        own = _own_turn(page)
        crop = _visible(page)
        if record.points is not None and not _same_shape(picture_size(crop, own), record.points):
            return None
        _check_contents(page)
    except _UNUSABLE:
        return None
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


def _own_turn(page: pikepdf.Page) -> int:
    turn = inherited(page, "/Rotate")
    return int(turn) // 90 * 90 % 360 if turn is not None else 0


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
    contents = page.obj.get("/Contents")
    if contents is not None and not isinstance(contents, (pikepdf.Stream, pikepdf.Array)):
        raise TypeError("contents")
    resources = inherited(page, "/Resources")
    if resources is not None and not isinstance(resources, pikepdf.Dictionary):
        raise TypeError("resources")
    for name in ("/Font", "/Annots"):
        holder = resources if name == "/Font" else page.obj
        value = None if holder is None else holder.get(name)
        kind = pikepdf.Dictionary if name == "/Font" else pikepdf.Array
        if value is not None and not isinstance(value, kind):
            raise TypeError(name)
