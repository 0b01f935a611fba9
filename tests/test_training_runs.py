"""Whole training runs, from annotated pages to an adapter that reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.settings import CropSettings
from deepseek_ocr.training.data import dataset
from deepseek_ocr.training.data.samples import Example
from deepseek_ocr.training.finetune.fine_tuning import UsableExamples, comparable_examples
from tests.conftest import POCKET, ROOT
from tests.test_training import small_codec
from tests.test_weights_places import mounted
from tests.training_fixtures import train

PROMPT = "<image>\nFree OCR."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small pages with annotations, four to train on."""
    from deepseek_ocr.training.synthetic.recipes import Recipe
    from deepseek_ocr.training.synthetic.synthetic_pages import write_pages

    folder = tmp_path_factory.mktemp("pages")
    recipe = Recipe(
        size=(256, 256), smallest=24, largest=40, longest=8, most_lines=2, font_set="all"
    )
    list(write_pages(folder, recipe, range(1, 7), seed=5, processes=1))
    entries = [
        {"image": f"{n:06d}.png", **json.loads((folder / f"{n:06d}.json").read_text())}
        for n in range(1, 7)
    ]
    (folder / "train.json").write_text(json.dumps(entries[:4]))
    (folder / "test.json").write_text(json.dumps(entries[4:]))
    return folder


