"""Show a hard page in every format: `python -m examples.make_hard_page [FOLDER]`.

Draws the page of examples/hard_page.html, takes a reading of it written by hand (no model runs),
writes it in every format into FOLDER (default: build/hard-page), and puts what they look like into
docs/hard-page.png. Needs the fonts DejaVu (fonts-dejavu-extra has the one for formulas) and one
with Chinese characters, the packages of requirements/checkout.txt, and the program `chromium`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from html import escape, unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pypdfium2
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from PIL import Image, ImageDraw, ImageFont

from deepseek_ocr.formats import FORMATS
from deepseek_ocr.formats.export import write
from deepseek_ocr.formats.figures import save_figures
from deepseek_ocr.formats.mathml import to_mathml
from deepseek_ocr.formats.records import DocumentRecord
from examples.output_pictures import DPI, ROOT, Item, browser, reading, save_small, screenshot

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAGE = ROOT / "examples" / "hard_page.html"
NAME = "hard"

SIZE = (1000, 1300)
"""Of the page in pixels."""

READING = [
    ("title", "# Annex A: clauses & measures"),
    ("text", "16. August 1998\n# 12 Main Street"),
    ("text", "4. Apple\n7. Lemon"),
    ("text", "1. One\n2. Two\n3. Three"),
    ("text", "2*3*4 = 24\n__init__ in C:\\lib\\*.py\na < b > c, R&D"),
    ("text", "> 60 mL/min\n+ 3,50\n− 1,20\n- 0,80 ± 5 %"),
    ("text", "Price $5 and $6\nH<sub>2</sub>O, 5 m<sup>2</sup>, **net** [a](b)"),
    ("text", "Name ____ Age ____"),
    ("Total due: 1.234,56 €", ""),
    ("image", ""),
    ("sub_title", "## 3. Formulas"),
    ("text", r"Where \(v = \frac{s}{t}\) and \(t > 0\), each run costs $5 (not $6)."),
    ("formula", r"\[ e^{i\pi} + 1 = 0 \tag{3} \]"),
    ("formula", "\\[ \\begin{aligned} 2x + 3y &= 12 \\\\\n x - y &= -1 \\end{aligned} \\]"),
    ("formula", r"\[ |x| = \begin{cases} x & \text{if } x \geq 0 \\ -x & \text{if } x < 0 "
     r"\end{cases} \]"),
    ("formula", r"\[ \left( \begin{array}{cc|c} 1 & 0 & 5 \\ 0 & 1 & -7 \end{array} \right) \]"),
    ("table_caption", "Table 2. Results (n = 40)"),
    ("table", '<table><tr><td rowspan="2">Item</td><td colspan="2">Value</td></tr>'
     "<tr><td>before</td><td>after</td></tr>"
     "<tr><td>4. Apple</td><td>− 1,20</td><td>+ 3,50</td></tr>"
     r"<tr><td>7. Lemon (\(x^2\))</td><td>&lt; 5</td><td>$6 | $7</td></tr></table>* not audited"),
    ("text", "يولد جميع الناس أحرارا، والسعر 25 ريالا (رقم 7)."),
    ("text", "天地玄黄，宇宙洪荒。第3条：每件50元。"),
    ("footer", "- 12 -"),
]  # fmt: skip
"""Label and text of each `data-label` of the page, in its order."""

SEARCHES = ["16. August 1998", "7. Lemon", "__init__", "60 mL/min", "1,20", "and $6", "1.234,56",
            "not audited", "الناس", "宇宙洪荒", "12 Main"]  # fmt: skip
"""What the picture of the searchable PDF highlights."""

COLUMN, GAP, HEADER = 580, 15, 34
"""Width of a tile, space around it, and height of its name, in pixels."""

STYLE = """
body { margin: 0; padding: 14px 18px; background: #fff; color: #111; overflow-wrap: anywhere;
  font: 16px/1.5 "DejaVu Sans", "Noto Sans CJK SC", "WenQuanYi Micro Hei", sans-serif; }
pre { margin: 0; white-space: pre-wrap; unicode-bidi: plaintext;
  font: 14px/1.4 "DejaVu Sans Mono", "Noto Sans Mono CJK SC", "WenQuanYi Micro Hei Mono"; }
