"""A document as one HTML file that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from deepseek_ocr.formats import safe_html
from deepseek_ocr.formats.figures import FOLDER
from deepseek_ocr.formats.joined_tables import PageContent, page_contents
from deepseek_ocr.formats.markdown import remarks
from deepseek_ocr.formats.records import DocumentRecord, PageRecord
from deepseek_ocr.formats.writing import WriteContext
from deepseek_ocr.markup import PagePart, blocks_in

STYLE = """
:root{color-scheme:light dark;--ink:#1b1d21;--paper:#fff;--faint:#667;--line:#cfd3da;--warn:#8a4b00}
@media(prefers-color-scheme:dark){
:root{--ink:#e4e6ea;--paper:#16181c;--faint:#9aa1ac;--line:#3b4048;--warn:#ffb454}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:48rem;padding:1.5rem;background:var(--paper);color:var(--ink);
font:1.05rem/1.6 Georgia,"Noto Serif",serif;overflow-wrap:anywhere}
h1,h2,h3,h4,h5,h6{line-height:1.25;margin:1.4em 0 .5em}
p,li,td,th,h1,h2,h3,h4,h5,h6,figcaption{unicode-bidi:plaintext;text-align:start}
section{border-top:1px solid var(--line);margin-top:2.5rem;padding-top:.5rem}
section:first-of-type{border:0;margin:0;padding:0}
.page{color:var(--faint);font:.8rem/1.4 system-ui,sans-serif;text-decoration:none}
.note{color:var(--warn);font:.9rem/1.5 system-ui,sans-serif;border-left:3px solid;
padding-left:.7rem}
.wide{overflow-x:auto;margin:1rem 0}
table{border-collapse:collapse;font-size:.95rem;margin:1rem 0}
.wide>table{margin:0}
td,th{border:1px solid var(--line);padding:.3rem .6rem;vertical-align:top}
tbody[data-page]+tbody[data-page]{border-top:3px double var(--faint)}
figure{margin:1.2rem 0}
img{max-width:100%;height:auto}
math{font-family:"Latin Modern Math","STIX Two Math","Cambria Math",
"Noto Sans Math","DejaVu Math TeX Gyre",math,serif}
math[display=block]{margin:1rem 0;overflow-x:auto;overflow-y:hidden}
.formula{white-space:pre-wrap;font-size:.9em}
.centred{text-align:center}
.list{list-style:none;padding-left:1rem}
@media print{
:root{--ink:#000;--paper:#fff;--faint:#555;--line:#999;--warn:#000}
body{max-width:none;padding:0;font-size:11pt}
section{border:0;margin:0;padding:0;break-before:page}section:first-of-type{break-before:auto}
tr,figure{break-inside:avoid}h1,h2,h3{break-after:avoid}.wide{overflow:visible}}
"""

POLICY = (
    "default-src 'none'; img-src data:; style-src 'sha256-"
    + base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    + "'; style-src-attr 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
"""What a browser may do with the file: show it. MathML has its alignment in `style` attributes, of
which `safe_html` keeps only those of alignment and lines."""


def write_html(document: DocumentRecord, context: WriteContext) -> Iterator[str]:
    """The file in pieces; figures are taken from `context.folder`/images into it."""
    title = escape(document.name)
    yield (
        '<!DOCTYPE html>\n<html><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style></head>\n<body><main>\n"
    )
    for page in page_contents(document.pages, context.options.join_tables):
        yield from _section(page, context.folder)
    yield "</main></body></html>\n"


def _section(page: PageContent, folder: Path) -> Iterator[str]:
    number = page.record.number
    yield f'<section id="page-{number}"><a class="page" href="#page-{number}">Page {number}</a>\n'
    for remark in remarks(page):
        yield f'<p class="note">{escape(remark, quote=False)}</p>\n'
    yield _body(page.before, page.record, folder)
    if page.groups:
        pages = f"{page.groups[0].page} to {page.groups[-1].page}"
        table = safe_html.table_html([(group.page, group.rows) for group in page.groups])
        yield f'<p class="note">One table from pages {pages}, joined</p>\n'
        yield f'<div data-joined-pages="{pages}">{table}</div>\n'
        yield _body(page.after, page.record, folder)
    yield "</section>\n"


def _body(parts: Iterable[PagePart], record: PageRecord, folder: Path) -> str:
    return safe_html.with_figures(
        safe_html.blocks_html(blocks_in(parts)), lambda number: _figure(record, number, folder)
    )


def _figure(record: PageRecord, number: int, folder: Path) -> str:
    """The figure as an image in the file itself; a note where there is no file of it."""
    label = f"Figure {number + 1} of page {record.number}"
    name = record.figures[number] if number < len(record.figures) else ""
    path = folder / FOLDER / name
    if not name or path.is_symlink() or not path.is_file():
        return f'<span class="note">{label} (no picture)</span>'
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{label}" src="data:image/jpeg;base64,{data}">'
