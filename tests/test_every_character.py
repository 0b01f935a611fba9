"""Every character that was read arrives, in its order, in every output.

The oracle is the raw text less the model's tags, by the few regular expressions below. What is not
shown as it was written stands in `EXCEPTIONS`.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from deepseek_ocr.formats.export import text_of
from deepseek_ocr.formats.json_document import page_data
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.formats.searchable_pdf import page_lines
from deepseek_ocr.formats.writing import WriteOptions
from deepseek_ocr.markup import blocks_in, page_parts, settled_parts, to_markdown
from deepseek_ocr.server.web.page_nodes import page_blocks
from tests.conftest import reference
from tests.output_fixtures import Block, document_of, grounded, record_of
from tests.viewers import (
    seen_in_html,
    seen_in_markdown,
    seen_in_nodes,
    without_space,
)

EXCEPTIONS = {
    "heading marks": re.compile(r"^[ \t]*#{1,6}(?=[ \t]+\S)", re.MULTILINE),
    "the line of dashes of a table": re.compile(r"^\|[-:| ]*-[-:| ]*\|$", re.MULTILINE),
    "bars between cells": re.compile(r"^\||\|$|(?<= )\|(?= )", re.MULTILINE),
    "asterisks of bold type": re.compile(r"(?<![\w*])\*\*(?=[^*\n]+\*\*)|(?<=\S)\*\*(?![\w*])"),
    "a tag that the answer ends in": re.compile(r"<\|[^\n]*\Z"),
}
"""What is written and not shown, beside the tags of regions and HTML; also the header rows that a
joined table repeats (test_tables.py), and a space that a backslash keeps at a formula's end."""

HEAD = re.compile(
    r"<\|ref\|>(?:(?:title|sub_title|text|table|image)|([^<\n]*))<\|/ref\|>"
    r"<\|det\|>\[\[[-0-9,\s\[\]]*\]\]<\|/det\|>"
)
"""The tags of a region, with its label if that is a layout's; any other label is text."""

