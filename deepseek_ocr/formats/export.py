"""Documents in the formats that users ask for; and pages that stand for themselves as JSON data."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepseek_ocr.engine.results import Failure, Reading
from deepseek_ocr.errors import OcrError, OutputError, SettingsError
from deepseek_ocr.files import atomic_write
from deepseek_ocr.formats import FORMATS, Format, find_format, json_document
from deepseek_ocr.formats.figures import FOLDER, save_figures
from deepseek_ocr.formats.records import DocumentRecord, PageRecord, page_record
from deepseek_ocr.formats.writing import PdfPages, Render, WriteContext, WriteOptions
from deepseek_ocr.grounding import parser

_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0]{1,200}")


@dataclass(frozen=True)
class WrittenFiles:
    """What `write` has written: the files in the order of the formats, and what became of the
    pages of those that are PDFs, by format."""

    files: tuple[Path, ...]
    pdfs: Mapping[str, PdfPages] = field(default_factory=dict)


def write(
    document: DocumentRecord,
    formats: Sequence[str],
    folder: Path,
    render: Render,
    options: WriteOptions = WriteOptions(),
    password: str | None = None,
) -> WrittenFiles:
    """Write `document` in each of `formats` into `folder`; the files are named after it.

    `render` gives the pictures of pages; `password` opens an encrypted PDF. Pages are taken from
    `document.pages` one at a time, once a format; every file appears whole or not at all. Figures
    whose files are gone are cut out anew.

    Raises `SettingsError` for an unknown format or a name that no file can have. Raises
    `OutputError` if a format could not be written; the others are written all the same.
    """
    chosen = [find_format(name) for name in dict.fromkeys(formats)]
    if not _NAME.fullmatch(document.name):
        raise SettingsError(f"{document.name!r} cannot be the name of files; give another name.")
    folder.mkdir(parents=True, exist_ok=True)
    pdfs: dict[str, PdfPages] = {}
    context = WriteContext(folder, options, render, password, pdfs)
    written: dict[str, list[Path]] = {one.name: [] for one in chosen}
    failed: dict[str, str] = {}
    restored = False
    # JSON says what became of the pages of the PDFs, so those come first.
    for one in sorted(chosen, key=lambda one: one.is_text):
        try:
            if one.uses_figures and not restored:
                _restore_figures(document, context)
                restored = True
            _write_format(one, document, context, written[one.name], pdfs)
        except Exception as error:  # one format must not keep the next from being written
            failed[one.name] = _reason(error)
            cause = error
    files = tuple(path for one in chosen for path in written[one.name])
    if failed:
        raise OutputError(failed, files) from cause
    return WrittenFiles(files, pdfs)


def _write_format(
    one: Format,
    document: DocumentRecord,
    context: WriteContext,
    written: list[Path],
    pdfs: dict[str, PdfPages],
) -> None:
    """Write the files of one format. `written` gets the path of each that is complete, `pdfs` what
    became of the pages of a PDF."""
    for suffix, writer in one.writers().items():
        path = context.folder / f"{document.name}{suffix}"
        if one.is_text:
            _write_text(path, writer(document, context))
        else:
            pdfs[one.name] = writer(document, context, path)
        written.append(path)


def _reason(error: Exception) -> str:
    """Why a format could not be written, in words."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, OcrError):
        return str(error).rstrip(".")
    return f"unexpected {type(error).__name__}: {error}"


def _write_text(path: Path, pieces: Iterable[str]) -> None:
    with atomic_write(path) as stream:
        for piece in pieces:
            stream.write(piece.encode("utf-8", "replace"))


def text_of(
    document: DocumentRecord, name: str, folder: Path, options: WriteOptions = WriteOptions()
) -> Iterator[str]:
    """`document` in a format that is text, a piece a page; of several files, the first.

    `folder` holds the figures; only html opens them. Raises `SettingsError` for a format that is
    unknown or not text.
    """
    if not find_format(name).is_text:
        known = ", ".join(one.name for one in FORMATS.values() if one.is_text)
        raise SettingsError(f"The format {name} is not text; choose among {known}.")
    writer = next(iter(FORMATS[name].writers().values()))
    pieces: Iterator[str] = writer(document, WriteContext(folder, options))
    return pieces


def page_to_json(outcome: Reading | Failure, source: str) -> dict[str, Any]:
    """One page that stands for itself as JSON data, with where it came from as `source`.

    A page that failed has `error` in place of all it would have said; `more_pages` tells that the
    file holds pages which were not read.
    """
    if isinstance(outcome, Failure):
        record = PageRecord(1, error=str(outcome))
        return {"source": source, **json_document.page_data(record)}
    found = json_document.page_data(page_record(1, outcome), parser.figure_name)
    return {"source": source, **found, "more_pages": outcome.more_pages}


def document_to_json(pages: list[dict[str, Any]]) -> dict[str, Any]:
    """Pages of `page_to_json` as one document, in the shape of the `json` format."""
    return {"version": json_document.VERSION, "pages": pages}


def _restore_figures(document: DocumentRecord, context: WriteContext) -> None:
    """Cut out again the figures that the records name and the folder lacks."""
    for record in document.pages:
        files = (context.folder / FOLDER / name for name in record.figures if name)
        if record.error is None and not all(file.exists() for file in files):
            picture = context.render(record.number)
            save_figures(picture, record.regions, record.number, context.folder)
