"""Metrics against values worked out by hand, and against the libraries directly."""

from __future__ import annotations

import re
import unicodedata

import jiwer
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from deepseek_ocr.grounding.parser import Box
from deepseek_ocr.training.evaluation import teds as tables
from deepseek_ocr.training.evaluation.bootstrap import Estimate, figures
from deepseek_ocr.training.evaluation.teds import (
    GridCell,
    grid,
    html_tables,
    markdown_tables,
    table_scores,
    teds,
)
from deepseek_ocr.training.evaluation.text_metrics import (
    MOST_BOXES,
    character_error_rate,
    character_errors,
    composed,
    exact_match,
    matched_ious,
    normalised_edit_distance,
    word_errors,
)

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For machines that are busy with other things."""


def word_error_rate(references: list[str], predictions: list[str]) -> float:
    """All edits over all words of the references."""
    found = [word_errors(*pair) for pair in zip(references, predictions, strict=True)]
    return sum(one.edits for one in found) / sum(one.length for one in found)


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    return matched_ious([first], [second])[0]


def test_character_errors_by_hand() -> None:
    # kitten -> sitting: k/s, e/i, + g
    assert character_errors("kitten", "sitting").edits == 3
    assert character_error_rate(["kitten"], ["sitting"]) == pytest.approx(3 / 6)
    # a corpus is one long page: (3 + 0) / (6 + 4)
    assert character_error_rate(["kitten", "page"], ["sitting", "page"]) == pytest.approx(3 / 10)
    assert character_error_rate(["ab"], [""]) == 1.0
    assert character_error_rate(["ab"], ["abcdef"]) == 2.0


def test_word_errors_by_hand() -> None:
    # "the" substituted, "fox" missing
    assert word_errors("the quick fox", "a quick").edits == 2
    assert word_error_rate(["the quick fox"], ["a quick"]) == pytest.approx(2 / 3)
    assert word_error_rate(["one two", "three"], ["one two", "four five"]) == pytest.approx(2 / 3)


def test_white_space_and_composed_signs_are_no_errors() -> None:
    assert character_error_rate(["a\r\nb  c\n"], [" a b\tc"]) == 0
    assert character_error_rate(["caf\u00e9"], ["cafe\u0301"]) == 0


@patient
@given(st.text(max_size=30))  # no more signs than marks that are composed together
def test_text_is_composed_as_unicode_says(text: str) -> None:
    assert composed(text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    "text", ["naïve Café, Ångström ", "Tiếng Việt ", "हिन्दी ", "한글 ", "שָׁלוֹם "]
)
def test_long_ordinary_text_is_composed_as_unicode_says(text: str, form: str) -> None:
    text = unicodedata.normalize(form, text * 100)
    assert composed(text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("marks", ["\u0300\u0316", "\u0f73"])
def test_marks_without_end_are_composed_in_bounded_time(marks: str) -> None:
    text = "a" + marks * 300_000  # as one run, this would take minutes
    assert character_errors(text, text).edits == 0
    assert len(composed(f"e\u0301 {text}").split()) == 2


def test_empty_references_have_no_rate() -> None:
    with pytest.raises(ValueError, match="no text"):
        character_error_rate(["", " "], ["", "a"])
    with pytest.raises(ValueError, match="shorter"):
        word_error_rate(["a", "b"], ["a"])


def test_normalised_edit_distance_by_hand() -> None:
    assert normalised_edit_distance("kitten", "sitting") == pytest.approx(3 / 7)
    assert normalised_edit_distance("", "") == 0
    assert normalised_edit_distance("", "abc") == 1
    assert normalised_edit_distance("abc", "") == 1


def test_exact_match_looks_at_lines() -> None:
    assert exact_match("a b\nc", " a  b \r\nc\n")
    assert not exact_match("a b\nc", "a b c")
    assert not exact_match("a", "A")


texts = st.lists(st.text("abc é\n", max_size=30), min_size=1, max_size=5)


@patient
@given(texts, st.data())
def test_rates_are_those_of_jiwer(references: list[str], data: st.DataObject) -> None:
    references = [f"x{text}" for text in references]  # jiwer refuses empty references
    predictions = data.draw(
        st.lists(
            st.text("abc é\n", max_size=30), min_size=len(references), max_size=len(references)
        )
    )

    def flat(pages: list[str]) -> list[str]:
        return [re.sub(r"\s+", " ", page).strip() for page in pages]

    assert character_error_rate(references, predictions) == pytest.approx(
        jiwer.cer(flat(references), flat(predictions))
    )
    assert word_error_rate(references, predictions) == pytest.approx(
        jiwer.wer(flat(references), flat(predictions))
    )
    one, other = flat(references)[0], flat(predictions)[0]
    assert normalised_edit_distance(one, other) == pytest.approx(
        Levenshtein.distance(one, other) / max(len(one), len(other))
    )


def test_overlap_by_hand() -> None:
    assert box_iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1
    assert box_iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(50 / 150)
    assert box_iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert box_iou((3, 3, 3, 9), (3, 3, 3, 9)) == 1  # a line without area
    assert box_iou((3, 3, 3, 9), (3, 3, 3, 8)) == 0


def test_boxes_are_paired_one_to_one_for_the_largest_sum() -> None:
    truth = [(0, 0, 10, 10), (5, 0, 15, 10)]
    # One box that fits the first exactly, and the second by a third, can serve one of them only.
    assert matched_ious(truth, [(0, 0, 10, 10)]) == [1, 0]
    # Taking the best for the first box would leave 0 for the second: 1/3 + 1 is more.
    predicted = [(5, 0, 15, 10), (0, 0, 10, 5)]
    assert matched_ious(truth, predicted) == [pytest.approx(0.5), 1]
    assert matched_ious(truth, []) == [0, 0]
    assert matched_ious([], predicted) == []


def test_hosts_of_boxes_are_bounded() -> None:
    many = [(at % 900, 0, at % 900 + 9, 9) for at in range(3 * MOST_BOXES)]
    found = matched_ious(many, many)
    assert len(found) == 3 * MOST_BOXES
    assert set(found[:MOST_BOXES]) == {1.0}
    assert set(found[MOST_BOXES:]) == {0.0}


def html_of(rows: list[list[str]], cell: str = "td") -> str:
    lines = ("".join(f"<{cell}>{text}</{cell}>" for text in row) for row in rows)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def only(text: str) -> tables.Rows:
    (rows,) = html_tables(text)
    return rows


SQUARE = html_of([["a", "b"], ["c", "d"]])


def test_teds_by_hand() -> None:
    # table, 2 rows, 4 cells: 7 nodes
    assert teds(only(SQUARE), only(SQUARE)) == 1
    assert teds(only(SQUARE), only(html_of([["a", "b"], ["c"]]))) == pytest.approx(1 - 1 / 7)
    assert teds(only(SQUARE), only(html_of([["a", "b"]]))) == pytest.approx(1 - 3 / 7)
    # half of one cell's text is wrong
    longer = html_of([["aa", "b"], ["c", "d"]])
    assert teds(only(SQUARE), only(longer)) == pytest.approx(1 - 0.5 / 7)
    spans = SQUARE.replace("<td>a", "<td colspan=2>a")
    assert teds(only(SQUARE), only(spans)) == pytest.approx(1 - 1 / 7)


def test_tables_of_other_shapes_are_never_less_than_unlike() -> None:
    rows = only(html_of([["a"], ["b"], ["c"]]))
    columns = only(html_of([["d", "e", "f", "g", "h"]]))
    assert teds(rows, columns) == 0  # 9 changes to the 7 nodes of either
    assert table_scores([rows], [columns]) == [0]


def test_matters_of_taste_do_not_count() -> None:
    written = (
        "<TABLE border=1><thead><tr><th> a</th><th>b</th></tr></thead>"
        "<tbody><tr><td>c<td><b>d</b></tr></tbody></TABLE>"
    )
    assert teds(only(SQUARE), only(written)) == 1


def test_tables_of_a_page_are_paired_by_their_text() -> None:
    other = html_of([["x", "y", "z"]])
    truth = html_tables(f"{SQUARE} and {other}")
    assert table_scores(truth, html_tables(f"{other}{SQUARE}")) == [1, 1]
    assert table_scores(truth, html_tables(other)) == [0, 1]
    assert table_scores(truth, []) == [0, 0]
    assert table_scores([], truth) == []


def test_a_table_that_is_too_large_is_no_reading_and_no_truth() -> None:
    large = html_of([["a"] * 40] * 40)
    assert table_scores(html_tables(SQUARE), html_tables(large)) == [0]
    assert table_scores(html_tables(large), html_tables(SQUARE)) == [None]
    with pytest.raises(ValueError, match="more than 1000"):
        teds(only(large), only(SQUARE))


@pytest.mark.parametrize(
    "hostile",
    [
        "<table>" * 20_000,
        "<table><tr><td>" * 20_000,
        "<table>" + "<tr>" * 100_000,
        "<table><tr><td colspan=999999999 rowspan=999999999>x",
        "<table><tr><td colspan=-1 rowspan=x>x",
        "<table><tr><td>" + "<b>" * 50_000,
        "<table><!-- " + "x" * 100_000,
        "<table><tr><td>&#0;&#xD800;&bogus;\x00",
        "</table>" * 1_000 + "<table",
        '<table><tr><td><?xml version="1.0" encoding="x"?>',
    ],
)
def test_hostile_tables_end_as_small_ones(hostile: str) -> None:
    found = html_tables(hostile)
    assert len(found) <= tables.MOST_TABLES
    for rows in found:
        assert len(grid(rows)) <= tables.MOST_CELLS
    assert all(0 <= score <= 1 for score in table_scores(html_tables(SQUARE), found) if score)


@patient
@given(st.text("<>/tabledrh |\n-:a&", max_size=200))
def test_any_text_can_be_searched_for_tables(text: str) -> None:
    for rows in (*html_tables(f"<table>{text}"), *markdown_tables(text)):
        grid(rows)


def test_cells_without_a_row_are_kept() -> None:
    assert only("<table><tr><td>a</td></tr><td>b</td><td>c</td></table>") == (
        (GridCell("a"),),
        (GridCell("b"), GridCell("c")),
    )


def test_a_table_in_a_cell_is_its_text() -> None:
    inner = html_of([["in", "side"]])
    assert only(html_of([["out", inner]])) == ((GridCell("out"), GridCell("inside")),)


def test_spans_are_laid_out() -> None:
    rows = only("<table><tr><td rowspan=2>a<td colspan=2>b</tr><tr><td>c<td>d</tr></table>")
    seen = {at: cell.text for at, cell in grid(rows).items()}
    assert seen == {(0, 0): "a", (0, 1): "b", (0, 2): "b", (1, 0): "a", (1, 1): "c", (1, 2): "d"}


def test_pipe_tables() -> None:
    text = "before\n| a | b \\| c |\n|---|:-:|\n| 1 | 2 |\n3 | 4\nafter\n\nno | table\n---\n"
    assert markdown_tables(text) == [
        (
            (GridCell("a"), GridCell("b | c")),
            (GridCell("1"), GridCell("2")),
            (GridCell("3"), GridCell("4")),
        )
    ]


def test_pipe_tables_of_a_page_hold_a_bounded_number_of_cells() -> None:
    table = "|a|b|\n|-|-|\n" + ("|x" * 1_000 + "\n") * 6
    found = markdown_tables(f"{table}\n" * 3)
    assert [sum(len(row) for row in rows) for rows in found] == [6_002, tables.MOST_CELLS - 6_002]
    wide = "|a|b|\n|-|-|\n" + "|" * 1_000_000
    assert sum(len(row) for row in markdown_tables(wide)[0]) == tables.MOST_CELLS


PAGES = [(float(at % 3), 10.0) for at in range(40)]


def test_intervals_are_reproducible_and_hold_the_value() -> None:
    once, again = figures({"cer": PAGES}), figures({"cer": PAGES})
    assert once == again
    assert figures({"cer": PAGES}, seed=1) != once
    figure = once["cer"]
    assert figure.low is not None
    assert figure.high is not None
    assert figure.value == pytest.approx(sum(above for above, _ in PAGES) / 400)
    assert figure.low < figure.value < figure.high


def test_the_interval_of_a_mean_is_that_of_statistics() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(0.5, 0.1, 400)
    figure = figures({"mean": [(float(value), 1.0) for value in values]})["mean"]
    half = 1.96 * values.std() / 20
    assert figure.low == pytest.approx(values.mean() - half, abs=half / 8)
    assert figure.high == pytest.approx(values.mean() + half, abs=half / 8)


def test_long_pages_weigh_more_in_a_rate() -> None:
    assert figures({"cer": [(9.0, 10.0), (0.0, 90.0)]})["cer"].value == pytest.approx(0.09)


def test_figures_without_pages_are_left_out() -> None:
    found = figures({"teds": [(0.0, 0.0), (0.0, 0.0)], "iou": [(0.5, 1.0), (0.0, 0.0)]})
    assert found == {"iou": Estimate(0.5, None, None, 1)}
    assert figures({}) == {}
