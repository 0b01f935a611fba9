"""Markdown of a document, and the two files of the official PDF script (`mmd`)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from markdown_it import MarkdownIt

from deepseek_ocr import grounding
from deepseek_ocr.figures import FOLDER
from deepseek_ocr.formats.tables import PageText, page_texts
from deepseek_ocr.records import DocumentRecord, PageRecord

PAGE_SPLIT = "\n\n<--- Page Split --->\n"
"""What the official script writes after every page."""

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)

_MARK = "<!-- mark -->"

_HIDING = (
    (re.compile(r"<(?=!--)"), re.compile(r"(?!)")),
    (re.compile(r"<(?=\?)"), re.compile(r"\?>")),
    (re.compile(r"<(?=![A-Za-z])"), re.compile(r">")),
    (re.compile(r"<(?=!\[CDATA\[)"), re.compile(r"\]\]>")),
    (
        re.compile(r"<(?=(?:script|pre|style|textarea)\b)", re.IGNORECASE),
        re.compile(r"</(?:script|pre|style|textarea)>", re.IGNORECASE),
    ),
)
"""What begins HTML that hides all Markdown up to its end, which is the second; comments always."""

_ENDINGS = {
    "loop": "the model went in circles here; the text may repeat itself or be incomplete",
    "length": "the text reached its longest length here and may be cut",
    "timeout": "the time for the page was up here and the text is cut",
}


def write_markdown(document: DocumentRecord, join_tables: bool) -> Iterator[str]:
    """Cleaned Markdown, page by page, each headed by a comment that says which it is."""
    for page in page_texts(document.pages, join_tables):
        lines = [comment(f"page {page.record.number}")]
        lines += [comment(remark) for remark in remarks(page)]
        if body := _body(page):
            lines.append(body)
        yield "\n\n".join(lines) + "\n\n"


def write_official(document: DocumentRecord) -> Iterator[str]:
    """`NAME.mmd`: tags removed, figures linked, pages parted as the official script does."""
    for record in document.pages:
        cleaned = official_clean(record.text, figure_namer(record))
        yield _official_mark(record) + cleaned + PAGE_SPLIT


def write_official_tagged(document: DocumentRecord) -> Iterator[str]:
    """`NAME_det.mmd`: the model's text with its tags, pages parted as the official script does."""
    for record in document.pages:
        yield _official_mark(record) + record.text + PAGE_SPLIT


def official_clean(text: str, name_of: Callable[[int], str]) -> str:
    """`text` as the official script cleans it, which keeps blank lines that we would not."""
    parts: list[str] = []
    at = figures = removed = 0
    for region in grounding.parse(text):
        parts.append(text[at : region.start])
        if region.is_figure:
            links = [f"![]({name_of(figures + nth)})\n" for nth in range(len(region.boxes))]
            parts += links
            figures += len(links)
        else:
            removed += 1
        at = region.text_start
    cleaned = "".join([*parts, text[at:]])
    cleaned = cleaned.replace("\\coloneqq", ":=").replace("\\eqqcolon", "=:")
    for _ in range(removed):  # once a tag, as there; it soon changes nothing more
        shorter = cleaned.replace("\n\n\n\n", "\n\n").replace("\n\n\n", "\n\n")
        if shorter == cleaned:
            break
        cleaned = shorter
    return cleaned


def remarks(page: PageText) -> list[str]:
    """What a reader must know of a page beside its text; nothing for most pages."""
    record = page.record
    if record.error is not None:
        return [f"page {record.number} could not be read: {record.error}"]
    found = []
    if record.finish_reason in _ENDINGS:
        found.append(f"page {record.number}: {_ENDINGS[record.finish_reason]}")
    if len(record.tries) > 1:
        found.append(
            f"page {record.number} was tried {len(record.tries)} times; "
            f"this is try {record.kept + 1}"
        )
    if page.continues is not None:
        found.append(
            f"the table at the top of page {record.number} stands with page {page.continues}"
        )
    return found


def comment(text: str) -> str:
    """`text` as an HTML comment in one line, which nothing in it can end."""
    return f"<!-- {' '.join(text.split()).replace('--', '- -').replace('>', '&gt;')} -->"


def figure_namer(record: PageRecord, first: int = 0) -> Callable[[int], str]:
    """Names the figures of a page for links, counted from `first`; see `PageRecord.figures`."""
    return lambda number: f"{FOLDER}/{record.number - 1}_{first + number}.jpg"


def cleaned(page: PageText) -> tuple[str, str]:
    """What stands before and after the page's joined table, as cleaned Markdown."""
    figures = sum(len(r.boxes) for r in grounding.parse(page.before) if r.is_figure)
    parts = (
        grounding.to_markdown(page.before, figure_namer(page.record)),
        grounding.to_markdown(page.after, figure_namer(page.record, figures)),
    )
    return _without_missing(parts[0], page.record), _without_missing(parts[1], page.record)


def _without_missing(markdown: str, record: PageRecord) -> str:
    """`markdown` without links to figures that have no file."""
    name_of = figure_namer(record)
    for number, name in enumerate(record.figures):
        if not name:
            markdown = markdown.replace(f"![]({name_of(number)})\n", "")
    return markdown


def contained(text: str) -> str:
    """`text` with a code block that it leaves open closed, and no other hiding HTML left open.

    Otherwise one page could hide those after it.
    """
    for begin, end in _HIDING:
        last = max((found.start() for found in begin.finditer(text)), default=None)
        if last is not None and end.search(text, last) is None:
            text = begin.sub("&lt;", text)
    fences = dict.fromkeys(found[1] for found in _FENCE.finditer(text))
    # Whether a fence is open only a parser can say: it may stand in HTML or in other fences.
    for ended in (text, *(f"{text}\n{fence}" for fence in list(fences)[:_MOST_FENCES])):
        if _shows_what_follows(ended):
            return ended
    return _FENCE.sub(lambda found: found[0].replace(found[1], f"\\{found[1]}"), text)


_MOST_FENCES = 8
"""Kinds of fences of one page that are tried to end its code blocks with."""


def _shows_what_follows(text: str) -> bool:
    """True where a comment and a paragraph after `text` are just that."""
    tokens = MarkdownIt("commonmark").parse(f"{text}\n\n{_MARK}\n\nend")
    marks = [token for token in tokens if not token.level and token.content.strip() == _MARK]
    return bool(marks) and tokens[-3].type == "paragraph_open" and not tokens[-3].level


def _body(page: PageText) -> str:
    before, after = map(contained, cleaned(page))
    if not page.groups:
        return before
    pages = f"{page.groups[0].page} to {page.groups[-1].page}"
    lines = [comment(f"one table from pages {pages}, joined"), "<table>"]
    for group in page.groups:
        lines.append(comment(f"rows of page {group.page}"))
        lines += [comment(f"heading repeated there: {' | '.join(r.cells)}") for r in group.left_out]
        lines += [contained(" ".join(row.html.split("\n"))) for row in group.rows]
    table = "\n".join([*lines, "</table>"])
    return "\n\n".join(part for part in (before, table, after) if part)


def _official_mark(record: PageRecord) -> str:
    """A comment before a page that the official script would have dropped."""
    found = remarks(PageText(record, record.text))
    return "".join(f"{comment(remark)}\n" for remark in found[:1]) if _dropped(record) else ""


def _dropped(record: PageRecord) -> bool:
    return record.error is not None or record.finish_reason in _ENDINGS
