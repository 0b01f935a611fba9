"""Grounded text becomes regions and Markdown, and no text can do more than be read."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ocr.grounding.parser import parse, to_markdown, to_pixels, without_tags
from tests.conftest import reference

PAGES = (
    "commons_example_receipt",
    "commons_test_ocr_document",
    "german_official_print",
    "receipt_historical",
    "simple_form",
)


def tag(label: str, boxes: str) -> str:
    return f"<|ref|>{label}<|/ref|><|det|>{boxes}<|/det|>"


def without_blank_lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


@pytest.mark.parametrize("page", PAGES)
def test_real_pages_are_cleaned_as_the_official_code_cleans_them(page: str) -> None:
    text = reference("real", f"{page}.grounding_markdown.txt").read_text()
    official = reference("real", f"{page}.grounding_markdown.mmd").read_text()
    assert without_blank_lines(to_markdown(text)) == without_blank_lines(official)


@pytest.mark.parametrize("page", PAGES)
def test_every_region_of_a_real_page_is_found(page: str) -> None:
    text = reference("real", f"{page}.grounding_markdown.txt").read_text()
    regions = parse(text)
    assert len(regions) == text.count("<|/det|>")
    for region in regions:
        for x1, y1, x2, y2 in region.boxes:
            assert 0 <= x1 <= x2 <= 999
            assert 0 <= y1 <= y2 <= 999


def test_label_boxes_text_and_place() -> None:
    first, second = tag("title", "[[1, 2, 30, 40]]"), tag("text", "[[5,6,7,8],[9, 10,11, 12]]")
    text = f"before\n{first}\n# Hello\n\n{second}\nWorld"
    title, body = parse(text)
    assert (title.label, title.boxes, title.text) == ("title", ((1, 2, 30, 40),), "# Hello")
    assert (body.label, body.boxes, body.text) == (
        "text",
        ((5, 6, 7, 8), (9, 10, 11, 12)),
        "World",
    )
    assert text[title.start :].startswith("<|ref|>title")
    assert text[title.text_start : title.end].strip() == "# Hello"
    assert body.end == len(text)


@pytest.mark.parametrize(
    ("boxes", "tidy"),
    [
        ("[[67, 844, 20, 860]]", (20, 844, 67, 860)),
        ("[[-5, 0, 2000, 1000]]", (0, 0, 999, 999)),
        ("[[999999999, 1, 2, 3]]", (2, 1, 999, 3)),
    ],
)
def test_reversed_and_outlying_boxes_are_put_right(
    boxes: str, tidy: tuple[int, int, int, int]
) -> None:
    assert parse(tag("text", boxes))[0].boxes == (tidy,)


@pytest.mark.parametrize(
    "boxes",
    [
        "",
        "[]",
        "[[]]",
        "[1, 2, 3, 4]",
        "[[1, 2, 3]]",
        "[[1, 2, 3, 4, 5]]",
        "[[1, 2, 3, 4],]",
        "[[1, 2, 3, nan]]",
        "[[1.5, 2, 3, 4]]",
        "[[1, 2, 3, 4]] + [[5]]",
        "__import__('os').system('touch /tmp/owned')",
        "[[1, 2, 3, " + "9" * 5000 + "]]",
        "[[１, 2, 3, 4]]",
    ],
)
def test_what_is_not_a_list_of_boxes_stays_text(boxes: str) -> None:
    text = tag("text", boxes) + "\nkept"
    assert parse(text) == []
    assert to_markdown(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "<|ref|>text<|/ref|>",
        "<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4]]",
        "<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>",
        "<|ref|>text<|/ref|> said <|det|>[[1, 2, 3, 4]]<|/det|>",
        "<|det|>[[1, 2, 3, 4]]<|/det|><|ref|>text<|/ref|>",
    ],
)
def test_broken_tags_stay_text(text: str) -> None:
    assert parse(text) == []
    assert to_markdown(text) == text


def test_the_inner_of_two_nested_tags_counts() -> None:
    text = f"<|ref|>outer {tag('text', '[[1, 2, 3, 4]]')}"
    assert [region.label for region in parse(text)] == ["text"]


def test_figures_become_links_counted_from_nought() -> None:
    figure = tag("image", "[[0, 0, 9, 9]]")
    text = f"{figure}\ncaption\n{tag('text', '[[1, 2, 3, 4]]')}\nmore\n{figure}"
    assert without_blank_lines(to_markdown(text)) == [
        "![](images/0.jpg)",
        "caption",
        "more",
        "![](images/1.jpg)",
    ]
    assert "fig-1" in without_tags(text, lambda number: f"fig-{number}")


def test_a_label_is_never_part_of_a_name() -> None:
    text = tag("image/../../etc/passwd", "[[0, 0, 9, 9]]")
    assert to_markdown(text) == ""
    assert parse(text)[0].is_figure is False


def test_formula_operators_are_rewritten() -> None:
    assert to_markdown(r"a \coloneqq b \eqqcolon c") == "a := b =: c"


def test_pixels_follow_the_published_scale() -> None:
    assert to_pixels((0, 0, 999, 999), 1000, 500) == (0, 0, 1000, 500)
    assert to_pixels((100, 200, 300, 400), 1998, 999) == (200, 200, 600, 400)


@pytest.mark.parametrize("piece", ["<|ref|>", "<|det|>", "<|ref|>a<|/ref|><|det|>", "[[1,2,3,4],"])
def test_hostile_repetition_is_read_in_linear_time(piece: str) -> None:
    def seconds(times: int) -> float:
        text = "<|ref|>a<|/ref|><|det|>[" + piece * times
        start = time.process_time()
        parse(text)
        to_markdown(text)
        return time.process_time() - start

    small = min(seconds(2_000) for _ in range(3))
    large = min(seconds(32_000) for _ in range(3))
    assert large < 0.05 or large < 64 * small  # sixteen times the text


PIECES = st.sampled_from(
    ["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "[[1, 2, 3, 4]]", "[[", "image", "text", "\n"]
)


@given(st.lists(PIECES | st.text(max_size=5), max_size=30))
def test_any_text_is_parsed_and_nothing_is_lost(pieces: list[str]) -> None:
    text = "".join(pieces)
    regions = parse(text)
    assert all(0 <= r.start < r.text_start <= r.end <= len(text) for r in regions)
    starts = [region.start for region in regions]
    assert starts == sorted(starts)
    well_formed = re.compile(r"<\|ref\|>[^<]*<\|/ref\|><\|det\|>\[\[1, 2, 3, 4\]\]<\|/det\|>")
    assert len(regions) >= len(well_formed.findall(text))
    kept = re.sub(r"\s", "", "".join(text[r.text_start : r.end] for r in regions))
    assert kept.replace("\\coloneqq", ":=").replace("\\eqqcolon", "=:") in re.sub(
        r"\s|!\[\]\(images/\d+\.jpg\)", "", to_markdown(text)
    )