p, li, td { unicode-bidi: plaintext; text-align: start; }
table { border-collapse: collapse; }
td { border: 1px solid #aaa; padding: 4px 10px; }
math { font-family: "Latin Modern Math", "DejaVu Math TeX Gyre", math; }
math[display=block] { margin: 0.7em 0; }
"""
"""Of the pictures of text files and of Markdown."""


def make(folder: Path, program: Browser) -> Image.Image:
    """Write the page and all its outputs into `folder`; the page."""
    folder.mkdir(parents=True, exist_ok=True)
    page = screenshot(program, PAGE, folder / "page.png", *SIZE)
    source = folder / f"{NAME}-scan.pdf"
    page.save(source, resolution=DPI)
    items = list(_items(program))
    figures = save_figures(page, reading(1, items, SIZE).regions, 1, folder)
    record = reading(1, items, SIZE, figures)
    document = DocumentRecord(NAME, source, "pdf", [record], {"reading": "by hand"})
    write(document, list(FORMATS), folder, lambda _: page)
    return page


def _items(program: Browser) -> Iterator[Item]:
    """The reading, with boxes from where the browser puts each region."""
    page = program.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
    page.goto(PAGE.as_uri())
    boxes = page.evaluate(
        """[...document.querySelectorAll('[data-label]')].map(region => {
             const box = region.getBoundingClientRect();
             return [region.dataset.label, box.left, box.top, box.right, box.bottom]; })"""
    )
    page.close()
    for (drawn, *box), (label, text) in zip(boxes, READING, strict=True):
        assert drawn in (label, "line"), f"{drawn} is drawn where {label} is read"
        left, top, right, bottom = map(round, box)
        yield label, (left, top, right, bottom), text


# --- the picture ----------------------------------------------------------------------------------


def show(folder: Path, page: Image.Image, program: Browser, picture: Path) -> None:
    """What the outputs in `folder` look like, in three columns in the file `picture`."""

    def text(ending: str) -> str:
        return (folder / f"{NAME}.{ending}").read_text(encoding="utf-8")

    def of_text(name: str, text: str) -> tuple[str, Image.Image]:
        shown = "\n".join(f"<pre>{escape(line) or ' '}</pre>" for line in text.splitlines())
        return name, _of_html(program, folder / "shown.html", shown)

    columns = [
        [
            ("The page", _as_wide(page)),
            (f"{NAME}_layouts.pdf", _rendered(folder / f"{NAME}_layouts.pdf")),
            (f"{NAME}.pdf, searched for {len(SEARCHES)} words", _searched(folder / f"{NAME}.pdf")),
            of_text(f"{NAME}.mmd (beginning)", _beginning(text("mmd"), 28)),
        ],
        [
            (f"{NAME}.html", screenshot(program, folder / f"{NAME}.html", folder / "html.png",
                                        COLUMN)),
            (f"{NAME}.md in a viewer",
             _of_html(program, folder / "viewer.html", _viewer().render(text("md")))),
        ],
        [
            of_text(f"{NAME}.md", text("md")),
            of_text(f"{NAME}.txt", text("txt")),
            of_text(f"{NAME}.json: its regions, indented (beginning)",
                    _beginning(_regions(text("json")), 27)),
            of_text(f"{NAME}.regions.jsonl (beginning)", _beginning(text("regions.jsonl"), 2)),
        ],
    ]  # fmt: skip
    save_small(_composed(columns), picture, 96)


def _of_html(program: Browser, path: Path, body: str) -> Image.Image:
    """The look of `body`, which is kept in the file `path`."""
    path.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><style>{STYLE}</style>\n{body}',
        encoding="utf-8",
    )
    return screenshot(program, path, path.with_suffix(".png"), COLUMN)


def _regions(data: str) -> str:
    """The regions in a JSON file, indented, with their boxes in one line."""
    regions = json.loads(data)["pages"][0]["regions"]
    text = json.dumps(regions, ensure_ascii=False, indent=1)
    return re.sub(r"\[[-0-9.,\s\[\]]+\]", lambda boxes: json.dumps(json.loads(boxes[0])), text)


def _beginning(text: str, lines: int) -> str:
    """The first `lines` of `text`, and a sign that it goes on."""
    return "\n".join([*text.splitlines()[:lines], "…"])


def _viewer() -> MarkdownIt:
    """Shows Markdown as GitHub does: tables, HTML, and formulas between dollar signs in both."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parser.use(dollarmath_plugin, double_inline=True, renderer=_formula)
    parser.add_render_rule("html_block", _html_block)
    return parser


def _formula(source: str, options: dict[str, Any]) -> str:
    return to_mathml(source.strip(), bool(options["display_mode"])) or escape(source)


def _html_block(_: Any, tokens: Sequence[Any], at: int, *_rest: Any) -> str:
    first, *rest = str(tokens[at].content).split("$")
    made = first
    for number, part in enumerate(rest):
        made += part if number % 2 else _formula(unescape(part), {"display_mode": False})
    return made


def _rendered(path: Path) -> Image.Image:
    with pypdfium2.PdfDocument(path) as pdf:
        page = pdf[0]
        return _as_wide(page.render(scale=COLUMN / page.get_width()).to_pil().convert("RGB"))


def _searched(path: Path) -> Image.Image:
    """The first page of a PDF, with what PDFium marks for `SEARCHES`."""
    picture = _rendered(path)
    pen = ImageDraw.Draw(picture, "RGBA")
    with pypdfium2.PdfDocument(path) as pdf:
        page = pdf[0]
        scale, high = COLUMN / page.get_width(), page.get_height()
        text = page.get_textpage()
        for wanted in SEARCHES:
            found = 0
            searcher = text.search(wanted)
            while place := searcher.get_next():
                found += 1
                for at in range(text.count_rects(*place)):
                    left, bottom, right, top = text.get_rect(at)
                    box = (left, high - top, right, high - bottom)
                    pen.rectangle([scale * side for side in box], "#ffb30060", "#c06000")
            print(f"{wanted}: found {found} times")
    return picture


def _as_wide(image: Image.Image) -> Image.Image:
    """`image` as wide as a column."""
    size = COLUMN, round(image.height * COLUMN / image.width)
    return image.resize(size, Image.Resampling.LANCZOS)


def _composed(columns: Sequence[Sequence[tuple[str, Image.Image]]]) -> Image.Image:
    """Columns of named tiles, one beside the other."""
    high = max(sum(tile.height + HEADER + GAP for _, tile in column) for column in columns)
    whole = Image.new("RGB", (GAP + len(columns) * (COLUMN + GAP), GAP + high), "#4a5568")
    pen = ImageDraw.Draw(whole)
    font = ImageFont.truetype("DejaVuSans-Bold.ttf", 18)
    for number, column in enumerate(columns):
        left, top = GAP + number * (COLUMN + GAP), GAP
        for name, tile in column:
            pen.text((left + 2, top + 4), name, font=font, fill="white")
            whole.paste(tile, (left, top + HEADER))
            top += HEADER + tile.height + GAP
    return whole


def main() -> None:
    """Write the outputs and their picture."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "hard-page"
    with browser() as program:
        page = make(folder, program)
        show(folder, page, program, ROOT / "docs" / "hard-page.png")


if __name__ == "__main__":
    main()
