"""What is read as markup and what as text, region by region."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from deepseek_ocr.formats.export import page_to_json, text_of
from deepseek_ocr.grounding import parser
from deepseek_ocr.markup import blocks_in, blocks_of, page_parts, plain_lines, to_markdown
from deepseek_ocr.markup.blocks import (
    Figure,
    Formula,
    Item,
    ItemList,
    Location,
    Paragraph,
    Styled,
    Table,
    Text,
    Title,
)
from tests.output_fixtures import Block, document_of, grounded, record_of
from tests.scripted import reading

FORMATS = ("md", "txt", "html")


def shown(text: str, reference: str | None = None) -> dict[str, str]:
    document = document_of([record_of(1, text, reference=reference)])
    return {name: "".join(text_of(document, name, Path("absent"))) for name in FORMATS}


# --- blocks ---------------------------------------------------------------------------------------


def test_a_title_is_a_title_where_it_says_so() -> None:
    title = Title(1, (Text("Chapter"),))
    assert blocks_of("# Chapter") == (title,)
    assert blocks_of("# Chapter", "title") == (title,)
    assert blocks_of("Chapter", "title") == (title,)
    assert blocks_of("Two\nlines", "sub_title") == (Title(2, (Text("Two lines"),)),)
    assert blocks_of("## 3. Part") == (Title(2, (Text("3. Part"),)),)
    for text in ("# 12 Main Street", "# of items", "# Chapter\nand more", "#Chapter", "#"):
        assert blocks_of(text) == (Paragraph(tuple((Text(line),) for line in text.split("\n"))),)
    assert isinstance(blocks_of("# Chapter", "text")[0], Paragraph)


def test_a_list_counts_up_or_has_one_bullet() -> None:
    assert blocks_of("4. Apple\n5. Lemon") == (
        ItemList((Item("4.", (Text("Apple"),)), Item("5.", (Text("Lemon"),)))),
    )
    assert isinstance(blocks_of("- Apple\n- Lemon")[0], ItemList)
    for text in ("4. Apple\n7. Lemon", "16. August", "- 1,20\n- 3,50", "1. a\n2) b", "- a\n* b"):
        assert [type(block) for block in blocks_of(text)] == [Paragraph], text
        assert list(plain_lines(blocks_of(text))) == text.split("\n")


def test_tables_formulas_and_emphasis() -> None:
    (table,) = blocks_of("| a | b |\n|---|:-:|\n| 1 | x\\|y |")
    assert isinstance(table, Table)
    assert list(plain_lines([table])) == ["a\tb", "1\tx|y"]
    (table,) = blocks_of("<table><tr><td colspan='2' rowspan=3>a &lt; b<br>c</td></tr></table>")
    assert isinstance(table, Table)
    cell = table.rows[0][0]
    assert (cell.lines, cell.columns, cell.rows) == (((Text("a < b"),), (Text("c"),)), 2, 3)
    (paragraph,) = blocks_of("see \\(a_1\\), **bold** and H<sub>2</sub>O, a <b> tag")
    assert paragraph == Paragraph(
        (
            (
                Text("see "), Formula("a_1", False), Text(", "), Styled("b", (Text("bold"),)),
                Text(" and H"), Styled("sub", (Text("2"),)), Text("O, a "), Text("<b>"),
                Text(" tag"),
            ),
        )
    )  # fmt: skip
    assert blocks_of("\\[\nx\n\\]") == (Paragraph(((Formula("x", True),),)),)
    assert blocks_of("$5 and $6") == (Paragraph(((Text("$5 and $6"),),)),)
    assert blocks_of("<center>a</center>") == (Paragraph(((Text("a"),),), centred=True),)


@pytest.mark.parametrize(
    "piece",
    ["**", "**a", "*a* ", "<b>", "<b></i>", "\\(", "\\[a", "$$", "\n\n$$", "|", "|-|\n", "<table>",
     "<table><tr><td>", "- a\n", "1. a\n", "# ", "<center>", "&", "colspan=", "<td colspan='",
     "<|ref|>", "<|ref|>a<|/ref|>", "\ue000", "`", "<!--"],
)  # fmt: skip
def test_hostile_repetition_takes_linear_time(piece: str) -> None:
    def seconds(length: int) -> float:
        text = piece * (length // len(piece))
        began = time.process_time()
        to_markdown(blocks_in(page_parts(text)), str)
        return time.process_time() - began

    small = min(seconds(8_000) for _ in range(3))
    large = min(seconds(128_000) for _ in range(3))
    assert large < 0.1 or large < 64 * small  # sixteen times the text


# --- text that stands in the tag ------------------------------------------------------------------

LINES = [
    Block("Invoice 2024-11", (100, 50, 500, 80), ""),
    Block("4. Apple  < 3 kg", (100, 100, 500, 130), ""),
    Block("يولد جميع الناس", (100, 150, 500, 180), ""),
]


def test_lines_with_a_box_each_are_text_in_every_format() -> None:
    text = grounded(LINES)
    assert shown(text)["txt"] == "Invoice 2024-11\n4. Apple  < 3 kg\nيولد جميع الناس\n\f"
    assert "Invoice 2024-11\n\n4\\. Apple  < 3 kg\n\nيولد" in shown(text)["md"]
    assert "<p>4. Apple  &lt; 3 kg</p>" in shown(text)["html"]
    page = page_to_json(reading(text, "stop"), "a.png")
    assert [region["text"] for region in page["regions"]] == [block.label for block in LINES]
    assert page["markdown"].startswith("Invoice 2024-11\n\n4\\. Apple")


def test_known_labels_stay_labels() -> None:
    box = (1, 2, 30, 40)
    text = grounded([Block("table", box, ""), Block("Total due", box, "42.00")])
    assert shown(text)["txt"] == "Total due\n42.00\n\f"


def test_what_was_located_is_named_with_its_boxes() -> None:
    text = "<|ref|>the *dog*<|/ref|><|det|>[[1, 2, 30, 40], [5, 6, 70, 80]]<|/det|>"
    parts = page_parts(text, reference="the *dog*")
    assert parts[0].blocks == (Location((Text("the *dog*"),), ((1, 2, 30, 40), (5, 6, 70, 80))),)
    done = shown(text, reference="the *dog*")
    assert "the \\*dog\\*: [[1, 2, 30, 40], [5, 6, 70, 80]]" in done["md"]
    assert done["txt"] == "the *dog*\n\f"
    assert "<p>the *dog*</p>" in done["html"]
    text = "<|ref|>1. a\n2. b<|/ref|><|det|>[[1, 2, 30, 40]]<|/det|>"
    assert "1\\. a 2. b: [[1, 2, 30, 40]]" in shown(text, reference="x")["md"]
    text = "<|ref|>image<|/ref|><|det|>[[1, 2, 30, 40]]<|/det|>"
    assert "image: [[1, 2, 30, 40]]" in shown(text, reference="image")["md"]
    assert page_parts(text)[0].blocks == (Figure(0),)


def test_the_prompt_says_what_was_to_be_located() -> None:
    located = parser.reference_in("<image>\nLocate <|ref|> the dog <|/ref|> in the image.")
    assert located == "the dog"
    assert parser.reference_in("<image>\nFree OCR.") is None


# --- answers that were cut ------------------------------------------------------------------------

HEAD = "<|ref|>text<|/ref|><|det|>[[1, 2, 30, 40]]<|/det|>"
WHOLE = f"{HEAD}\nSome text.\n\n"


@pytest.mark.parametrize("end", range(2, len(HEAD)))
@pytest.mark.parametrize("begin", ["", WHOLE, "Some text.\n\n"])
def test_no_half_tag_is_shown(begin: str, end: int) -> None:
    for head in (HEAD, HEAD.replace("text", "table"), HEAD.replace("text", "A line")):
        done = shown(begin + head[:end])
        for name, text in done.items():
            assert "&lt;|" not in text, name
            assert "<|" not in text, name
            assert "|>" not in text, name
            assert "[[" not in text, name
        assert done["txt"].startswith("Some text.") == bool(begin)
        named = "A line"[: max(end - 7, 0)].strip() if "A line" in head else ""
        assert (named in done["txt"].split("\n")) == bool(named)


@pytest.mark.parametrize("cut", ["<|ref|>line B<|/ref|><|det|>[[1, ", "<|ref|>line B", "<|re"])
def test_what_stands_before_a_cut_stays(cut: str) -> None:
    text = f"<|ref|>line A<|/ref|><|det|>[[1, 2, 30, 40]]<|/det|>\n{cut}"
    named = "line B\n" if "line B" in cut else ""
    assert shown(text)["txt"] == f"line A\n{named}\f"
    page = page_to_json(reading(text, "length"), "a.png")
    assert [region["text"] for region in page["regions"]] == ["line A"]


@pytest.mark.parametrize(
    "text", ["a <", "a <|> b", "x <| y", "<|det|>[[1]]<|/det|> b", "<|ref|>a<|/ref|> b c",
             "<|ref|>a<|/ref|><|det|>[[1, b]]<|/det|>", "<|ref|>a\n\nb"],
)  # fmt: skip
def test_what_is_no_tag_that_was_cut_stays(text: str) -> None:
    assert list(plain_lines(page_parts(text)[0].blocks)) == text.replace("\n\n", "\n").split("\n")


# --- Markdown -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        (r"\(x\)\(y\)", "$x$ $y$"),
        (r"US$\(x\) and $5", r"US\$ $x$ and \$5"),
        (r"so \(a\ \) and \(b\)", "so $a$ and $b$"),
        ("\\[y\\] (3)\nwhere", "$$\ny\n$$\n\n(3)  \nwhere"),
        ("<b> bar</b> baz", "<b> bar</b> baz"),
        ("foo<b> bar</b> baz", "foo<b> bar</b> baz"),
        ("x <b></b> y", "x  y"),
        ("1. [ ] Apple\n2. [x] Pear", "1. &#91; ] Apple\n2. &#91;x] Pear"),
        ("## Title<br>Sub", "## Title Sub"),
        ("<b></b>4. x", "4\\. x"),
        (r"\(i<b\)", "$i< b$"),
        ("<table><tr><td>A&reg B &ltd</td></tr></table>",
         "<table><tr><td>A&amp;reg B &amp;ltd</td></tr></table>"),
        ("<table><tr><td>a&#10;&#10;# b</td></tr></table>",
         "<table><tr><td>a  # b</td></tr></table>"),
        (r"<table><tr><td \(a\)>x</td><td>\(b\)</td></tr></table>" "\n\n" r"then \(c\)",
         "<table><tr><td>x</td><td>$b$</td></tr></table>\n\nthen $c$"),
        ("The tag <table> begins and <tr> ends.", r"The tag \<table> begins and \<tr> ends."),
        ("a\ud800b", "a\ufffdb"),
    ],
)  # fmt: skip
def test_markdown_of_odd_text(text: str, markdown: str) -> None:
    assert to_markdown(blocks_of(text), str) == markdown


def test_styles_within_each_other_take_no_longer() -> None:
    deep = 20
    text = "<b>" * deep + "x" + "</b>" * deep
    assert to_markdown(blocks_of(text), str).count("x") == 1
    began = time.process_time()
    to_markdown(blocks_of(f"{text}\n" * 100), str)
    assert time.process_time() - began < 2
