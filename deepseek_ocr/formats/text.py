"""Plain text of a document, without markup."""

from __future__ import annotations

from collections.abc import Iterator

from deepseek_ocr.formats.joined_tables import PageContent, page_contents
from deepseek_ocr.formats.records import DocumentRecord
from deepseek_ocr.formats.writing import WriteContext
from deepseek_ocr.markup import blocks_in, plain_lines, plain_rows


def write_plain(document: DocumentRecord, context: WriteContext) -> Iterator[str]:
    """The text of every page, each ended by a form feed as `pdftotext` does."""
    for page in page_contents(document.pages, context.options.join_tables):
        yield "".join(f"{line}\n" for line in _lines(page)) + "\f"


def _lines(page: PageContent) -> Iterator[str]:
    if page.record.error is not None:
        yield f"[page {page.record.number} could not be read]"
        return
    yield from plain_lines(blocks_in(page.before))
    yield from plain_rows([row for group in page.groups for row in group.rows])
    yield from plain_lines(blocks_in(page.after))
