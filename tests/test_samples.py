"""Annotations: what is accepted, what is refused and why, and what they teach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_ocr.errors import FileWriteError, InputError, SettingsError
from deepseek_ocr.grounding import parser
from deepseek_ocr.training.data.annotations import (
    LONGEST_TEXT,
    Annotation,
    AnnotationError,
    LabelledRegion,
    Reference,
    annotation_to_json,
    parse_annotation,
    unknown_keys,
)
from deepseek_ocr.training.data.samples import (
    Sample,
    examples_of,
    grounded_text,
    load_samples,
)
from tests.conftest import reference
from tests.training_fixtures import put_list, put_page, save_samples

FULL: dict[str, Any] = {
    "text": "Invoice\nTotal 498",
    "markdown": "# Invoice\n\nTotal 498",
    "regions": [
        {"label": "title", "box": [40, 35, 510, 65], "text": "# Invoice"},
        {"label": "image", "box": [0, 100, 999, 200]},
        {"label": "text", "boxes": [[40, 300, 300, 320], [40, 330, 200, 350]], "text": "Total 498"},
    ],
    "reference": {"text": "Total 498", "box": [40, 300, 300, 320]},
    "figure": "a bar chart",
}


def test_a_full_annotation() -> None:
    assert parse_annotation(FULL) == Annotation(
        text="Invoice\nTotal 498",
        markdown="# Invoice\n\nTotal 498",
        regions=(
            LabelledRegion("title", ((40, 35, 510, 65),), "# Invoice"),
            LabelledRegion("image", ((0, 100, 999, 200),), ""),
            LabelledRegion("text", ((40, 300, 300, 320), (40, 330, 200, 350)), "Total 498"),
        ),
        reference=(Reference("Total 498", ((40, 300, 300, 320),)),),
        figure="a bar chart",
    )


def test_one_reference_or_a_list_of_them() -> None:
    one = FULL["reference"]
    assert parse_annotation({"reference": one}) == parse_annotation({"reference": [one]})


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ([], "must be an object"),
        ({}, "none of text"),
        ({"text": ""}, "text is empty"),
        ({"text": " \n"}, "text is empty"),
        ({"text": 5}, "text must be a string"),
        ({"text": "x" * (LONGEST_TEXT + 1)}, "are the most"),
        ({"text": "a <|det|> b"}, "special token"),
        ({"text": "<image>"}, "special token"),
        ({"text": "<｜end▁of▁sentence｜>"}, "special token"),
        ({"text": "\ud800"}, "surrogate"),
        ({"text": "a\0"}, "null character"),
        ({"regions": {}}, "regions must be a list"),
        ({"regions": [5]}, r"regions\[0\] must be an object"),
        ({"regions": [{"box": [0, 0, 1, 1]}]}, "label"),
        ({"regions": [{"label": "<|ref|>", "box": [0, 0, 1, 1]}]}, "special token"),
        ({"regions": [{"label": "x"}]}, "either box or boxes"),
        ({"regions": [{"label": "x", "box": [0, 0, 1, 1], "boxes": []}]}, "either box or boxes"),
        ({"regions": [{"label": "x", "boxes": []}]}, "at least one"),
        ({"regions": [{"label": "x", "box": [0, 0, 1]}]}, "whole numbers"),
        ({"regions": [{"label": "x", "box": [0, 0, 1, 1000]}]}, "whole numbers"),
        ({"regions": [{"label": "x", "box": [0, 0, 1, 1.0]}]}, "whole numbers"),
        ({"regions": [{"label": "x", "box": [0, 0, 1, True]}]}, "whole numbers"),
        ({"regions": [{"label": "x", "box": [5, 0, 1, 1]}]}, "reversed"),
        ({"regions": [{"label": "x", "box": [0, 0, 1, 1], "text": 0}]}, "must be a string"),
        ({"reference": {"text": "", "box": [0, 0, 1, 1]}}, "empty"),
        ({"reference": {"text": "</td>", "box": [0, 0, 1, 1]}}, "plain words"),
        ({"reference": 7}, r"reference\[0\] must be an object"),
        ({"regions": [{"label": "x", "box": [0, 0, 1, 1]}] * 5001}, "5000 are the most"),
    ],
)
def test_broken_annotations_are_refused_with_the_reason(broken: object, says: str) -> None:
    with pytest.raises(AnnotationError, match=says):
        parse_annotation(broken)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
values = json_values | st.sampled_from([*FULL.values(), [FULL["reference"]]])


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys([*FULL, "box"], values)))
def test_any_json_is_an_annotation_or_an_error(raw: object) -> None:
    try:
        annotation = parse_annotation(raw)
    except AnnotationError:
        return
    assert parse_annotation(annotation_to_json(annotation)) == annotation


def test_an_annotation_survives_json() -> None:
    annotation = parse_annotation(FULL)
    again = json.loads(json.dumps(annotation_to_json(annotation)))
    assert parse_annotation(again) == annotation


def test_table_tags_are_text() -> None:
    text = "<table><tr><td>1</td></tr></table>"
    assert parse_annotation({"markdown": text}).markdown == text


def test_unknown_keys_are_named() -> None:
    assert unknown_keys({**FULL, "image": "x.png", "texts": 1, "author": 2}) == ("author", "texts")
    assert parse_annotation({**FULL, "author": 2}) == parse_annotation(FULL)


def sample_of(raw: object) -> Sample:
    return Sample(Path("page.png"), parse_annotation(raw), "page")


def test_what_an_annotation_teaches() -> None:
    found = examples_of(sample_of(FULL), ["ocr", "Convert to Markdown", "figure", "locate"])
    assert [(one.task, one.prompt, one.name) for one in found] == [
        ("Free OCR", "<image>\nFree OCR.", "page"),
        (
            "Convert to Markdown",
            "<image>\n<|grounding|>Convert the document to markdown.",
            "page",
        ),
        ("Parse Figure", "<image>\nParse the figure.", "page"),
        (
            "Locate Object by Reference",
            "<image>\nLocate <|ref|>Total 498<|/ref|> in the image.",
            "page#1",
        ),
    ]
    assert [one.answer for one in found] == [
        "Invoice\nTotal 498",
        "<|ref|>title<|/ref|><|det|>[[40, 35, 510, 65]]<|/det|>\n# Invoice\n\n"
        "<|ref|>image<|/ref|><|det|>[[0, 100, 999, 200]]<|/det|>\n\n"
        "<|ref|>text<|/ref|><|det|>[[40, 300, 300, 320], [40, 330, 200, 350]]<|/det|>\nTotal 498",
        "a bar chart",
        "<|ref|>Total 498<|/ref|><|det|>[[40, 300, 300, 320]]<|/det|>",
    ]


def test_markdown_stands_in_for_regions_and_figure() -> None:
    markdown = {"markdown": "# Invoice"}
    for task in ("markdown", "figure"):
        assert [one.answer for one in examples_of(sample_of(markdown), [task])] == ["# Invoice"]
    regions = {**markdown, "regions": FULL["regions"]}
    assert examples_of(sample_of(regions), ["figure"]) == []


def test_a_task_without_an_answer_gives_nothing() -> None:
    assert examples_of(sample_of({"text": "a"}), ["markdown", "locate", "figure"]) == []
    with pytest.raises(SettingsError, match="no task"):
        examples_of(sample_of({"text": "a"}), ["read"])


def test_the_model_reads_its_own_grounded_text_back() -> None:
    annotation = parse_annotation(FULL)
    regions = parser.parse(grounded_text(annotation.regions))
    assert [(one.label, one.boxes, one.text) for one in regions] == [
        (one.label, one.boxes, one.text) for one in annotation.regions
    ]


@pytest.mark.parametrize("page", ["commons_example_receipt", "german_official_print"])
def test_grounded_text_is_written_as_the_real_model_writes_it(page: str) -> None:
    """Regions of a real output, written again, differ from it in spaces at line ends alone."""
    real = reference("real", f"{page}.grounding_markdown.txt").read_text(encoding="utf-8")
    regions = [LabelledRegion(one.label, one.boxes, one.text) for one in parser.parse(real)]
    ours = grounded_text(regions)

    def trimmed(text: str) -> list[str]:
        return [line.rstrip() for line in text.splitlines()]

    assert trimmed(ours) == trimmed(real)


def test_samples_are_saved_and_loaded(tmp_path: Path) -> None:
    picture = put_page(tmp_path / "in", "deep/er/ü 1.png", FULL, "red")
    sample = Sample(picture, parse_annotation(FULL), "deep/er/ü 1")
    save_samples(tmp_path / "in", tmp_path / "out" / "train.json", [sample])
    loaded, rejections = load_samples(tmp_path / "in", tmp_path / "out" / "train.json")
    assert (loaded, rejections) == ([sample], [])


@pytest.mark.parametrize(
    ("entry", "name", "says"),
    [
        ({"text": "a"}, "entry 1", "image must be a string"),
        ({"image": "../x.png", "text": "a"}, "../x.png", "below the data folder"),
        ({"image": "/etc/passwd", "text": "a"}, "/etc/passwd", "below the data folder"),
        ({"image": "C:/x.png", "text": "a"}, "C:/x.png", "below the data folder"),
        ({"image": "gone.png", "text": "a"}, "gone.png", "is not in"),
        ({"image": "a.png", "text": ""}, "a.png", "text is empty"),
        ("x", "entry 1", "must be an object"),
    ],
)
def test_entries_that_cannot_be_used_are_named(
    tmp_path: Path, entry: object, name: str, says: str
) -> None:
    put_page(tmp_path, "a.png", {"text": "a"}, "red")
    listed = put_list(tmp_path, [entry, {"image": "a.png", "text": "a"}])
    samples, (rejection,) = load_samples(tmp_path, listed)
    assert [sample.name for sample in samples] == ["a"]
    assert rejection.name == name
    assert says in rejection.reason


def test_unknown_keys_of_entries_are_told(tmp_path: Path) -> None:
    put_page(tmp_path, "a.png", {"text": "a"}, "red")
    listed = put_list(tmp_path, [{"image": "a.png", "text": "a", "txt": "b"}] * 2)
    told: list[str] = []
    load_samples(tmp_path, listed, told.append)
    assert len(told) == 1
    assert "'txt' (2)" in told[0]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{}", "array"),
        (b"[", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_list_that_is_none(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "test.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        load_samples(tmp_path, path)
    with pytest.raises(InputError, match="does not exist"):
        load_samples(tmp_path, tmp_path / "other.json")


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileWriteError, match="cannot be written"):
        save_samples(tmp_path, tmp_path / "file" / "train.json", [])
