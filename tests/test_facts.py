"""Facts about pages: each kind, right and wrong, and files of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from deepseek_ocr.errors import InputError
from deepseek_ocr.training.evaluation.fact_report import verdicts
from deepseek_ocr.training.evaluation.facts import (
    LAST_PAGE,
    FactPage,
    PageText,
    check,
    load_facts,
    parse_fact,
    plain,
    starts,
)
from deepseek_ocr.training.evaluation.scoring import Prediction
from deepseek_ocr.training.evaluation.teds import Rows, html_tables
from tests.training_fixtures import evaluate, jsonl, put_page

PAGE = """\
<|ref|>title<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>
# The **first** chapter

<|ref|>text<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>
It was “a dark” and stormy\tnight — the rain fell. The second chapter follows. Page 7
"""
TABLE = """\
<table><tr><td>Year</td><td colspan="2">Share</td></tr>
<tr><td rowspan="2">2023</td><td>2.4%</td><td>9.1%</td></tr>
<tr><td>4.5%</td><td>8.0%</td></tr></table>

| Name | Size |
|---|---|
| a | *12* |
"""

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For machines that are busy with other things."""


def passes(page: str, /, **fact: Any) -> bool:
    return check(parse_fact({"image": "page.png", "id": "1", **fact}), PageText(page)).passed


@pytest.mark.parametrize(
    ("there", "fact"),
    [
        (True, {"text": "the rain fell."}),
        (True, {"text": "The first chapter It was"}),
        (True, {"text": "- the rain"}),
        (True, {"text": '"a dark" and stormy night'}),
        (False, {"text": "a bright"}),
        (False, {"text": "The Rain fell."}),
        (True, {"text": "The Rain fell.", "case_sensitive": False}),
        (False, {"text": "teh rain fell."}),
        (True, {"text": "teh rain fell.", "max_diffs": 2}),
        (False, {"text": "teh rain felt.", "max_diffs": 2}),
        (True, {"text": "Page 7", "last_n": 6}),
        (False, {"text": "Page 7", "last_n": 5}),
        (False, {"text": "Page 7", "first_n": 20}),
        (True, {"text": "Page 7", "first_n": 20, "last_n": 6}),
        (True, {"text": "chapter", "first_n": 20}),
        (False, {"text": "det|"}),
    ],
)
def test_present_and_absent(there: bool, fact: dict[str, Any]) -> None:
    assert passes(PAGE, type="present", **fact) == there
    assert passes(PAGE, type="absent", **fact) != there


@pytest.mark.parametrize(
    ("holds", "before", "after", "diffs"),
    [
        (True, "first", "second", 0),
        (False, "second", "first", 0),
        (True, "frist", "seconf", 2),
        (False, "frist", "seconf", 0),
        (False, "first", "third", 0),
        (True, "The", "The", 0),  # one of them before another
        (False, "stormy", "stormy", 2),  # the same place is not before itself
    ],
)
def test_order(holds: bool, before: str, after: str, diffs: int) -> None:
    assert passes(PAGE, type="order", before=before, after=after, max_diffs=diffs) == holds


@pytest.mark.parametrize(
    ("holds", "fact"),
    [
        (True, {"cell": "4.5%", "up": "2.4%"}),
        (False, {"cell": "4.5%", "down": "2.4%"}),
        (True, {"cell": "2.4%", "down": "4.5%", "left": "2023", "right": "9.1%", "up": "Share"}),
        (False, {"cell": "2.4%", "down": "4.5%", "left": "2024"}),
        (True, {"cell": "4.5%", "left": "2023"}),  # through the row span
        (True, {"cell": "8.0%", "top_heading": "Share", "left_heading": "2023"}),
        (True, {"cell": "Share", "down": "9.1%"}),  # below its second column
        (False, {"cell": "8.0%", "top_heading": "9.1%"}),
        (True, {"cell": "12", "top_heading": "Size", "left": "a"}),
        (False, {"cell": "13", "left": "a"}),
        (True, {"cell": "Yaer", "right": "Shar", "max_diffs": 2}),
        (False, {"cell": "Yaer", "right": "Shar", "max_diffs": 1}),
        (False, {"cell": "Year", "left": "Year"}),
    ],
)
def test_tables(holds: bool, fact: dict[str, Any]) -> None:
    assert passes(TABLE, type="table", **fact) == holds
    assert not passes(PAGE, type="table", **fact)


def test_a_verdict_says_why() -> None:
    fact = parse_fact({"image": "p.png", "type": "order", "before": "second", "after": "first"})
    assert check(fact, PageText(PAGE)).reason == "both are there, but in the other order."
    fact = parse_fact({"image": "p.png", "type": "table", "cell": "4.5%", "up": "9", "left": "1"})
    assert "up, left" in check(fact, PageText(TABLE)).reason