TAGS = re.compile(
    r"</?(?:table|thead|tbody|tfoot|tr|td|th|caption|br|hr|p|div|b|i|u|s|em|strong|sup|sub|ul|ol|li"
    r"|center)(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
DISPLAY_DELIMITER = re.compile(r"\\[\[\]]")


def outputs_of(record: PageRecord) -> dict[str, str]:
    """What is seen of a page in each output, white space left out; and in the page at /."""
    document = document_of([record])
    written = {
        name: "".join(text_of(document, name, Path("absent"))) for name in ("md", "html", "txt")
    }
    brackets = "".join(text_of(document, "md", Path("absent"), WriteOptions(formulas="brackets")))
    body = written["html"].partition("</a>")[2]
    data = page_data(record)
    return {
        "txt": without_space(written["txt"]),
        "md": seen_in_markdown(written["md"]),
        "md with brackets": seen_in_markdown(brackets, "brackets"),
        "html": seen_in_html(body),
        "json": seen_in_markdown(data["markdown"]),
        "json regions": "".join(seen_in_markdown(one["markdown"]) for one in data["regions"]),
        "page": "".join(seen_in_nodes(one["nodes"]) for one in page_blocks(record)),
    }


def layer_of(record: PageRecord) -> Counter[str]:
    """The characters of the text layer; right-to-left lines are laid out as they stand."""
    lines = page_lines(record, (600.0, 800.0))
    return Counter(without_space("".join(line.text for line in lines)))


def check(record: PageRecord, expected: str) -> None:
    """Every output of `record` shows just `expected`."""
    seen = outputs_of(record)
    if not record.regions:
        del seen["json regions"]
    for name, text in seen.items():
        assert _folded(text) == _folded(expected), name
    assert layer_of(record) == Counter(sign for sign in expected if sign.isprintable())


# --- what stands on pages and looks like Markdown -------------------------------------------------

HARD_LINES = [
    "4. Apple", "7. Lemon", "16. August", "15. Juli 1998", "1. One", "2. Two", "3) Three",
    "0. Zero", "01. Leading", "> 60 mL/min", "+ 3,50", "- 1,20", "− 1,20", "* note", "- first",
    "- second",
    "2*3*4 = 24", "a * b * c", "__init__", "snake_case_name", "_underlined_", "# 12 Main Street",
    "#1", "# of items", "____", "____ Name ____", "***", "---", "===", "- - -", "~~~", "~~gone~~",
    "```", "`code`", "$5 and $6", "US$ 3", "$x$", "a | b", "|", "| a |", "|---|", "[link](there)",
    "[1]: http://a.example", "![x](y.png)", "<b", "<x>y</x>", "a < b > c", "<!-- no -->", "&amp;",
    "&copy; 2020", "AT&T", "C:\\dir\\*.txt", "\\alpha", "100 %", "50%", ":::", "[ ] open",
    "[x] done", "!", "1.", "12)", "-", "+", "*", ">", "#", "Title\\", "http://a.example/a_b_c",
    "a@b.example", "\\*", "!!! note", "(a) first", "a) b", "§ 7. Rest", "* * *", "**", "2**3**4",
    "x^2", "H~2~O", "==mark==", "<http://a.example>", "&#65;", "\t", "Term", ": definition",
    "天地玄黄", "１．苹果", "يولد جميع الناس", "٤. تفاح", "שלום", "é", "😀", "ﬁ", "a\u00a0b",
    "\u200bz",
]  # fmt: skip
PARAGRAPH = st.lists(st.sampled_from(HARD_LINES), min_size=1, max_size=4).map("\n".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(PARAGRAPH, min_size=1, max_size=3).map("\n\n".join))
@example("4. Apple\n7. Lemon")
@example("1. One\n2. Two\n\n3. Three\n4. Four\n\n4. Four\n5. Five")
def test_text_that_looks_like_markdown_is_text(text: str) -> None:
    assume("| a |\n|---|" not in text)  # a heading above dashes is a table, not text
    check(record_of(1, text), without_space(text))
    check(record_of(1, grounded([Block("text", (10, 10, 500, 500), text)])), without_space(text))


@pytest.mark.parametrize("line", HARD_LINES)
def test_a_line_alone_is_text(line: str) -> None:
    for text in (line, f"before\n{line}\nafter", f"{line}\n{line}"):
        check(record_of(1, text), without_space(text))
    listed = grounded([Block(line, (10, 10 * at, 900, 10 * at + 9), "") for at in range(1, 4)])
    if line.strip():
        check(record_of(1, listed), 3 * without_space(line))


# --- what the model writes as markup --------------------------------------------------------------

WORDS = st.sampled_from(
    [
        "4. Apple",
        "+ 3,50",
        "__init__",
        "2*3*4 = 24",
        "$5",
        "a|b",
        "< 5",
        "a`b",
        "\\x",
        "天地",
        "Word",
    ]
)
FORMULAS = st.sampled_from(
    ["x", "a<b", "a_1*b_2*c", "\\frac{a}{b}", "\\begin{aligned}a&=b\\\\c&=d\\end{aligned}", "50\\%",
     "a<b c>d", "\\unknown{x}", "\\text{if } x > 0", "{", "a \\& b", "\\sum_{i=1}^n x_i", "\\$5"]
)  # fmt: skip


def _inline() -> st.SearchStrategy[tuple[str, str]]:
    """What was written and what is to be seen of it."""
    plain = WORDS.map(lambda word: (word, word))
    inline = FORMULAS.map(lambda source: (f"\\({source}\\)", f"\\({source}\\)"))
    styled = st.tuples(st.sampled_from(["b", "i", "u", "s", "sup", "sub"]), WORDS).map(
        lambda pair: (f"<{pair[0]}>{pair[1]}</{pair[0]}>", pair[1])
    )
    nested = styled.map(lambda pair: (f"<b><i> {pair[0]}</i> </b>", pair[1]))
    bold = st.sampled_from(["Word", "two words", "天地"]).map(lambda word: (f"**{word}**", word))
    display = FORMULAS.map(lambda source: (f"\\[{source}\\]", f"\\[{source}\\]"))
    empty = st.just(("<b></b>", ""))
    return st.one_of(plain, inline, styled, nested, bold, display, empty)


def _joined(pairs: list[tuple[str, str]], by: str) -> tuple[str, str]:
    return by.join(raw for raw, _ in pairs), "".join(seen for _, seen in pairs)


LINE = st.lists(_inline(), min_size=1, max_size=3).map(lambda pairs: _joined(pairs, " "))
IN_LINE = FORMULAS.map(lambda source: (f"\\({source}\\)", f"\\({source}\\)"))
ADJACENT = st.lists(IN_LINE, min_size=2, max_size=3).map(lambda pairs: _joined(pairs, ""))
CELL = st.lists(LINE, max_size=2).map(lambda pairs: _joined(pairs, "<br>"))
ROW = st.lists(CELL, min_size=1, max_size=3).map(
    lambda cells: (
        "<tr>" + "".join(f"<td>{raw}</td>" for raw, _ in cells) + "</tr>",
        "".join(seen for _, seen in cells),
    )
)
TABLE = st.lists(ROW, min_size=1, max_size=3).map(
    lambda rows: (f"<table>{''.join(raw for raw, _ in rows)}</table>", "".join(s for _, s in rows))
)
DISPLAY = FORMULAS.map(lambda source: (f"\\[{source}\\]", f"\\[{source}\\]"))
DOLLARS = FORMULAS.filter(lambda source: "$" not in source).map(
    lambda source: (f"$${source}$$", f"\\[{source}\\]")
)
TITLE = st.tuples(st.integers(2, 6), LINE).map(lambda p: ("#" * p[0] + " " + p[1][0], p[1][1]))
CENTRED = LINE.map(lambda pair: (f"<center>{pair[0]}</center>", pair[1]))
BLOCK = st.one_of(LINE, ADJACENT, TABLE, DISPLAY, DOLLARS, TITLE, CENTRED)


@settings(max_examples=300, deadline=None)
@given(st.lists(BLOCK, min_size=1, max_size=4))
def test_markup_is_read_and_its_text_arrives(blocks: list[tuple[str, str]]) -> None:
    raw, seen = _joined(blocks, "\n\n")
    check(record_of(1, raw), without_space(seen))


# --- anything at all ------------------------------------------------------------------------------

PIECES = [
    "4. ", "7. ", "1. ", "2) ", "- ", "* ", "+ ", "# ", "## ", "> ", "*", "**", "_", "__", "~",
    "~~", "`", "```", "\\", "\\\\", "[a]", "(b)", "[", "]", "!", ":", "|", "---", "===", "|---|",
    "| a | b |", "$", "$$", "&amp;", "&", "<", "<b>", "</b>", "<i>", "</i>", "<br>", "<x>", "<!--",
    "-->", "<?", "\n", "\n\n", " ", "  ", "    ", "\t", "a", "B", "12", "é", "中", "ا", ".", ",",
    "<table>", "</table>", "<tr>", "<td>", "</td>", "<center>", "</center>", "\\(", "\\)", "\\[",
    "\\]", "x^2", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "[[1, 2, 3, 4]]",
    "<|ref|>text<|/ref|><|det|>[[1, 2, 300, 400]]<|/det|>", "<|ref|>A line.<|/ref|><|det|>[[1, 2, "
    "300, 400]]<|/det|>", "<|ref|>image<|/ref|><|det|>[[1, 2, 300, 400]]<|/det|>", "\x00", "\u2028",
]  # fmt: skip
ANYTHING = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=4)), max_size=16).map(
    "".join
)


