"""The record of a run: what was read is kept; what failed, changed or was cut is read again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from deepseek_ocr.errors import InputError, SettingsError
from deepseek_ocr.training.data.samples import Example
from deepseek_ocr.training.evaluation.journal import Journal
from deepseek_ocr.training.evaluation.scoring import Prediction, Score


@pytest.fixture
def scores(tmp_path: Path) -> list[Score]:
    return [score_of(tmp_path, name) for name in ("a", "b", "c")]


def score_of(folder: Path, name: str) -> Score:
    image = folder / f"{name}.png"
    image.write_bytes(b"picture")
    example = Example(image, "Free OCR", "prompt", f"Café {name}", name)
    return Score(example, Prediction(f"Café {name}", None, "stop", 5, 64, 0.5), {"cer": (0, 6)})


def record(folder: Path, scores: Sequence[Score]) -> Path:
    """A run in `folder` that was stopped when it had read these; its samples.jsonl."""
    journal = Journal(folder / "out", {"size": "Tiny"})
    journal.take_up([score.example for score in scores])
    journal.begin()
    for score in scores:
        journal.add(score, folder)
    return journal.path


def known(folder: Path, scores: Sequence[Score]) -> dict[str, Prediction]:
    """What the next run takes up of these."""
    journal = Journal(folder / "out", {"size": "Tiny"})
    taken = journal.take_up([score.example for score in scores])
    return {name: prediction for (_, name), prediction in taken.items()}


def test_what_was_read_is_taken_up(tmp_path: Path, scores: list[Score]) -> None:
    record(tmp_path, scores)
    assert known(tmp_path, scores) == {score.example.page: score.prediction for score in scores}
    assert known(tmp_path, scores[1:2]) == {"b": scores[1].prediction}


def test_a_line_cut_in_the_middle_of_a_character_is_read_again(
    tmp_path: Path, scores: list[Score]
) -> None:
    path = record(tmp_path, scores)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex("é".encode()) + 1])
    assert set(known(tmp_path, scores)) == {"a", "b"}

    journal = Journal(tmp_path / "out", {"size": "Tiny"})
    journal.take_up([score.example for score in scores])
    journal.begin()
    journal.add(scores[2], tmp_path)
    assert set(known(tmp_path, scores)) == {"a", "b", "c"}


@pytest.mark.parametrize("length", range(1, 40))
def test_wherever_the_last_line_is_cut(tmp_path: Path, scores: list[Score], length: int) -> None:
    path = record(tmp_path, scores)
    path.write_bytes(path.read_bytes()[: -length - 1])
    assert set(known(tmp_path, scores)) == {"a", "b"}


def test_lines_that_are_no_text_are_left_out(tmp_path: Path, scores: list[Score]) -> None:
    path = record(tmp_path, scores)
    path.write_bytes(b"\xff\xfe\n\n[]\n" + path.read_bytes() + b"7\n")
    assert set(known(tmp_path, scores)) == {"a", "b", "c"}


def test_a_picture_that_changed_is_read_again(tmp_path: Path, scores: list[Score]) -> None:
    record(tmp_path, scores)
    first, second, _ = (score.example.image for score in scores)
    first.write_bytes(b"another picture")
    status = second.stat()
    os.utime(second, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
    assert set(known(tmp_path, scores)) == {"c"}
    second.unlink()
    assert set(known(tmp_path, scores)) == {"c"}


def test_a_picture_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, scores: list[Score]
) -> None:
    journal = Journal(tmp_path / "out", {"size": "Tiny"})
    journal.take_up([score.example for score in scores])
    journal.begin()
    scores[0].example.image.write_bytes(b"replaced meanwhile")
    for score in scores:
        journal.add(score, tmp_path)
    journal.rewrite(scores, tmp_path)
    assert set(known(tmp_path, scores)) == {"b", "c"}


def test_lines_that_do_not_know_their_picture_are_read_again(
    tmp_path: Path, scores: list[Score]
) -> None:
    path = record(tmp_path, scores)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {(one["image_bytes"], one["image"]) for one in lines} == {
        (7, "a.png"),
        (7, "b.png"),
        (7, "c.png"),
    }
    del lines[0]["image_bytes"]
    del lines[1]["image_mtime_ns"]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    scores[0].example.image.unlink()
    assert set(known(tmp_path, scores)) == {"c"}


def test_the_last_line_on_a_page_counts(tmp_path: Path, scores: list[Score]) -> None:
    path = record(tmp_path, scores[:1])
    later = path.read_text(encoding="utf-8").replace('"prediction": "Café a"', '"prediction": "x"')
    path.write_text(path.read_text(encoding="utf-8") + later, encoding="utf-8")
    assert known(tmp_path, scores)["a"].text == "x"


def test_what_is_beyond_this_run_is_kept(tmp_path: Path, scores: list[Score]) -> None:
    record(tmp_path, scores)
    journal = Journal(tmp_path / "out", {"size": "Tiny"})
    journal.take_up([scores[1].example])
    journal.begin()
    journal.rewrite([scores[1]], tmp_path)
    assert set(known(tmp_path, scores)) == {"a", "b", "c"}


def test_a_folder_that_is_none_of_ours_is_refused(tmp_path: Path, scores: list[Score]) -> None:
    path = record(tmp_path, scores)
    with pytest.raises(SettingsError, match="other settings"):
        Journal(path.parent, {"size": "Base"})
    (path.parent / "run.json").write_text("[]")
    with pytest.raises(InputError, match="not the record"):
        Journal(path.parent, {"size": "Tiny"})
    (path.parent / "run.json").unlink()
    with pytest.raises(SettingsError, match="something else"):
        Journal(path.parent, {"size": "Tiny"})


def test_a_folder_whose_name_is_too_long_is_a_new_one(tmp_path: Path) -> None:
    assert Journal(tmp_path / ("x" * 300), {}).take_up([]) == {}
