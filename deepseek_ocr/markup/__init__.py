"""The model's dialect, read strictly and in one place; every output is made from its blocks.

Text that was copied off a page is not Markdown. A line that begins with `4.`, `+` or `#` may be
just that, so only what the model is known to write as markup is taken for it; all else is text, to
the last character.

- a title: `# Title` in a region that is labelled as one, or alone in its paragraph
- a list: two lines or more whose numbers count up by one, or that begin with the same bullet
- a table: HTML, or lines of `| cell | cell |` with a line of dashes below the first
- a formula: `\\(…\\)`, `\\[…\\]`, or `$$…$$` that is a paragraph by itself
- emphasis: `**words**`; `<sup>`, `<sub>`, `<b>`, `<i>`, `<u>`, `<s>` that open and close in a line
- a centred line: `<center>…</center>`; a break: `<br>`
"""

from deepseek_ocr.markup.html_tables import html_row
from deepseek_ocr.markup.markdown_writer import (
    NameFigure,
    markdown_blocks,
    markdown_row,
    to_markdown,
)
from deepseek_ocr.markup.parts import PagePart, blocks_in, page_parts, settled_parts
from deepseek_ocr.markup.plain_writer import cell_text, plain_line, plain_lines, plain_rows
from deepseek_ocr.markup.reader import blocks_of

__all__ = [
    "NameFigure", "PagePart", "blocks_in", "blocks_of", "cell_text", "html_row", "markdown_blocks",
    "markdown_row", "page_parts", "plain_line", "plain_lines", "plain_rows", "settled_parts",
    "to_markdown",
]  # fmt: skip
