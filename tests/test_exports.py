"""Each output format says what was read, page by page, and trusts nothing of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image

from deepseek_ocr.engine.results import Failure
from deepseek_ocr.errors import ImageError, SettingsError
from deepseek_ocr.formats import FORMATS, export, markdown
from deepseek_ocr.formats.export import text_of, write
from deepseek_ocr.formats.figures import MOST_AREA, MOST_FIGURES, figure_crops, save_figures
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.formats.writing import WriteContext
from deepseek_ocr.grounding import parser
from tests.conftest import ROOT, reference
from tests.output_fixtures import (
    PAGE,
    TABLE,
    Block,
    blank,
    document_of,
    grounded,
    record_of,
)
from tests.output_fixtures import (
    text_output as text,
)
from tests.output_fixtures import (
    three_pages as three,
)

SCHEMA = json.loads((ROOT / "deepseek_ocr" / "formats" / "document.schema.json").read_text())


def test_every_format_writes_its_files_and_nothing_else(tmp_path: Path) -> None:
    document = document_of([record_of(1, PAGE)], Path("photo.jpg"), "two words ünï")
    written = write(document, list(FORMATS), tmp_path / "out", blank).files
    names = ["md", "html", "json", "txt", "mmd", "regions.jsonl", "pdf"]
    expected = {f"two words ünï.{ending}" for ending in names}
    expected |= {"two words ünï_det.mmd", "two words ünï_layouts.pdf"}
    assert {path.name for path in written} == expected
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../a", "a\\b", "a\0", "x" * 201])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="another name"):
        write(document_of([record_of(1, "x")], name=name), ["txt"], tmp_path, blank)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_format_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="searchable-pdf"):
        write(document_of([record_of(1, "x")]), ["txt", "docx"], tmp_path, blank)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SettingsError, match="regions"):
        text("pdf")


def test_pages_are_taken_one_at_a_time() -> None:
    taken: list[int] = []

    class Pages(list[PageRecord]):
        def __iter__(self) -> Iterator[PageRecord]:
            for page in super().__iter__():
                taken.append(page.number)
                yield page

    document = document_of(Pages(record_of(number, PAGE) for number in range(1, 100)))
    for name in (name for name, one in FORMATS.items() if one.is_text):
        taken.clear()
        pieces = text_of(document, name, Path("absent"))
        for _ in range(4):
            next(pieces)
        assert 0 < len(taken) <= 5, name


# --- Markdown -----------------------------------------------------------------------------------


def test_markdown_names_every_page_and_what_became_of_it() -> None:
    lines = text("md", *three()).splitlines()
    comments = [line for line in lines if line.startswith("<!--")]
    assert comments == [
        "<!-- page 1 -->",
        "<!-- page 2 -->",
        "<!-- page 2 could not be read: The page cannot be rendered - -&gt;; repair the file. -->",
        "<!-- page 3 -->",
        "<!-- page 3: the model went in circles here; the text may repeat itself or be incomplete"
        " -->",
        "<!-- page 3 was tried 2 times; this is try 2 -->",
    ]
    assert {"# The report", "![](images/0_0.jpg)", r"a_1 \coloneqq b_2", TABLE} <= set(lines)
    assert "<|" not in "".join(lines)


def test_a_page_cannot_hide_the_next_one() -> None:
    done = text("md", record_of(1, "a <!-- b\n```python\ncode"), record_of(2, "after"))
    assert "a \\<!-- b  \n\\`\\`\\`python  \ncode\n\n<!-- page 2 -->\n\nafter" in done


@settings(deadline=None, max_examples=50)
@example("<!a")
@example("<?php")
@example("<Script>")
@example("<![CDATA[")
@example("<~~~")
@example("~~~\n~~~a")
@example("<div\n~~~\n\nfoo")
@example("~~~\n```\n~~~\n```")
@given(st.text("<!->`~\n a|", max_size=60))
def test_page_marks_survive_any_text(hostile: str) -> None:
    shown = MarkdownIt().parse(text("md", record_of(1, hostile), record_of(2, "end")))
    assert shown[-3].type == "paragraph_open"
    assert "<!-- page 2 -->" in [token.content.strip() for token in shown if not token.level]


def test_figures_without_a_file_are_not_linked() -> None:
    page = grounded([Block("image", (5, 5, 5, 5), ""), Block("image", (0, 0, 500, 500), "")])
    done = text("md", record_of(2, page, figures=("", "1_1.jpg")))
    assert re.findall(r"!\[\]\((.*?)\)", done) == ["images/1_1.jpg"]


# --- the official script's files ----------------------------------------------------------------


def test_official_files_are_the_official_scripts() -> None:
    pages = [record_of(1, PAGE), record_of(2, "Free text\n\n\n\n\nof it")]
    assert text("mmd", *pages) == (
        "\n# The report\n\nWords and **more** words.\nA second line.\n\n![](images/0_0.jpg)\n\n"
        f"{TABLE}\n\n\\[ a_1 := b_2 \\]\n\n<--- Page Split --->\n"
        "Free text\n\n\n\n\nof it\n\n<--- Page Split --->\n"
    )
    tagged = "".join(
        markdown.write_official_tagged(document_of(pages), WriteContext(Path("absent")))
    )
    assert tagged == (
        f"{PAGE}\n\n<--- Page Split --->\nFree text\n\n\n\n\nof it\n\n<--- Page Split --->\n"
    )


def test_pages_the_official_script_would_drop_are_kept_and_marked() -> None:
    failed, looped = text("mmd", *three()).split("\n\n<--- Page Split --->\n")[1:3]
    assert failed.startswith("<!-- page 2 could not be read")
    assert looped.startswith("<!-- page 3: the model went in circles")
    assert looped.endswith("round and round")


@pytest.mark.parametrize("page", ["commons_example_receipt", "german_official_print"])
def test_official_clean_up_of_real_output(page: str) -> None:
    def without_blank_lines(text: str) -> str:  # the script for PDFs keeps fewer than that for one
        return re.sub(r"\n+", "\n", text)

    written = reference("real", f"{page}.grounding_markdown.txt").read_text()
    expected = reference("real", f"{page}.grounding_markdown.mmd").read_text()
    done = markdown.official_clean(written, parser.figure_name)
    assert without_blank_lines(done) == without_blank_lines(expected)


# --- plain text ---------------------------------------------------------------------------------


def test_plain_text_has_no_markup_and_a_form_feed_a_page() -> None:
    assert text("txt", *three()).split("\f") == [
        "The report\nWords and more words.\nA second line.\nItem\tPrice\nBread\t2.50\n"
        "\\[a_1 \\coloneqq b_2\\]\n",
        "[page 2 could not be read]\n",
        "round and round\n",
        "",
    ]


# --- JSON ---------------------------------------------------------------------------------------


def test_json_follows_the_published_schema() -> None:
    turned = record_of(4, PAGE, points=(595.0, 842.0), rotation=90)
    bare = PageRecord(5)
    document = json.loads(text("json", *three(), turned, bare))
    jsonschema.validate(document, SCHEMA)
    assert [page["number"] for page in document["pages"]] == [1, 2, 3, 4, 5]
    assert document["pages"][1]["error"].startswith("The page cannot be rendered")
    assert "text" not in document["pages"][1]
    assert [one["outcome"] for one in document["pages"][2]["tries"]] == ["loop", "loop"]


def test_json_of_a_page_from_the_model_follows_the_schema(pocket: Any) -> None:
    from deepseek_ocr import CropSettings

    page = ROOT / "examples" / "fruit.png"
    reading = pocket.read(page, "Free OCR.", CropSettings(512, 512, crop_mode=False))
    pages = [
        export.page_to_json(reading, "fruit.png"),
        export.page_to_json(Failure(ImageError("No picture; give another.")), "broken.png"),
    ]
    document = json.loads(json.dumps(export.document_to_json(pages)))
    jsonschema.validate(document, SCHEMA)
    assert document["pages"][0]["text"] == reading.text
    assert document["pages"][0]["more_pages"] is False
    assert document["pages"][1]["error"] == "No picture; give another."


@pytest.mark.parametrize("spoilt", [{"regions": 1}, {"error": "x"}, {"extra": 1}, {"number": 0}])
def test_the_schema_refuses_another_shape(spoilt: dict[str, Any]) -> None:
    document = json.loads(text("json", record_of(1, PAGE)))
    document["pages"][0].update(spoilt)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


@pytest.mark.parametrize(
    ("rotation", "points"),
    [
        (0, [50.0, 20.0, 100.0, 60.0]),
        (90, [20.0, 400.0, 60.0, 450.0]),
        (180, [400.0, 140.0, 450.0, 180.0]),
        (270, [440.0, 50.0, 480.0, 100.0]),
    ],
)
def test_boxes_in_points_are_of_the_page_before_it_was_turned(
    rotation: int, points: list[float]
) -> None:
    shown = (500.0, 200.0) if rotation % 180 == 0 else (500.0, 500.0)
    picture = shown if rotation % 180 == 0 else shown[::-1]
    x1, y1, x2, y2 = 50, 20, 100, 60
    boxes = [round(v / side * 999) for v, side in zip((x1, y1, x2, y2), picture * 2, strict=True)]
    page = grounded([Block("text", tuple(boxes), "x")])  # type: ignore[arg-type]
    record = record_of(1, page, points=shown, rotation=rotation)
    (found,) = json.loads(text("json", record))["pages"][0]["regions"][0]["boxes_points"]
    assert found == pytest.approx(points, abs=0.6)


def test_regions_come_one_a_line_in_reading_order() -> None:
    lines = [json.loads(line) for line in text("regions", *three()).splitlines()]
    assert [(one["document"], one["page"], one["order"], one["label"]) for one in lines] == [
        ("scan", 1, 1, "title"),
        ("scan", 1, 2, "text"),
        ("scan", 1, 3, "image"),
        ("scan", 1, 4, "table"),
        ("scan", 1, 5, "formula"),
    ]
    assert lines[2]["markdown"] == "![](images/0_0.jpg)"
    assert lines[0]["boxes_pixels"] == [[50, 70, 901, 140]]


# --- figures ------------------------------------------------------------------------------------


def test_figures_are_cut_at_full_resolution_and_clipped(tmp_path: Path) -> None:
    image = Image.new("RGB", (2000, 3000), "white")
    image.paste("red", (500, 600, 1000, 1500))
    spans = [(250, 200, 500, 500), (700, 700, 700, 900), (900, 900, 5000, 5000)]
    regions = parser.parse(grounded([Block("image", span, "") for span in spans]))
    names = save_figures(image, regions, 3, tmp_path)
    assert names == ("2_0.jpg", "", "2_2.jpg")
    with Image.open(tmp_path / "images" / "2_0.jpg") as figure:
        assert figure.size == (500, 901)
        assert figure.getpixel((250, 450)) == pytest.approx((255, 0, 0), abs=3)
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["2_0.jpg", "2_2.jpg"]


def test_a_page_full_of_figures_is_bounded() -> None:
    many = parser.parse(grounded([Block("image", (0, 0, 20, 20), "")] * 1000))
    large = parser.parse(grounded([Block("image", (0, 0, 999, 999), "")] * 1000))
    page = blank()
    assert sum(crop is not None for crop in figure_crops(page, many)) == MOST_FIGURES
    crops = list(figure_crops(page, large))
    assert (len(crops), sum(crop is not None for crop in crops)) == (1000, MOST_AREA)


def test_lost_figures_are_cut_again(tmp_path: Path) -> None:
    document = document_of([record_of(1, PAGE, figures=("0_0.jpg",))])
    (path,) = write(document, ["html"], tmp_path, blank).files
    assert (tmp_path / "images" / "0_0.jpg").is_file()
    assert 'src="data:image/jpeg;base64,' in path.read_text()
