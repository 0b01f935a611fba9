"""Markdown of a document, and the two files of the official PDF script (`mmd`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

from deepseek_ocr.formats.figures import FOLDER
from deepseek_ocr.formats.joined_tables import Group, PageContent, page_contents, row_texts
from deepseek_ocr.formats.records import DocumentRecord, PageRecord
from deepseek_ocr.formats.writing import WriteContext
from deepseek_ocr.grounding import parser
from deepseek_ocr.markup import NameFigure, blocks_in, markdown_blocks, markdown_row
from deepseek_ocr.settings import FormulaDelimiters

PAGE_SPLIT = "\n\n<--- Page Split --->\n"
"""What the official script writes after every page."""

_ENDINGS = {
    "loop": "the model went in circles here; the text may repeat itself or be incomplete",
    "length": "the text reached its longest length here and may be cut",
    "timeout": "the time for the page was up here and the text is cut",
}


def write_markdown(document: DocumentRecord, context: WriteContext) -> Iterator[str]:
    """Markdown, page by page, each headed by a comment that says which it is."""
    for page in page_contents(document.pages, context.options.join_tables):
        notes = map(comment, [f"page {page.record.number}", *remarks(page)])
        yield "\n\n".join([*notes, *_body(page, context.options.formulas)]) + "\n\n"


def write_official(document: DocumentRecord, context: WriteContext) -> Iterator[str]:
    """`NAME.mmd`: tags removed, figures linked, pages parted as the official script does."""
    for record in document.pages:
        cleaned = official_clean(record.text, partial(figure_path, record))
        yield _official_mark(record) + cleaned + PAGE_SPLIT


def write_official_tagged(document: DocumentRecord, context: WriteContext) -> Iterator[str]:
    """`NAME_det.mmd`: the model's text with its tags, pages parted as the official script does."""
    for record in document.pages:
        yield _official_mark(record) + record.text + PAGE_SPLIT


def official_clean(text: str, name_of: Callable[[int], str]) -> str:
    """`text` as the official script cleans it, which keeps blank lines that we would not."""
    cleaned = parser.without_tags(text, name_of)
    removed = sum(not region.is_figure for region in parser.parse(text))
    for _ in range(removed):  # once a tag, as there; it soon changes nothing more
        shorter = cleaned.replace("\n\n\n\n", "\n\n").replace("\n\n\n", "\n\n")
        if shorter == cleaned:
            break
        cleaned = shorter
    return cleaned


def remarks(page: PageContent) -> list[str]:
    """What a reader must know of a page beside its text; nothing for most pages."""
    record = page.record
    if record.error is not None:
        return [f"page {record.number} could not be read: {record.error}"]
    found = []
    if record.finish_reason in _ENDINGS:
        found.append(f"page {record.number}: {_ENDINGS[record.finish_reason]}")
    if len(record.tries) > 1:
        tried = f"page {record.number} was tried {len(record.tries)} times"
        found.append(f"{tried}; this is try {record.kept + 1}")
    if page.continues is not None:
        table = f"the table at the top of page {record.number}"
        found.append(f"{table} stands with page {page.continues}")
    return found


def comment(text: str) -> str:
    """`text` as an HTML comment in one line, which nothing in it can end."""
    return f"<!-- {' '.join(text.split()).replace('--', '- -').replace('>', '&gt;')} -->"


def figure_namer(record: PageRecord) -> NameFigure:
    """Names the figures of a page for links; None for one without a file."""

    def name_of(number: int) -> str | None:
        if number < len(record.figures) and not record.figures[number]:
            return None
        return figure_path(record, number)

    return name_of


def figure_path(record: PageRecord, number: int) -> str:
    """The path of a figure (from 0) of a page in the folder of its document."""
    return f"{FOLDER}/{record.number - 1}_{number}.jpg"


def _body(page: PageContent, formulas: FormulaDelimiters) -> Iterator[str]:
    namer = figure_namer(page.record)
    yield from markdown_blocks(blocks_in(page.before), namer, formulas)
    if page.groups:
        pages = f"{page.groups[0].page} to {page.groups[-1].page}"
        yield comment(f"one table from pages {pages}, joined")
        yield "\n".join(["<table>", *_rows(page.groups, formulas), "</table>"])
    yield from markdown_blocks(blocks_in(page.after), namer, formulas)


def _rows(groups: Iterable[Group], formulas: FormulaDelimiters) -> Iterator[str]:
    for group in groups:
        yield comment(f"rows of page {group.page}")
        for row in group.left_out:
            yield comment(f"heading repeated there: {' | '.join(row_texts(row))}")
        yield from (markdown_row(row, formulas) for row in group.rows)


def _official_mark(record: PageRecord) -> str:
    """A comment before a page that the official script would have dropped."""
    if record.error is None and record.finish_reason not in _ENDINGS:
        return ""
    return f"{comment(remarks(PageContent(record, ()))[0])}\n"