def command(data: Path, output: Path, *more: str) -> list[str]:
    return [
        "--data_root", str(data), "--train_file", str(data / "train.json"),
        "--model_path", str(POCKET), "--output_dir", str(output), "--resolution", "tiny",
        "--dtype", "float32", "--workers", "0", "--batch_size", "2", "--lr", "1e-3", *more,
    ]  # fmt: skip


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def test_a_run_from_pages_to_an_adapter_that_reads(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    val = ("--val_file", str(data / "test.json"))
    assert train(command(data, output, "--epochs", "2", *val, "--merge")) == 0
    assert {path.name for path in output.iterdir()} == {
        "epoch-1", "epoch-2", "best", "merged", "state", "rejected.json", "loss.png",
        "experiment_logs.txt",
    }  # fmt: skip
    log = (output / "experiment_logs.txt").read_text()
    for words in ("setting lr = 0.001", "version torch", "4 examples, 0 rejected", "step 4 loss"):
        assert words in log
    assert log.count("CER on validation") == 2
    page, crop = data / "000001.png", CropSettings(512, 512, False)
    adapted = OcrEngine.load(POCKET, "cpu", "float32", adapter=output / "best")
    merged = OcrEngine.load(output / "merged", "cpu", "float32")
    assert adapted.read(page, PROMPT, crop).text == merged.read(page, PROMPT, crop).text
    result = subprocess.run(
        [sys.executable, "-m", "deepseek_ocr", "read",
         "--model", str(POCKET), "--adapter", str(output / "best"),
         "--size", "tiny", "--task", "ocr", str(page)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("how", [["--lora", "--lora_dropout", "0.2", "--val_file"], ["--full"]])
def test_a_resumed_run_equals_one_that_never_stopped(
    data: Path, tmp_path: Path, how: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepseek_ocr.training.finetune.training_run import TrainingRun

    how = [*how, str(data / "test.json")] if how[-1] == "--val_file" else how
    straight = tmp_path / "straight"
    assert train(command(data, straight, "--epochs", "3", *how)) == 0
    broken = tmp_path / "broken"
    finish = TrainingRun._finish_epoch

    def stop_after_one(self: TrainingRun, *arguments: object) -> None:
        finish(self, *arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_finish_epoch", stop_after_one)
        assert train(command(data, broken, "--epochs", "3", *how)) == 130
    assert train(command(data, broken, "--epochs", "3", *how, "--resume")) == 0
    expected, resumed = weights_of(straight / "epoch-3"), weights_of(broken / "epoch-3")
    for name, values in expected.items():
        assert torch.equal(values, resumed[name]), name
    state = json.loads((broken / "state" / "state.json").read_text())
    assert state["losses"] == json.loads((straight / "state" / "state.json").read_text())["losses"]


def test_two_processes_learn_what_one_learns(data: Path, tmp_path: Path) -> None:
    """Tolerance: a fiftieth of the two steps' rate of 1e-3 for all but a hundredth of the weights,
    whose gradients are so small that AdamW makes steps of rounding errors."""
    one, two = tmp_path / "one", tmp_path / "two"
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DEEPSEEK_OCR_DEVICE": "cpu"}
    for output, launch, more in (
        (one, [sys.executable, "-m"], ["--grad_accum", "2"]),
        (two, [sys.executable, "-m", "torch.distributed.run", "--standalone",
               "--nproc_per_node", "2", "-m"], []),
    ):  # fmt: skip
        arguments = command(data, output, "--epochs", "2", "--batch_size", "2", *more)
        result = subprocess.run(
            [*launch, "deepseek_ocr", "train", *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-3000:]
    assert "2 processes" in (two / "experiment_logs.txt").read_text()
    expected, spread = weights_of(one / "epoch-2"), weights_of(two / "epoch-2")
    for name, values in expected.items():
        apart = (spread[name] - values).abs() > 2e-5
        assert apart.float().mean() < 0.01, name


def test_what_cannot_be_used_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = json.loads((data / "train.json").read_text())
    (data / "broken.png").write_bytes(b"no picture")
    mixed = [
        *entries,
        {"image": "broken.png", "text": "x"},
        {"image": "gone.png", "text": "x"},
        {"image": "000001.png", "regions": [{"label": "text", "box": [0, 0, 1, 1]}]},
        {"image": "000002.png", "text": "far too long " * 400},
    ]
    listed = data / "mixed.json"
    listed.write_text(json.dumps(mixed))
    arguments = command(data, tmp_path / "run", "--max_tokens", "600")
    arguments[arguments.index("--train_file") + 1] = str(listed)
    assert train(arguments) == 2
    assert "50% of the samples" in capsys.readouterr().err
    assert train([*arguments, "--max_rejected", "0.6"]) == 1
    rejected = json.loads((tmp_path / "run" / "rejected.json").read_text())
    reasons = {row["name"]: row["reason"] for row in rejected}
    assert set(reasons) == {"broken", "gone.png", "000001", "000002"}
    assert "nothing for ocr" in reasons["000001"]
    assert {row["file"] for row in rejected} == {"train"}
    assert "more than 600" in reasons["000002"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--model_path": "/nowhere"}, "/nowhere"),
        ({"--train_file": "/nowhere.json"}, "nowhere.json"),
        ({"--lr": "fast"}, "is not a number"),
        ({"--epochs": "0"}, "is not a whole number"),
        ({"--resolution": "huge"}, "no preset 'huge'"),
        ({"--dtype": "float16"}, "float16 needs a GPU"),
        ({"--workers": "-1"}, "is not a whole number"),
        ({"--seed": "-1"}, "is not a whole number"),
        ({"--lora_experts": None, "--lora_dropout": "0.1"}, "leave one out"),
        ({"--resume": None}, "no finished epoch"),
        ({"--lora_rank": "5000"}, "more than 4096"),
    ],
)
def test_what_cannot_start_says_why(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str | None],
    words: str,
) -> None:
    arguments = command(data, tmp_path / "run")
    for flag, value in change.items():
        if flag in arguments:
            arguments[arguments.index(flag) + 1] = str(value)
        else:
            arguments += [flag] if value is None else [flag, value]
    try:
        status = train(arguments)
    except SystemExit as stop:
        status = int(stop.code or 0)
    assert status == 2
    assert words in capsys.readouterr().err


def test_a_second_run_never_writes_over_the_first(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(command(data, tmp_path / "run")) == 0
    assert train(command(data, tmp_path / "run")) == 2
    assert "add --resume" in capsys.readouterr().err
    assert train(command(data, tmp_path / "run", "--resume", "--lr", "1e-2")) == 2
    assert "lr was 0.001" in capsys.readouterr().err
    for more in (["--lora_alpha", "8"], ["--val_file", str(data / "test.json")]):
        assert train(command(data, tmp_path / "run", "--resume", *more)) == 2
        assert "goes on with the settings" in capsys.readouterr().err


@pytest.mark.usefixtures("own_accelerator")
def test_mixed_precision_learns_validates_and_goes_on(data: Path, tmp_path: Path) -> None:
    """Reading between epochs must leave nothing behind that the next one trips over."""
    arguments = command(data, tmp_path / "run", "--epochs", "3", "--dtype", "bfloat16",
                        "--val_file", str(data / "test.json"), "--balance", "0.01")  # fmt: skip
    assert train(arguments) == 0
    state = json.loads((tmp_path / "run" / "state" / "state.json").read_text())
    assert len(state["validation"]) == 3
    assert min(state["losses"][2:]) < state["losses"][0]
    assert "computing in torch.bfloat16" in (tmp_path / "run" / "experiment_logs.txt").read_text()


def test_the_best_epoch_is_the_one_with_the_lowest_rate_and_stays(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deepseek_ocr.training.finetune.training_run import TrainingRun

    rates = iter([0.5, 0.3, 0.4, 0.35])
    monkeypatch.setattr(TrainingRun, "_validate", lambda self, validation: (next(rates), 0))
    more = ("--val_file", str(data / "test.json"), "--keep", "1")
    output = tmp_path / "run"
    assert train(command(data, output, "--epochs", "4", *more)) == 0
    assert {path.name for path in output.glob("epoch-*")} == {"epoch-4"}
    state = json.loads((output / "state" / "state.json").read_text())
    assert state["best"] == 2
    best, last = weights_of(output / "best"), weights_of(output / "epoch-4")
    assert any(not torch.equal(values, last[name]) for name, values in best.items())


def test_only_adapters_have_moved_after_a_run(data: Path, tmp_path: Path) -> None:
    """What is written holds nothing but them, and a full run's vision is that of the checkpoint."""
    assert train(command(data, tmp_path / "lora", "--epochs", "2")) == 0
    assert all("lora_" in name for name in weights_of(tmp_path / "lora" / "best"))
    assert train(command(data, tmp_path / "full", "--full")) == 0
    before, after = weights_of(POCKET), weights_of(tmp_path / "full" / "best")
    vision = [name for name in before if "sam_model" in name or "vision_model" in name]
    assert vision
    assert all(torch.equal(before[name], after[name]) for name in vision if name in after)
    assert any(not torch.equal(before[name], after[name]) for name in after if name not in vision)
    result = subprocess.run(
        [sys.executable, "-m", "deepseek_ocr", "read",
         "--model", str(tmp_path / "full" / "best"), "--size", "tiny",
         "--task", "ocr", str(data / "000001.png")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


def test_a_full_disk_ends_a_run_and_leaves_nothing_half_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mounted(tmp_path / "disk", "256k") as disk:
        assert train(command(data, disk / "run")) == 2
        assert "cannot be written" in capsys.readouterr().err
        assert not [path.name for path in (disk / "run").iterdir() if path.is_dir()]


@pytest.mark.parametrize("damage", ["file", "empty", "broken"])
def test_a_model_path_that_is_no_checkpoint(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    path = tmp_path / "model"
    if damage == "file":
        path.write_text("x")
    else:
        path.mkdir()
    if damage == "broken":
        (path / "config.json").write_text("{")
    arguments = command(data, tmp_path / "run")
    arguments[arguments.index("--model_path") + 1] = str(path)
    assert train(arguments) == 2
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "run" / "state").exists()


def test_validation_is_of_whole_pages_and_of_texts(data: Path) -> None:
    def example(page: int, task: str, number: int = 0, answer: str = "x") -> Example:
        return Example(data / f"{page}.png", task, "", answer, f"{page}#{number}")

    def chosen(examples: list[Example]) -> UsableExamples:
        return comparable_examples(UsableExamples(examples, [], 3), 2)

    both = [
        example(page, task) for page in (1, 2, 3) for task in ("Free OCR", "Convert to Markdown")
    ]
    located = [example(page, "Locate Object by Reference", 1) for page in (1, 2, 3)]
    assert chosen([*located, *both]).examples == both[:4]
    assert chosen(located).examples == located[:2]
    bare = example(
        1, "Convert to Markdown", answer="<|ref|>chart<|/ref|><|det|>[[0, 0, 9, 9]]<|/det|>"
    )
    assert chosen([bare, *both[2:]]).examples == both[2:]
    assert "no text" in chosen([bare]).rejections[0].reason


def test_examples_are_checked_before_anything_is_trained(data: Path) -> None:
    encoding = dataset.Encoding(small_codec(), CropSettings(512, 512, False), 4096, 2)
    good = Example(data / "000001.png", "Free OCR", PROMPT, "text", "good")
    bad = Example(data / "none.png", "Free OCR", PROMPT, "text", "bad")
    outcomes = list(dataset.check([good, bad], encoding, workers=0))
    assert outcomes[0] is None
    assert outcomes[1] is not None
    assert outcomes[1].name == "bad"
