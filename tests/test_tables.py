"""Tables over page breaks are joined when they are one, and never lose a row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_ocr.formats.export import text_of
from deepseek_ocr.formats.joined_tables import MOST_JOINED, page_contents
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.formats.writing import WriteOptions
from deepseek_ocr.markup import blocks_in, blocks_of, plain_lines
from deepseek_ocr.markup.blocks import Table
from tests.output_fixtures import Block, document_of, grounded, record_of

HEADING = ("Item", "Price")


def table(*rows: tuple[str, ...]) -> str:
    cells = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


def page(number: int, *blocks: tuple[str, str]) -> PageRecord:
    regions = [Block(label, (0, 10 * at, 999, 10 * at + 9), text) for at, (label, text) in
               enumerate(blocks)]  # fmt: skip
    return record_of(number, grounded(regions))


def rows_of(pages: list[PageRecord], join: bool = True) -> list[list[str]]:
    """The rows in plain text, page by page."""
    shown = "".join(
        text_of(document_of(pages), "txt", Path("absent"), WriteOptions(join_tables=join))
    )
    return [[line for line in one.split("\n") if "\t" in line] for one in shown.split("\f")[:-1]]


FIRST = page(1, ("text", "Before"), ("table", table(HEADING, ("Bread", "2.50"))), ("footer", "1"))
NEXT = page(2, ("header", "Report"), ("table", table(HEADING, ("Salt", "1.10"))), ("text", "After"))


def test_a_table_goes_on_over_the_page_break() -> None:
    assert rows_of([FIRST, NEXT]) == [["Item\tPrice", "Bread\t2.50", "Salt\t1.10"], []]
    assert rows_of([FIRST, NEXT], join=False) == [
        ["Item\tPrice", "Bread\t2.50"],
        ["Item\tPrice", "Salt\t1.10"],
    ]


def test_what_was_joined_is_said() -> None:
    document = document_of([FIRST, NEXT])
    shown = "".join(text_of(document, "md", Path("absent")))
    for said in ("one table from pages 1 to 2, joined", "rows of page 2",
                 "heading repeated there: Item | Price",
                 "the table at the top of page 2 stands with page 1"):  # fmt: skip
        assert f"<!-- {said} -->" in shown
    assert shown.index("Before") < shown.index("Salt") < shown.index("page 2 -->\n\n<!-- the")
    shown = "".join(text_of(document, "html", Path("absent")))
    assert 'data-joined-pages="1 to 2"' in shown
    assert '<tbody data-page="2"><tr><td>Salt</td>' in shown


def test_a_table_may_go_on_for_pages() -> None:
    whole = [page(at, ("table", table(HEADING, (f"item {at}", f"{at}.00"))), ("footer", f"{at}"))
             for at in range(1, 6)]  # fmt: skip
    assert rows_of(whole) == [
        ["Item\tPrice", *(f"item {at}\t{at}.00" for at in range(1, 6))], [], [], [], []
    ]  # fmt: skip
    shown = "".join(text_of(document_of(whole), "txt", Path("absent"))).split("\f")
    assert [one.split("\n")[-2] for one in shown[:-1]] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    "second",
    [
        page(2, ("table", table(("a", "b", "c")))),
        page(2, ("text", "Words"), ("table", table(HEADING, ("Salt", "1.10")))),
        page(3, ("table", table(HEADING, ("Salt", "1.10")))),
        page(2, ("image", ""), ("table", table(HEADING, ("Salt", "1.10")))),
        page(2, ("table", "<table><tr><td>Salt</td><td>1.10</td></tr>")),
        page(2, ("table", "<table><tr><td>Salt</td><td><table></table></td></tr></table>")),
        page(2, ("table", "<table>loose<tr><td>Salt</td><td>1.10</td></tr></table>")),
        PageRecord(2, error="broken"),
    ],
    ids=["columns", "text", "not-next", "figure", "open", "nested", "loose", "failed"],
)  # fmt: skip
def test_other_tables_stay_where_they_are(second: PageRecord) -> None:
    contents = list(page_contents([FIRST, second], join=True))
    assert [(one.before, one.groups) for one in contents] == [
        (FIRST.parts, ()),
        (second.parts, ()),
    ]


def test_rows_that_only_look_like_a_heading_stay() -> None:
    data = ("Bread", "2.50")
    pages = [page(1, ("table", table(data, ("Salt", "1.10")))), page(2, ("table", table(data)))]
    assert rows_of(pages) == [["Bread\t2.50", "Salt\t1.10", "Bread\t2.50"], []]
    years = ("Item", "2024")
    pages = [page(1, ("table", table(years, data))), page(2, ("table", table(years, data)))]
    assert rows_of(pages) == [["Item\t2024", "Bread\t2.50", "Bread\t2.50"], []]


def test_spanned_columns_count() -> None:
    wide = "<table><tr><td colspan=2>All</td></tr><tr><td colspan='2'>None</td></tr></table>"
    pages = [page(1, ("table", table(HEADING))), page(2, ("table", wide))]
    assert len(next(page_contents(pages, join=True)).groups) == 2


def test_joining_holds_a_bounded_number_of_pages() -> None:
    count = MOST_JOINED + 5
    whole = [page(at, ("table", table(("x", f"{at}")))) for at in range(1, count + 1)]
    contents = list(page_contents(whole, join=True))
    assert [len(one.groups) for one in contents if one.groups] == [MOST_JOINED, 5]
    assert [one.record.number for one in contents] == list(range(1, count + 1))


CELL = st.sampled_from(["", "a", "1", "2024", "x y", "<b>b</b>", "&amp;", "\\(x\\)"])
ROWS = st.integers(1, 3).flatmap(
    lambda columns: st.lists(st.tuples(*[CELL] * columns), min_size=1, max_size=4)
)
BLOCK = st.one_of(
    ROWS.map(lambda rows: ("table", table(*rows))),
    st.sampled_from([("text", "words"), ("footer", "9"), ("header", "H"), ("image", "")]),
    st.text("<>/table rdh", max_size=30).map(lambda text: ("text", text)),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(BLOCK, max_size=3), min_size=1, max_size=5))
def test_no_row_and_no_page_is_ever_lost(blocks: list[list[tuple[str, str]]]) -> None:
    pages = [page(at, *held) for at, held in enumerate(blocks, start=1)]
    contents = list(page_contents(pages, join=True))
    assert [one.record.number for one in contents] == [one.number for one in pages]
    joined = [
        row for one in contents for group in one.groups for row in (*group.left_out, *group.rows)
    ]
    kept = [block for one in contents for block in blocks_in((*one.before, *one.after))] + [
        Table(tuple(joined))
    ]
    alone = [block for one in pages for block in blocks_in(one.parts)]
    assert Counter(plain_lines(kept)) == Counter(plain_lines(alone))


def test_text_after_a_table_is_read_as_what_it_is() -> None:
    after = "Sum: **7.20**\n\n## Next\n\n4. Apple\n7. Lemon"
    for between in ("", "\n", " ", "\n\n"):
        read = page(1, ("table", table(HEADING) + between + after))
        shown = "".join(text_of(document_of([read]), "txt", Path("absent")))
        assert shown == "Item\tPrice\nSum: 7.20\n## Next\n4. Apple\n7. Lemon\n\f"
        shown = "".join(text_of(document_of([read]), "html", Path("absent")))
        assert "</table></div>\n<p>Sum: <b>7.20</b></p>" in shown


def test_tables_that_are_left_open_keep_their_text() -> None:
    for raw, rows in [
        ("<table><tr><td>a<td>b<tr><td>c</table>", ["a\tb", "c"]),
        ("<table>loose<tr><td>a</td></tr>more</table>after", ["loose", "a", "more", "after"]),
        ("<table><tr><td>a<table><tr><td>b</td></tr></table>c</td></tr></table>", ["a b c"]),
        ("<table><caption>Prices</caption><tr><th>a</th></tr></table>", ["Prices", "a"]),
        ("<table><tr><td>a</td><td>b", ["a\tb"]),
        ("a <table> without cells", ["a <table> without cells"]),
    ]:
        assert list(plain_lines(blocks_of(raw))) == rows


def test_thousands_of_open_tables_take_no_time() -> None:
    for raw in ("<table>" * 100_000, "<table><tr>" + "<td>" * 100_000 + "</table>"):
        assert "x" in " ".join(plain_lines(blocks_of(raw + "x")))


def test_cells_below_a_spanning_one_keep_their_column() -> None:
    raw = (
        "<table><tr><td rowspan=2>Item</td><td colspan=2>Value</td><td>Note</td></tr>"
        "<tr><td>before</td><td>after</td><td></td></tr><tr><td>Salt</td><td>1</td></tr></table>"
    )
    assert list(plain_lines(blocks_of(raw))) == [
        "Item\tValue\t\tNote",
        "\tbefore\tafter\t",
        "Salt\t1",
    ]
    endless = "<table>" + 200 * "<tr><td colspan=1000 rowspan=1000>x</td></tr>" + "</table>"
    assert list(plain_lines(blocks_of(endless))) == 200 * ["x"]
