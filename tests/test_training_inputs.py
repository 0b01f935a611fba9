"""Training on what is damaged, hostile or has changed: named, refused, never with a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from deepseek_ocr.errors import GenerationError, InputError
from deepseek_ocr.settings import CropSettings
from deepseek_ocr.training.data import dataset
from deepseek_ocr.training.data.batches import Batch
from deepseek_ocr.training.data.samples import Example
from tests.conftest import POCKET
from tests.test_training import small_codec
from tests.test_training_runs import PROMPT, command
from tests.test_training_runs import data as pages  # noqa: F401 - a fixture
from tests.training_fixtures import train


@pytest.fixture
def data(pages: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A copy of the pages that a test may change."""
    return Path(shutil.copytree(pages, tmp_path / "pages"))


def put(data: Path, name: str, entries: list[object]) -> str:
    (data / name).write_text(json.dumps(entries))
    return str(data / name)


def entries_of(data: Path) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = json.loads((data / "train.json").read_text())
    return entries


def with_file(arguments: list[str], file: str) -> list[str]:
    arguments[arguments.index("--train_file") + 1] = file
    return arguments


def test_the_share_of_what_is_rejected_is_of_entries(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page asks for one text and locates many things; it is one entry all the same."""
    lines = [{"text": f"line {at}", "box": [0, at, 500, at + 9]} for at in range(20)]
    (data / "broken.png").write_bytes(b"no picture")
    listed = [
        {"image": "000001.png", "text": "a", "reference": lines},
        {"image": "000002.png", "text": "a", "reference": lines},
        {"image": "broken.png", "text": "a", "reference": lines},
        {"image": "gone.png", "text": "a"},
    ]
    arguments = with_file(
        command(data, tmp_path / "run", "--task", "ocr", "locate"), put(data, "l.json", listed)
    )
    assert train(arguments) == 2
    assert "50% of the samples" in capsys.readouterr().err
    rows = json.loads((tmp_path / "run" / "rejected.json").read_text())
    assert sorted(row["name"] for row in rows) == ["broken", "gone.png"]


def test_hostile_names_are_counted_and_printed_without_their_control_characters(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = [
        {"image": f"{'a' * 300}.png", "text": "x"},
        {"image": "\x1b]0;x\x07\x1b[2J.png", "text": "x"},
    ]
    arguments = with_file(command(data, tmp_path / "run"), put(data, "l.json", hostile))
    assert train(arguments) == 2
    said = capsys.readouterr().err
    assert "2 rejected" in said
    assert "\x1b" not in said


def rescanned(data: Path, model: Path) -> None:
    with (data / "000001.png").open("ab") as file:
        file.write(b"\0")


def deleted(data: Path, model: Path) -> None:
    (data / "000001.png").unlink()


def retrained(data: Path, model: Path) -> None:
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


@pytest.mark.parametrize(
    ("change", "words"),
    [(rescanned, "examples was"), (deleted, "examples was"), (retrained, "checkpoint was")],
)
def test_a_run_goes_on_with_the_pages_and_weights_it_began_with(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Path, Path], None],
    words: str,
) -> None:
    model = Path(shutil.copytree(POCKET, tmp_path / "model"))
    arguments = command(data, tmp_path / "run", "--max_rejected", "0.5", "--resume")
    arguments[arguments.index("--model_path") + 1] = str(model)
    assert train(arguments[:-1]) == 0
    assert train(arguments) == 0
    change(data, model)
    assert train(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_validation_file_without_texts_is_refused_before_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    regions = {"regions": [{"label": "chart", "box": [0, 0, 9, 9]}]}
    val = put(data, "v.json", [{"image": "000005.png", **regions}])
    arguments = command(data, tmp_path / "run", "--task", "markdown", "--val_file", val)
    listed = [*entries_of(data), {"image": "gone.png", "text": "x"}]
    assert train(with_file(arguments, put(data, "l.json", listed))) == 2
    assert "v.json holds nothing" in capsys.readouterr().err
    rows = json.loads((tmp_path / "run" / "rejected.json").read_text())
    assert {(row["file"], row["name"]) for row in rows} == {
        ("train", "gone.png"),
        ("validation", "000005"),
    }


def test_validation_pages_that_could_not_be_read_are_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "000005.png").write_bytes(b"no picture")
    val = str(data / "test.json")
    assert train(command(data, tmp_path / "run", "--val_file", val)) == 0
    assert "1 of 2 could not be read" in capsys.readouterr().out


def test_a_finished_runs_list_of_rejections_stays(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = [*entries_of(data), {"image": "gone.png", "text": "x"}]
    arguments = with_file(
        command(data, tmp_path / "run", "--max_rejected", "0.5"), put(data, "l.json", listed)
    )
    assert train(arguments) == 1
    before = (tmp_path / "run" / "rejected.json").read_bytes()
    assert train(with_file(arguments, put(data, "none.json", []))) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert (tmp_path / "run" / "rejected.json").read_bytes() == before


def test_want_of_memory_says_what_to_do(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deepseek_ocr.training.finetune.training_run import TrainingRun

    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(TrainingRun, "train", full)
    assert train(command(data, tmp_path / "run")) == 2
    assert "--batch_size 1" in capsys.readouterr().err


def killed(item: int) -> Batch:
    """Ends the process that prepares its batches, as the system does for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_process_that_was_killed_is_an_error_that_helps() -> None:
    with pytest.raises(GenerationError, match="--workers"):
        list(dataset.in_order(dataset.loader([0], killed, 1)))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_that_is_gone_while_training_is_named(tmp_path: Path, workers: int) -> None:
    encoding = dataset.Encoding(small_codec(), CropSettings(512, 512, False), 4096, 2)
    examples = [Example(tmp_path / "gone.png", "Free OCR", PROMPT, "text", "the page")]
    make = partial(dataset.batch_of, examples, encoding)
    batches = dataset.loader([dataset.MicroBatch((0,))], make, workers)
    with pytest.raises(InputError) as caught:
        list(dataset.in_order(batches))
    assert str(caught.value).startswith("the page: ")
    assert "Traceback" not in str(caught.value)