@patient
@given(st.text("abc", min_size=2, max_size=5), st.text("abc ", max_size=12), st.integers(1, 3))
def test_places_are_those_of_an_exhaustive_search(pattern: str, text: str, most: int) -> None:
    nearest = {
        at: min(Levenshtein.distance(pattern, text[at:end]) for end in range(at, len(text) + 1))
        for at in range(len(text) + 1)
    }
    found = starts(pattern, text, most)
    assert all(nearest[at] <= most for at in found)
    assert bool(found) == (min(nearest.values()) <= most)
    if found:
        assert min(nearest[at] for at in found) == min(nearest.values())


def test_text_that_goes_in_circles_is_searched_in_bounded_time() -> None:
    assert starts("a" * 50, "a" * 50_000 + "b", 0)[0] == 0
    assert starts("a" * 50, "a" * 50_000, 5)


def test_marks_without_end_are_taken_in_bounded_time() -> None:
    text = "a" + "\u0300\u0316" * 300_000  # as one run, this would take minutes
    assert len(plain(text)) == len(text) - 1  # the letter takes one of them


def test_a_page_is_made_ready_once_for_all_its_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counting(text: str) -> list[Rows]:
        asked.append(text)
        return html_tables(text)

    monkeypatch.setattr("deepseek_ocr.training.evaluation.facts.html_tables", counting)
    facts = [
        parse_fact({"image": f"{page}.png", "type": "table", "cell": "4.5%", "up": up})
        for page in "abab"
        for up in ("2.4%", "9.1%")
    ]
    readings = {"a.png": Prediction(TABLE), "b.png": Prediction(TABLE)}
    found = verdicts(facts, readings)
    assert [verdict.fact for verdict in found] == facts
    assert [verdict.passed for verdict in found] == [True, False] * 4
    assert len(asked) == 2


def test_names_of_pages_keep_the_dots_of_their_folders() -> None:
    assert FactPage("v1.0/page").names() == ("v1.0/page",)
    assert FactPage("v1.0/page.png").names() == ("v1.0/page",)
    assert FactPage("v1.0/book", 2).names() == ("v1.0/book_pg2_repeat1", "v1.0/book_pg2")
    assert FactPage("book.pdf", 1).names()[-1] == "book"


