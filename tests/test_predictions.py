"""Texts made elsewhere: each is of one page, none is taken twice, none is passed over silently."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepseek_ocr.training.data.samples import Example
from deepseek_ocr.training.evaluation.predictions import (
    extra_texts,
    read_prediction,
    sole_names,
)
from deepseek_ocr.training.evaluation.scoring import Prediction, Score, score
from tests.conftest import POCKET
from tests.test_evaluate import OCR, flags, metrics_in, value
from tests.training_fixtures import EXAMPLES, evaluate, put_examples, put_list, put_page


@pytest.fixture
def data(tmp_path: Path) -> Path:
    put_examples(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The folder that the texts are in."""
    folder = tmp_path / "made"
    folder.mkdir()
    return folder


def put_texts(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_texts_made_elsewhere(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, output = tmp_path / "made", tmp_path / "out"
    made.mkdir()
    (made / "invoice.txt").write_text("Invoice\n")
    (made / "fruit.mmd").write_text("Apple 12\nLemon 35")
    more = ("--predictions", str(made))
    assert evaluate(flags(data, output, *more)) == 1
    metrics = metrics_in(output)
    assert value(metrics["tasks"], "cer") == pytest.approx((1 + 9) / (7 + 17 + 9))
    assert value(metrics["tasks"], "wer") == pytest.approx((1 + 2) / (1 + 4 + 2))
    assert value(metrics["tasks"], "ned") == pytest.approx((0 + 1 / 17 + 1) / 3)
    assert value(metrics["tasks"], "exact") == pytest.approx(1 / 3)
    assert "compression" not in metrics["tasks"][OCR]
    assert "total" in capsys.readouterr().err

    (made / "total.md").write_text("Total 498")  # texts change: nothing is taken from before
    (made / "fruit.mmd").write_text("Apple 12\nLemon 34")
    assert evaluate(flags(data, output, *more)) == 0
    assert value(metrics_in(output)["tasks"], "cer") == 0


def test_one_text_is_never_taken_for_two_pages(made: Path) -> None:
    put_texts(made, {"001.md": "whose?", "002.md": "mine"})
    names = ("2023/001", "2024/001", "2024/002")
    known = sole_names({name: (name,) for name in names})
    assert [read_prediction(made, known[name]).text for name in names] == ["", "", "mine"]


@pytest.mark.parametrize(
    "other",
    [
        {"image": "2024/001.png", "text": "beyond the limit"},
        {"image": "2024/001.png", "markdown": "without an answer for the task"},
        {"image": "2025/001.png", "text": "without a picture"},
    ],
)
def test_the_name_of_a_page_that_is_not_compared_is_no_other_page_s(
    data: Path, made: Path, tmp_path: Path, other: dict[str, str]
) -> None:
    for year in (2023, 2024):
        put_page(data, f"{year}/001.png", {}, "white")
    put_texts(made, {"001.md": "a"})
    put_list(data, [{"image": "2023/001.png", "text": "a"}, other])
    more = ("--predictions", str(made), "--limit", "1")
    assert evaluate(flags(data, tmp_path / "out", *more)) == 1
    metrics = metrics_in(tmp_path / "out")
    assert [one["name"] for one in metrics["failed"]] == ["2023/001"]
    assert metrics["extra texts"] == ["001.md"]


def test_texts_that_were_not_used_are_told(
    data: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_texts(made, {f"{name}.md": text for name, text in EXAMPLES.items()})
    extra = ["receipt.md", "sub/total.mmd", "total.txt"]
    put_texts(made, dict.fromkeys([*extra, "notes.pdf"], "x"))
    output = tmp_path / "out"
    assert evaluate(flags(data, output, "--predictions", str(made))) == 0
    metrics = metrics_in(output)
    assert metrics["counts"]["extra texts"] == 3
    assert metrics["extra texts"] == extra
    said, report = capsys.readouterr().err, (output / "report.md").read_text()
    assert "3 texts in" in said
    assert "Texts that were not used: 3" in report
    for name in ("receipt.md", "sub/total.mmd", "total.txt"):
        assert name in said
        assert name in report


def test_texts_of_pages_that_are_not_compared_are_not_extra(
    data: Path, made: Path, tmp_path: Path
) -> None:
    put_texts(made, {f"{name}.md": text for name, text in EXAMPLES.items()})
    put_list(
        data,
        [
            {"image": "total.png", "text": "Total 498"},
            {"image": "invoice.png", "markdown": "# Invoice"},
            {"image": "fruit.png", "text": "Apple 12\nLemon 34"},
        ],
    )
    assert evaluate(flags(data, tmp_path / "out", "--predictions", str(made), "--limit", "2")) == 0
    assert metrics_in(tmp_path / "out")["extra texts"] == []


@pytest.mark.parametrize("place", [".", "out"])
def test_what_the_evaluation_wrote_is_not_extra(data: Path, made: Path, place: str) -> None:
    put_texts(made, {f"{name}.md": text for name, text in EXAMPLES.items()})
    for _ in range(2):
        assert evaluate(flags(data, made / place, "--predictions", str(made))) == 0
        assert metrics_in(made / place)["extra texts"] == []


def test_the_search_for_extra_texts_is_bounded(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_texts(made, {f"{number}.md": "x" for number in range(20)})
    monkeypatch.setattr("deepseek_ocr.training.evaluation.predictions.MOST_FILES", 7)
    assert len(extra_texts(made, {})) == 7


def test_a_model_has_no_extra_texts(data: Path, tmp_path: Path) -> None:
    put_texts(data, {"notes.md": "x"})
    more = ("--model_path", str(POCKET), "--size", "tiny", "--limit", "1")
    assert evaluate(flags(data, tmp_path / "out", *more)) == 0
    assert metrics_in(tmp_path / "out")["counts"]["extra texts"] == 0


def test_a_link_out_of_the_folder_is_no_text(made: Path, tmp_path: Path) -> None:
    put_texts(tmp_path, {"secret.txt": "secret", "other/page.md": "secret"})
    put_texts(made, {"inside.md": "text"})
    (made / "file.md").symlink_to("../secret.txt")
    (made / "folder").symlink_to(tmp_path / "other")
    (made / "good.md").symlink_to("inside.md")
    (made / "circle.md").symlink_to("circle.md")
    for name in ("file", "folder/page"):
        found = read_prediction(made, [name])
        assert found.text == ""
        assert "leads out of" in (found.error or "")
    assert read_prediction(made, ["good"]) == Prediction("text")
    assert "is not in" in (read_prediction(made, ["circle"]).error or "")
    assert "is not in" in (read_prediction(made, ["../secret"]).error or "")
    linked = tmp_path / "linked"
    linked.symlink_to(made)
    assert read_prediction(linked, ["inside"]) == Prediction("text")


@pytest.mark.parametrize(
    "name",
    ["x" * 300, "x/" * 3_000, "a\x00b", "\ud800"],
    ids=["long", "deep", "null", "surrogate"],
)
def test_names_that_no_file_can_have(made: Path, name: str) -> None:
    assert "is not in" in (read_prediction(made, [name]).error or "")
    assert extra_texts(made, {"page": (name,)}) == []


def test_a_page_is_scored_once(
    data: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[str] = []

    def counting(example: Example, prediction: Prediction) -> Score:
        scored.append(example.name)
        return score(example, prediction)

    monkeypatch.setattr("deepseek_ocr.training.evaluation.evaluation_run.score", counting)
    put_texts(made, {f"{name}.md": text for name, text in EXAMPLES.items()})
    assert evaluate(flags(data, tmp_path / "out", "--predictions", str(made))) == 0
    assert sorted(scored) == sorted(EXAMPLES)


@pytest.mark.parametrize("content", [b"\xff\xfe\xff", b"x" * (2 * 2**20 + 1)])
def test_texts_made_elsewhere_that_cannot_be_used(
    data: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "total.txt").write_bytes(content)
    put_list(data, [{"image": "total.png", "text": "Total 498"}])
    more = ("--predictions", str(tmp_path / "made"))
    assert evaluate(flags(data, tmp_path / "out", *more)) == 1
    assert value(metrics_in(tmp_path / "out")["tasks"], "cer") == 1


def test_entries_and_samples_that_cannot_be_used_are_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "made").mkdir()
    put_list(
        data,
        [
            {"image": "total.png", "text": "Total 498"},
            {"image": "total.png", "text": "again"},
            {"image": "gone.png", "text": "a"},
            {"image": "fruit.png", "text": ""},
            {"image": "invoice.png", "markdown": "# Invoice"},
        ],
    )
    (tmp_path / "made" / "total.txt").write_text("Total 498")
    assert evaluate(flags(data, tmp_path / "out", "--predictions", str(tmp_path / "made"))) == 1
    metrics = metrics_in(tmp_path / "out")
    assert metrics["counts"] == {
        "examples": 1,
        "pages": 1,
        "failed": 0,
        "rejected": 3,
        "unsupported": 1,
        "extra texts": 0,
    }
    assert {one["name"] for one in metrics["rejected"]} == {"total", "gone.png", "fruit.png"}
    assert metrics["unsupported"] == ["invoice (ocr)"]
    report = (tmp_path / "out" / "report.md").read_text()
    said = capsys.readouterr().err
    for name in ("gone", "fruit"):
        assert name in report
        assert name in said