@settings(max_examples=400, deadline=None)
@given(ANYTHING)
def test_all_outputs_of_any_text_show_the_same(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    record = record_of(1, text)
    seen = outputs_of(record)
    if not record.regions or text.lstrip().find("<|ref|>"):
        seen.pop("json regions")  # text in front of the first region is in none
    assert len(set(map(_folded, seen.values()))) == 1, seen
    printable = Counter(sign for sign in seen["txt"] if sign.isprintable())
    assert layer_of(record) == printable
    least = without_space(_less_all_tags(text))
    assert is_within(_bare(least), _bare(seen["txt"])), "something is lost"
    assert is_within(_bare(seen["txt"]), _bare(without_space(html.unescape(text)))) or is_within(
        _bare(seen["txt"]), _bare(without_space(text))
    ), "something is new"


def _folded(text: str) -> str:
    """`text` with one bullet for all, and formulas in and out of lines alike."""
    text = DISPLAY_DELIMITER.sub(lambda found: "\\(" if found[0] == "\\[" else "\\)", text)
    return text.replace("*", "-")


def _bare(text: str) -> str:
    return re.sub(r"[\W_]", "", text)


def _less_all_tags(text: str) -> str:
    return TAGS.sub("", re.sub(r"<\|[^\n]*|&[A-Za-z#0-9]+;", "", HEAD.sub(r"\n\1\n", text)))


def is_within(part: str, whole: str) -> bool:
    """True if `part` is what is left of `whole` when some characters are left out."""
    rest = iter(whole)
    return all(sign in rest for sign in part)


@settings(max_examples=300, deadline=None)
@given(ANYTHING, st.integers(1, 9))
def test_what_is_settled_stays_whatever_follows(text: str, size: int) -> None:
    whole = to_markdown(blocks_in(page_parts(text)), str)
    for end in range(0, len(text), size):
        begun = to_markdown(blocks_in(settled_parts(text[:end])), str)
        assert whole.startswith(begun)


# --- real pages -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["free_ocr", "grounding_markdown"])
@pytest.mark.parametrize(
    "page",
    ["commons_example_receipt", "commons_test_ocr_document", "german_official_print",
     "receipt_historical", "simple_form"],
)  # fmt: skip
def test_real_transcripts_arrive(page: str, kind: str) -> None:
    text = (reference("real") / f"{page}.{kind}.txt").read_text(encoding="utf-8")
    expected = HEAD.sub(r"\n\1\n", text)
    for exception in EXCEPTIONS.values():
        expected = exception.sub("", expected)
    check(record_of(1, text), without_space(html.unescape(TAGS.sub(" ", expected))))