def test_markup_that_never_closes_is_left_alone() -> None:
    text = " *a" * 100_000 + "**" * 3
    assert plain(text).startswith("*a *a")


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ([], "object"),
        ({"type": "math", "math": "x"}, "'math' are not run"),
        ({"type": "present", "text": "a", "pdf": "../x.pdf"}, "below the data folder"),
        ({"type": "present", "text": "a"}, "pdf"),
        ({"type": "present", "image": "a.png"}, "needs text"),
        ({"type": "present", "image": "a.png", "text": " "}, "needs text"),
        ({"type": "present", "image": "a.png", "text": 5}, "must be a text"),
        ({"type": "present", "image": "a.png", "text": "abc", "max_diffs": 3}, "everywhere"),
        ({"type": "present", "image": "a.png", "text": "abc", "max_diffs": -1}, "whole number"),
        ({"type": "present", "image": "a.png", "text": "abc", "case_sensitive": "no"}, "true"),
        ({"type": "present", "image": "a.png", "text": "abc", "case_sensitive": 0}, "true"),
        ({"type": "present", "image": "a.png", "text": "abc", "case_sensitive": 1.0}, "true"),
        ({"type": "present", "pdf": "a.pdf", "text": "abc", "page": 0}, "from 1 to"),
        ({"type": "present", "pdf": "a.pdf", "text": "abc", "page": True}, "from 1 to"),
        ({"type": "present", "pdf": "a.pdf", "text": "abc", "page": LAST_PAGE + 1}, "from 1 to"),
        ({"type": "order", "image": "a.png", "before": "a"}, "needs after"),
        ({"type": "table", "image": "a.png", "cell": "a"}, "needs one of"),
        ({"type": "present", "image": "a.png", "text": "a", "checked": "rejected"}, "rejected"),
    ],
)
def test_broken_facts(broken: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_fact(broken)


def put_facts(folder: Path, facts: list[Any]) -> Path:
    path = folder / "facts.jsonl"
    path.write_text("\n".join(json.dumps(fact) for fact in facts) + "\n\nno json\n")
    return path


FACTS = [
    {"pdf": "book.pdf", "page": 2, "id": "a", "type": "present", "text": "the rain fell"},
    {"pdf": "book.pdf", "page": 2, "id": "b", "type": "absent", "text": "Page 7"},
    {"image": "sub/scan.png", "id": "c", "type": "table", "cell": "4.5%", "up": "2.4%"},
    {"image": "gone.png", "id": "d", "type": "absent", "text": "anything"},
    {"pdf": "book.pdf", "page": 2, "id": "e", "type": "math", "math": "x"},
]


def test_a_file_of_facts_names_the_lines_that_cannot_be_used(tmp_path: Path) -> None:
    facts, rejections = load_facts(put_facts(tmp_path, FACTS))
    assert [fact.id for fact in facts] == ["a", "b", "c", "d"]
    assert [rejection.name for rejection in rejections] == ["line 5", "line 7"]


def test_facts_over_texts_made_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    (made / "book_pg2_repeat1.md").write_text(PAGE)
    (made / "sub" / "scan.mmd").write_text(TABLE)
    facts = put_facts(tmp_path, FACTS)
    output = tmp_path / "out"
    flags = ["--facts", str(facts), "--predictions", str(made), "--output_dir", str(output)]
    assert evaluate(flags) == 1
    found = {one["id"]: (one["passed"], one["reason"]) for one in jsonl(output / "facts.jsonl")}
    assert {name: passed for name, (passed, _) in found.items()} == {
        "a": True,
        "b": False,
        "c": True,
        "d": False,  # a page that was not read proves nothing absent
    }
    assert "was not read" in found["d"][1]
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["facts"]["all"]["value"] == 0.5
    assert metrics["facts"]["all"]["pages"] == 3
    assert metrics["counts"] == {
        "facts": 4,
        "passed": 2,
        "pages": 3,
        "not run": 2,
        "extra texts": 0,
    }
    report = (output / "report.md").read_text()
    assert "line 5" in report
    assert "gone" in report
    assert "gone" in capsys.readouterr().err


def test_texts_of_facts_that_are_not_run_are_of_no_other_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    (made / "b").mkdir(parents=True)
    for name in ("1_pg1.md", "b/1.md", "3_pg1.md", "3_pg1.txt", "strange.mmd"):
        (made / name).write_text("text")
    facts = put_facts(
        tmp_path,
        [
            {"pdf": f"{file}.pdf", "page": 1, "type": "present", "text": "text"}
            for file in ("3", "a/1", "b/1")
        ],
    )
    flags = ["--facts", str(facts), "--predictions", str(made), "--limit", "2"]
    assert evaluate([*flags, "--output_dir", str(tmp_path / "out")]) == 1
    found = [one["passed"] for one in jsonl(tmp_path / "out" / "facts.jsonl")]
    assert found == [True, False]  # 1_pg1 may be of a/1 or of b/1, which is beyond the limit
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["counts"]["extra texts"] == 3
    assert metrics["extra texts"] == ["1_pg1.md", "3_pg1.txt", "strange.mmd"]
    assert "Texts that were not used: 3" in (tmp_path / "out" / "report.md").read_text()
    assert "3 texts in" in capsys.readouterr().err


@pytest.mark.parametrize("reader", ["predictions", "model"])
def test_a_page_whose_name_is_too_long_fails_alone(tmp_path: Path, reader: str) -> None:
    put_page(tmp_path, "fruit.png", {})
    (tmp_path / "fruit.md").write_text("Apple")
    facts = put_facts(
        tmp_path,
        [
            {"image": "fruit.png", "type": "present", "text": "Apple"},
            {"pdf": "x" * 250 + ".pdf", "page": 1, "type": "present", "text": "Apple"},
            {"image": "y" * 300 + ".png", "type": "present", "text": "Apple"},
        ],
    )
    flags = ["--facts", str(facts), "--data_root", str(tmp_path), "--task", "ocr"]
    if reader == "model":
        flags += ["--model_path", "pocket", "--size", "tiny"]
    else:
        flags += ["--predictions", str(tmp_path)]
    assert evaluate([*flags, "--output_dir", str(tmp_path / "out")]) == 1
    found = [one["passed"] for one in jsonl(tmp_path / "out" / "facts.jsonl")]
    assert found == [True, False, False]


def test_facts_over_pages_that_the_model_reads(tmp_path: Path) -> None:
    for name, picture in (("fruit.png", "fruit.png"), ("book_pg1.png", "invoice.png")):
        page = put_page(tmp_path / "data", picture, {})
        page.rename(page.with_name(name))
    facts = put_facts(
        tmp_path,
        [
            {
                "image": "fruit.png",
                "id": "1",
                "type": "present",
                "text": "Lemon 34",
                "max_diffs": 1,
            },
            {"image": "fruit.png", "id": "2", "type": "order", "before": "Apple", "after": "Lemon"},
            {"pdf": "book.pdf", "page": 1, "id": "3", "type": "present", "text": "Invoice"},
        ],
    )
    flags = ["--facts", str(facts), "--data_root", str(tmp_path / "data"), "--task", "ocr"]
    flags += ["--model_path", "pocket", "--size", "tiny", "--output_dir", str(tmp_path / "out")]
    assert evaluate(flags) == 1  # for the line that is no JSON
    assert [one["passed"] for one in jsonl(tmp_path / "out" / "facts.jsonl")] == [True] * 3


def test_no_fact_that_can_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = put_facts(tmp_path, FACTS[4:])
    flags = ["--facts", str(facts), "--predictions", str(tmp_path)]
    assert evaluate([*flags, "--output_dir", str(tmp_path / "out")]) == 2
    assert "no fact that can be run" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
