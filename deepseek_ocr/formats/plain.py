"""Plain text of a document, without markup."""

from __future__ import annotations

from collections.abc import Iterator

from deepseek_ocr.formats import safe_html
from deepseek_ocr.formats.markdown import cleaned
from deepseek_ocr.formats.tables import PageText, page_texts
from deepseek_ocr.records import DocumentRecord


def plain_lines(markdown: str) -> list[str]:
    """The lines of cleaned Markdown without its markup; cells of tables are parted by tabs."""
    return safe_html.lines_of(safe_html.to_html(markdown))


def write_plain(document: DocumentRecord, join_tables: bool) -> Iterator[str]:
    """The text of every page, each ended by a form feed as `pdftotext` does."""
    for page in page_texts(document.pages, join_tables):
        lines = _lines(page)
        yield "".join(f"{line}\n" for line in lines) + "\f"


def _lines(page: PageText) -> list[str]:
    if page.record.error is not None:
        return [f"[page {page.record.number} could not be read]"]
    before, after = cleaned(page)
    joined = [
        line
        for group in page.groups
        for row in group.rows
        for line in safe_html.lines_of(safe_html.table_html([(group.page, row.html)]))
    ]
    return [*plain_lines(before), *joined, *plain_lines(after)]
