"""Every output of a document, by the names users ask for; and readings as JSON data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from deepseek_ocr.engine.results import Failure, Reading
from deepseek_ocr.errors import OcrError, OutputError, SettingsError
from deepseek_ocr.files import atomic_write
from deepseek_ocr.formats import html, json_document, layout_pdf, markdown, searchable_pdf, text
from deepseek_ocr.formats.figures import FOLDER, figure_crops, save_figures
from deepseek_ocr.formats.pdf_builder import PdfPages
from deepseek_ocr.formats.records import DocumentRecord, PageRecord, page_record
from deepseek_ocr.grounding import parser
from deepseek_ocr.settings import ExistingText, FormulaDelimiters

__all__ = [
    "FORMATS",
    "TEXT_FORMATS",
    "PdfPages",
    "Written",
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
_ENDINGS = {"regions": ".regions.jsonl"}
_PDFS = {"pdf": "_layouts.pdf", "searchable-pdf": ".pdf"}
"""Formats that are PDFs → how their files end."""

_NAME = re.compile(r"(?!\.{1,2}$)[^/\\\0]{1,200}")


@dataclass(frozen=True)
class Written:
    """What `write` has written: the files in the order of the formats, and what became of the
    pages of those that are PDFs, by format."""

    files: tuple[Path, ...]
    pdfs: Mapping[str, PdfPages] = field(default_factory=dict)


def write(
    document: DocumentRecord,
    formats: Sequence[str],
    folder: Path,
    render: Callable[[int], Image.Image],
    *,
    join_tables: bool = True,
    formulas: FormulaDelimiters = "dollars",
    password: str | None = None,
    existing_text: ExistingText = "skip",
) -> Written:
    """Write `document` in each of `formats` into `folder`; the files written, named after it.

    `render(number)` gives the upright picture of page `number` (from 1) as it was read. `password`
    opens an encrypted PDF. Pages are taken from `document.pages` one at a time, once a format;
    every file appears whole or not at all. Figures whose files are gone are cut out anew.
    `formulas` is for Markdown: what stands around them.
    `existing_text` is for searchable PDFs: see `searchable_pdf.write_searchable_pdf`.

    Raises `SettingsError` for an unknown format or a name that no file can have. Raises
    `OutputError` if a format could not be written; the others are written all the same.
    """
    for name in formats:
        _check_format(name, FORMATS)
    if not _NAME.fullmatch(document.name):
        raise SettingsError(f"{document.name!r} cannot be the name of files; give another name.")
    writer = _Writer(document, folder, render, join_tables, formulas, password, existing_text)
    folder.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    # JSON tells what became of the pages of the PDFs, so those come first.
    for name in sorted(dict.fromkeys(formats), key=lambda name: name not in _PDFS):
        try:
            writer.write(name)
        except Exception as error:  # one format must not keep the next from being written
            failed[name] = _reason(error)
            cause = error
    order = [path for name in dict.fromkeys(formats) for path in writer.files.get(name, ())]
    if failed:
        raise OutputError(failed, order) from cause
    return Written(tuple(order), writer.pdfs)


def _reason(error: Exception) -> str:
    """Why a format could not be written, in words."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, OcrError):
        return str(error).rstrip(".")
    return f"unexpected {type(error).__name__}: {error}"


class _Writer:
    """Writes one document in one format after the other; `files` and `pdfs` say what was done."""

    def __init__(
        self,
        document: DocumentRecord,
        folder: Path,
        render: Callable[[int], Image.Image],
        join_tables: bool,
        formulas: FormulaDelimiters,
        password: str | None,
        existing_text: ExistingText,
    ) -> None:
        self._document, self._folder, self._render = document, folder, render
        self._join_tables, self._formulas, self._password = join_tables, formulas, password
        self._existing_text: ExistingText = existing_text
        self._figures_restored = False
        self.files: dict[str, list[Path]] = {}
        self.pdfs: dict[str, PdfPages] = {}

    def write(self, name: str) -> None:
        """Write one format."""
        if name in _WITH_FIGURES and not self._figures_restored:
            _restore_figures(self._document, self._folder, self._render)
            self._figures_restored = True
        if name in _PDFS:
            self._write_pdf(name)
            return
        files = self.files.setdefault(name, [])
        pieces = text_of(
            self._document,
            name,
            self._folder,
            join_tables=self._join_tables,
            formulas=self._formulas,
            pdfs=self.pdfs,
        )
        files.append(self._text(_ENDINGS.get(name, f".{name}"), pieces))
        if name == "mmd":
            files.append(self._text("_det.mmd", markdown.write_official_tagged(self._document)))

    def _text(self, ending: str, pieces: Iterator[str]) -> Path:
        path = self._folder / f"{self._document.name}{ending}"
        _write_text(path, pieces)
        return path

    def _write_pdf(self, name: str) -> None:
        path = self._folder / f"{self._document.name}{_PDFS[name]}"
        if name == "pdf":
            pages = layout_pdf.write_layout_pdf(self._document, self._render, path, self._password)
        else:
            pages = searchable_pdf.write_searchable_pdf(
                self._document, self._render, path, self._password, self._existing_text
            )
        self.files[name], self.pdfs[name] = [path], pages


def text_of(
    document: DocumentRecord,
    name: str,
    folder: Path,
    *,
    join_tables: bool = True,
    formulas: FormulaDelimiters = "dollars",
    pdfs: Mapping[str, PdfPages] | None = None,
) -> Iterator[str]:
    """`document` in one of `TEXT_FORMATS`, a piece a page, for files and for pipes.

    `folder` is where the figures lie; only html opens them. `pdfs` is what JSON tells of the PDFs
    that were written. Raises `SettingsError` for a format that is not text.
    """
    _check_format(name, TEXT_FORMATS)
    writers: dict[str, Callable[[], Iterator[str]]] = {
        "md": lambda: markdown.write_markdown(document, join_tables, formulas),
        "html": lambda: html.write_html(document, join_tables, folder),
        "json": lambda: json_document.write_json(document, _pdf_data(pdfs or {})),
        "txt": lambda: text.write_plain(document, join_tables),
        "mmd": lambda: markdown.write_official(document),
        "regions": lambda: json_document.write_regions(document),
    }
    return writers[name]()


def _pdf_data(pdfs: Mapping[str, PdfPages]) -> dict[str, dict[str, Any]]:
    """What became of the pages of PDFs, of those in which anything did, as JSON data."""
    return {name: asdict(pages) for name, pages in pdfs.items() if pages != PdfPages()}


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


def _check_format(name: str, known: Sequence[str] | dict[str, str]) -> None:
    if name not in known:
        raise SettingsError(f"There is no format {name!r} here; choose among {', '.join(known)}.")


def _write_text(path: Path, pieces: Iterator[str]) -> None:
    with atomic_write(path) as stream:
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
