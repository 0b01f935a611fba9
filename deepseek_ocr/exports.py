"""Every output of a document, by the names users ask for; and readings as JSON data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from deepseek_ocr import grounding
from deepseek_ocr.engine import Failure, Reading
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.figures import FOLDER, figure_crops, save_figures
from deepseek_ocr.files import replacing
from deepseek_ocr.formats import data, html, layout_pdf, markdown, plain, searchable_pdf
from deepseek_ocr.markup import Delimiters
from deepseek_ocr.records import DocumentRecord, PageRecord, page_record

__all__ = [
    "FORMATS",
    "TEXT_FORMATS",
    "document_to_json",
    "figure_crops",
    "page_to_json",
    "save_figures",
    "text_of",
    "write",
]

FORMATS = {
    "md": "cleaned Markdown, figures as files under images/",
    "html": "one self-contained page with tables, figures and formulas",
    "json": "pages and regions with boxes, confidence, tries, counts, timings, settings",
    "txt": "plain text without markup, pages parted by form feeds",
    "mmd": "what the official PDF script writes: NAME.mmd and NAME_det.mmd",
    "pdf": "the pages with their regions drawn and labelled (NAME_layouts.pdf)",
    "searchable-pdf": "the pages with an invisible text layer, to search and copy (NAME.pdf)",
    "regions": "one region a line as JSON (NAME.regions.jsonl)",
}
"""What a document can be written as: name → what it is."""

TEXT_FORMATS = ("md", "html", "json", "txt", "mmd", "regions")
"""Those that `text_of` can give to a pipe."""

_WITH_FIGURES = frozenset({"md", "html", "mmd"})
_ENDINGS = {"regions": "regions.jsonl"}
_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0]{1,200}")


def write(
    document: DocumentRecord,
    formats: Sequence[str],
    folder: Path,
    render: Callable[[int], Image.Image],
    *,
    join_tables: bool = True,
    formulas: Delimiters = "dollars",
    password: str | None = None,
) -> list[Path]:
    """Write `document` in each of `formats` into `folder`; the files written, named after it.

    `render(number)` gives the upright picture of page `number` (from 1) as it was read. `password`
    opens an encrypted PDF. Pages are taken from `document.pages` one at a time, once a format;
    every file appears whole or not at all. Figures whose files are gone are cut out anew.

    Raises `SettingsError` for an unknown format or a name that is no file name, `OSError` where
    the disk takes no more, and what `render` raises for a page that was read.
    """
    for name in formats:
        _check_format(name, FORMATS)
    if not _NAME.fullmatch(document.name):
        raise SettingsError(f"{document.name!r} cannot be the name of files; give another name.")
    folder.mkdir(parents=True, exist_ok=True)
    if _WITH_FIGURES & set(formats):
        _restore_figures(document, folder, render)
    written = []
    for name in dict.fromkeys(formats):
        if name in TEXT_FORMATS:
            path = folder / f"{document.name}.{_ENDINGS.get(name, name)}"
            pieces = text_of(document, name, folder, join_tables=join_tables, formulas=formulas)
            _write_text(path, pieces)
            written.append(path)
        if name == "mmd":
            written.append(folder / f"{document.name}_det.mmd")
            _write_text(written[-1], markdown.write_official_tagged(document))
        if name == "pdf":
            written.append(folder / f"{document.name}_layouts.pdf")
            layout_pdf.write_layout_pdf(document, render, written[-1], password)
        if name == "searchable-pdf":
            written.append(folder / f"{document.name}.pdf")
            searchable_pdf.write_searchable_pdf(document, render, written[-1], password)
    return written


def text_of(
    document: DocumentRecord,
    name: str,
    folder: Path,
    *,
    join_tables: bool = True,
    formulas: Delimiters = "dollars",
) -> Iterator[str]:
    """`document` in one of `TEXT_FORMATS`, a piece a page, for files and for pipes.

    `folder` is where the figures lie; only html opens them. Raises `SettingsError` for a format
    that is not text.
    """
    _check_format(name, TEXT_FORMATS)
    writers: dict[str, Callable[[], Iterator[str]]] = {
        "md": lambda: markdown.write_markdown(document, join_tables, formulas),
        "html": lambda: html.write_html(document, join_tables, folder),
        "json": lambda: data.write_json(document),
        "txt": lambda: plain.write_plain(document, join_tables),
        "mmd": lambda: markdown.write_official(document),
        "regions": lambda: data.write_regions(document),
    }
    return writers[name]()


def page_to_json(outcome: Reading | Failure, source: str) -> dict[str, Any]:
    """One page that stands for itself as JSON data, with where it came from as `source`.

    A page that failed has `error` in place of all it would have said; `more_pages` tells that the
    file holds pages which were not read.
    """
    if isinstance(outcome, Failure):
        record = PageRecord(1, error=str(outcome))
        return {"source": source, **data.page_data(record)}
    found = data.page_data(page_record(1, outcome), grounding.figure_name)
    return {"source": source, **found, "more_pages": outcome.more_pages}


def document_to_json(pages: list[dict[str, Any]]) -> dict[str, Any]:
    """Pages of `page_to_json` as one document, in the shape of the `json` format."""
    return {"version": data.VERSION, "pages": pages}


def _check_format(name: str, known: Sequence[str] | dict[str, str]) -> None:
    if name not in known:
        raise SettingsError(f"There is no format {name!r} here; choose among {', '.join(known)}.")


def _write_text(path: Path, pieces: Iterator[str]) -> None:
    with replacing(path) as stream:
        for piece in pieces:
            stream.write(piece.encode("utf-8", "replace"))


def _restore_figures(
    document: DocumentRecord, folder: Path, render: Callable[[int], Image.Image]
) -> None:
    """Cut out again what the records name and the folder lacks."""
    for record in document.pages:
        missing = [
            name for name in record.figures if name and not (folder / FOLDER / name).exists()
        ]
        if missing and record.error is None:
            save_figures(render(record.number), record.regions, record.number, folder)
