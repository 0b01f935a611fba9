"""Evaluation from end to end: every page is scored or named, and nothing read is lost."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.training.data.samples import Example, Rejection
from deepseek_ocr.training.evaluation.evaluation_report import EvaluationRun, escaped
from deepseek_ocr.training.evaluation.scoring import (
    Prediction,
    precision_by_ratio,
    score,
    summarise,
)
from tests.conftest import POCKET, ROOT
from tests.test_weights_places import mounted
from tests.training_fixtures import EXAMPLES, evaluate, jsonl, put_examples, put_list, put_page

OCR, MARKDOWN, LOCATE = "Free OCR", "Convert to Markdown", "Locate Object by Reference"


def example(answer: str, task: str = OCR, name: str = "page") -> Example:
    return Example(Path(f"{name}.png"), task, "prompt", answer, name)


def value(found: Any, name: str, task: str = OCR) -> float:
    """One figure of metrics.json or of a summary."""
    figure = found[task][name]
    return float(figure["value"] if isinstance(figure, dict) else figure.value)


def metrics_in(output: Path) -> Any:
    return json.loads((output / "metrics.json").read_text())


def flags(data: Path, output: Path, *more: str) -> list[str]:
    listed = ["--data_root", str(data), "--test_file", str(data / "test.json")]
    return [*listed, "--output_dir", str(output), *more]


WITH_POCKET = ("--model_path", str(POCKET), "--size", "tiny", "--task", "ocr")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    put_examples(tmp_path / "data")
    return tmp_path / "data"


def must_not_load(*_: object) -> OcrEngine:
    raise AssertionError("nothing is left to read")


def test_the_bundled_model_reads_the_example_pages(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert evaluate(flags(data, output, *WITH_POCKET)) == 0
    metrics = metrics_in(output)
    assert value(metrics["tasks"], "cer") == 0
    assert value(metrics["tasks"], "exact") == 1
    assert metrics["counts"]["pages"] == 3
    lines = jsonl(output / "samples.jsonl")
    assert {one["name"]: one["prediction"] for one in lines} == EXAMPLES
    assert all(one["vision_tokens"] == 64 and one["seconds"] > 0 for one in lines)
    ratio = sum(one["text_tokens"] for one in lines) / (3 * 64)
    assert value(metrics["tasks"], "compression") == pytest.approx(ratio)
    assert sum(band["pages"] for band in metrics["precision_by_ratio"][OCR]) == 3
    report = (output / "report.md").read_text()
    for name in ("ocr_errors.png", "ocr_precision.png"):
        assert f"]({name})" in report
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    log = (output / "experiment_logs.txt").read_text()
    for part in ("setting size = Tiny", "version torch = ", "examples 3", "Free OCR: CER 0.0000"):
        assert part in log
    said = capsys.readouterr()
    assert "Free OCR: CER 0.0000 [0.0000, 0.0000] (3 pages)" in said.out
    assert "reading: 3 of 3" in said.err  # plain lines where nobody watches
    assert "\r" not in said.err

    assert evaluate(flags(data, output, *WITH_POCKET), load=must_not_load) == 0
    assert metrics_in(output) == metrics


def test_a_page_that_cannot_be_read_counts_in_full_and_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "total.png").write_bytes(b"no picture")
    assert evaluate(flags(data, tmp_path / "out", *WITH_POCKET)) == 1
    metrics = metrics_in(tmp_path / "out")
    lengths = {name: len(text) for name, text in EXAMPLES.items()}
    assert value(metrics["tasks"], "cer") == pytest.approx(9 / sum(lengths.values()))
    assert value(metrics["tasks"], "ned") == pytest.approx(1 / 3)
    assert value(metrics["tasks"], "failed") == pytest.approx(1 / 3)
    assert [one["name"] for one in metrics["failed"]] == ["total"]
    assert "not a picture" in metrics["failed"][0]["error"]
    assert "Not read, counted as empty: 1" in (tmp_path / "out" / "report.md").read_text()
    assert "not read: total" in capsys.readouterr().err

    shutil.copy(ROOT / "examples" / "total.png", data)  # the same command tries it again
    assert evaluate(flags(data, tmp_path / "out", *WITH_POCKET)) == 0
    assert value(metrics_in(tmp_path / "out")["tasks"], "cer") == 0
    assert len(jsonl(tmp_path / "out" / "samples.jsonl")) == 3


@pytest.mark.timeout(900)  # starts programs of its own, which a busy machine may starve
@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_was_stopped_goes_on(tmp_path: Path, sent: int, status: int) -> None:
    data, output = tmp_path / "data", tmp_path / "out"
    page = put_page(data, "fruit.png", {})
    entries = [{"image": f"{at}.png", "text": "Apple 12\nLemon 34"} for at in range(15)]
    for entry in entries:
        shutil.copy(page, data / entry["image"])
    put_list(data, entries)
    command = [
        sys.executable,
        "-m",
        "deepseek_ocr",
        "evaluate",
        *flags(data, output, *WITH_POCKET),
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as running:
        written = output / "samples.jsonl"
        while not (written.exists() and written.read_text().count("\n") >= 2):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(sent)
        assert running.wait() == status
    before = [line for line in written.read_text().splitlines() if line.endswith("}")]
    assert 2 <= len(before) < 15
    with written.open("a") as file:
        file.write('{"name": "cut off')

    assert evaluate(flags(data, output, *WITH_POCKET)) == 0
    after = written.read_text().splitlines()
    assert len(after) == 15
    assert set(before) <= set(after)  # not read again: the seconds are those of the first run
    assert metrics_in(output)["counts"]["examples"] == 15
    assert f"read before {len(before)}" in (output / "experiment_logs.txt").read_text()


def test_fewer_pages_do_not_lose_what_was_read(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    evaluate(flags(data, output, *WITH_POCKET))
    assert evaluate(flags(data, output, *WITH_POCKET, "--limit", "1"), load=must_not_load) == 0
    assert metrics_in(output)["counts"]["examples"] == 1
    assert evaluate(flags(data, output, *WITH_POCKET), load=must_not_load) == 0
    assert metrics_in(output)["counts"]["examples"] == 3


def test_a_picture_that_was_replaced_is_read_again(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    evaluate(flags(data, output, *WITH_POCKET))
    shutil.copy(ROOT / "examples" / "invoice.png", data / "total.png")
    assert evaluate(flags(data, output, *WITH_POCKET)) == 0
    lines = jsonl(output / "samples.jsonl")
    assert {one["name"]: one["prediction"] for one in lines} == EXAMPLES | {"total": "Invoice"}
    assert "examples 3, read before 2" in (output / "experiment_logs.txt").read_text()
    assert evaluate(flags(data, output, *WITH_POCKET), load=must_not_load) == 0


def test_two_runs_are_not_mixed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    evaluate(flags(data, output, *WITH_POCKET))
    before = (output / "samples.jsonl").read_bytes()
    assert evaluate(flags(data, output, *WITH_POCKET, "--max_tokens", "3")) == 2
    assert "max_tokens" in capsys.readouterr().err
    assert (output / "samples.jsonl").read_bytes() == before


def test_a_model_that_changed_meanwhile_is_another_run(data: Path, tmp_path: Path) -> None:
    model = shutil.copytree(POCKET, tmp_path / "model")
    chosen = ("--model_path", str(model), "--size", "tiny", "--limit", "1")
    assert evaluate(flags(data, tmp_path / "out", *chosen)) == 0
    (model / "model.safetensors").touch()
    assert evaluate(flags(data, tmp_path / "out", *chosen)) == 2


def test_a_link_to_nowhere_beside_the_weights_is_no_reason_to_stop(
    data: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(POCKET, tmp_path / "model")
    (model / "notes.json").symlink_to("gone")
    chosen = ("--model_path", str(model), "--size", "tiny", "--limit", "1")
    assert evaluate(flags(data, tmp_path / "out", *chosen)) == 0


def test_what_the_system_says_ends_in_a_message(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object) -> OcrEngine:
        raise OSError(errno.EIO, "Input/output error", "weights")

    assert evaluate(flags(data, tmp_path / "out", *WITH_POCKET), load=load) == 2
    assert "weights cannot be used: Input/output error" in capsys.readouterr().err
    long = ("--model_path", "x" * 300)
    assert evaluate(flags(data, tmp_path / "out", *long)) == 2
    assert "x" * 300 in capsys.readouterr().err


@pytest.mark.parametrize("model", ["nowhere", "a folder", "a file", "broken"])
def test_a_model_path_that_is_none(
    data: Path, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / model
    if model == "a folder":
        path.mkdir()
    elif model == "a file":
        path.write_text("")
    elif model == "broken":
        shutil.copytree(POCKET, path)
        (path / "model.safetensors").write_bytes(b"half")
    output = tmp_path / "out"
    assert evaluate(flags(data, output, "--model_path", str(path), "--size", "tiny")) == 2
    said = capsys.readouterr().err
    assert str(path) in said
    assert "Traceback" not in said
    assert not output.exists()


def test_an_adapter_needs_its_loader(data: Path, tmp_path: Path) -> None:
    asked: list[Any] = []

    def load(*given: Any) -> OcrEngine:
        asked.append(given)
        return OcrEngine.load(POCKET, "cpu", "float32")

    more = (*WITH_POCKET, "--adapter", "lora", "--dtype", "float32", "--device", "cpu",
            "--quant", "int8", "--slots", "3")  # fmt: skip
    assert evaluate(flags(data, tmp_path / "out", *more), load=load) == 0
    ((folder, adapter, settings),) = asked
    assert (folder, adapter) == (POCKET, Path("lora"))
    assert (settings.device, settings.dtype) == ("cpu", "float32")
    assert (settings.quant, settings.kernels, settings.slots) == ("int8", "auto", 3)


def test_a_full_disk(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mounted(tmp_path / "disk", "32k") as disk:
        assert evaluate(flags(data, disk / "out", *WITH_POCKET)) == 2
        left = {path.name for path in (disk / "out").iterdir()}
    assert "No space left on device" in capsys.readouterr().err
    assert left == {"run.json", "samples.jsonl", "experiment_logs.txt"}  # no half a report


def test_pages_are_counted_by_name_whatever_the_name() -> None:
    scores = [
        score(Example(Path(), OCR, "", "text", f"scan#{number}"), Prediction("text"))
        for number in (1, 2, 3)
    ]
    assert summarise(scores)[OCR]["cer"].pages == 3


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([], "nothing that can be used"),
        ([{"image": "total.png", "markdown": "x"}], "1 have no answer"),
        ([{"image": "total.png", "text": ""}], "text is empty"),
        ({}, "array"),
    ],
)
def test_a_test_file_without_samples(
    data: Path, tmp_path: Path, entries: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    put_list(data, entries)
    assert evaluate(flags(data, tmp_path / "out", *WITH_POCKET)) == 2
    assert says in capsys.readouterr().err


REGIONS = (
    "<|ref|>title<|/ref|><|det|>[[0, 0, 100, 10]]<|/det|>\n# One\n\n"
    "<|ref|>table<|/ref|><|det|>[[0, 20, 100, 40]]<|/det|>\n"
    "<table><tr><td>a</td><td>b</td></tr></table>"
)


def test_grounded_markdown_is_compared_as_text_boxes_and_tables() -> None:
    found = score(example(REGIONS, MARKDOWN), Prediction(REGIONS)).shares
    assert {name: above / below for name, (above, below) in found.items()} == {
        "failed": 0,
        "loop": 0,
        "iou": 1,
        "cer": 0,
        "wer": 0,
        "ned": 0,
        "exact": 1,
        "teds": 1,
    }
    half = REGIONS.replace("[[0, 20, 100, 40]]", "[[0, 20, 50, 40]]").replace("<td>b</td>", "")
    found = score(example(REGIONS, MARKDOWN), Prediction(half)).shares
    assert found["iou"] == (pytest.approx(1.5), 2)
    assert found["teds"] == (pytest.approx(0.75), 1)  # one of four nodes is missing
    plain = "# One\n\n<table><tr><td>a</td><td>b</td></tr></table>"
    found = score(example(REGIONS, MARKDOWN), Prediction(plain)).shares
    assert (found["cer"][0], found["teds"], found["iou"]) == (0, (1, 1), (0, 2))


def test_pictures_are_no_text() -> None:
    tag = "<|ref|>image<|/ref|><|det|>[[0, 50, 100, 90]]<|/det|>\n\n"
    found = score(example(f"{tag}{REGIONS}\n\n{tag}", MARKDOWN), Prediction(REGIONS)).shares
    assert (found["cer"][0], found["exact"]) == (0, (1, 1))
    assert found["iou"] == (2, 4)  # that it was not found is seen in the boxes
    made = Prediction("One\n\n![a picture](of/it.png)\n\ntwo ![](x)")
    assert score(example("One\n\ntwo", MARKDOWN), made).shares["exact"] == (1, 1)
    assert score(example("One ![](x)"), Prediction("One")).shares["exact"] == (0, 1)


def test_a_failure_is_a_full_error_in_every_figure() -> None:
    found = score(example(REGIONS, MARKDOWN), Prediction("# One", error="no")).shares
    assert {name: above / below for name, (above, below) in found.items()} == {
        "failed": 1,
        "loop": 0,
        "iou": 0,
        "cer": 1,
        "wer": 1,
        "ned": 1,
        "exact": 0,
        "teds": 0,
    }


def test_locating_counts_hits_from_half_an_overlap() -> None:
    answer = "<|ref|>a<|/ref|><|det|>[[0, 0, 100, 100]]<|/det|>"
    scores = [
        score(example(answer, LOCATE, f"page#{at}"), Prediction(answer.replace("100, 100]", box)))
        for at, box in enumerate(("100, 50]", "100, 49]", "x]"), 1)
    ]
    figures = summarise(scores)[LOCATE]
    assert figures["iou"].value == pytest.approx((0.5 + 0.49 + 0) / 3)
    assert figures["hit"].value == pytest.approx(1 / 3)
    assert figures["hit"].pages == 1  # three questions on one page are drawn together
    assert "cer" not in figures


def test_loops_are_counted_whoever_wrote_the_text() -> None:
    looping = Prediction("a line of words that comes again\n" * 400)
    assert score(example("a"), looping).shares["loop"] == (1, 1)
    assert score(example("a"), Prediction("a", finish_reason="loop")).shares["loop"] == (1, 1)
    assert score(example("a"), Prediction("a")).shares["loop"] == (0, 1)


def test_tables_that_are_too_large_are_noted() -> None:
    large = "<table>" + "<tr><td>a</td></tr>" * 600 + "</table>"
    found = score(example(large, MARKDOWN), Prediction(large))
    assert "teds" not in found.shares
    assert found.notes == ("1 tables are too large to be compared",)
    assert b"too large" in EvaluationRun({}, [found]).contents()["report.md"]


def test_precision_by_compression() -> None:
    scores = [
        score(example("abcd", name=str(at)), Prediction(text, None, "stop", tokens, 100))
        for at, (text, tokens) in enumerate([("abcd", 640), ("abxx", 700), ("", 2500)])
    ]
    scores.append(score(example("abcd", name="failed"), Prediction("", error="no")))
    first, last = precision_by_ratio(scores)
    assert (first.low, first.high, first.pages) == (6, 8, 2)
    assert first.precision == pytest.approx(0.75)
    assert first.ratio == pytest.approx(6.7)
    assert first.text_tokens == (640, 700)
    assert first.interval == (pytest.approx(0.5), pytest.approx(1))
    assert (last.low, last.high, last.pages, last.precision) == (20, None, 1, 0)
    assert last.interval is None
    report = EvaluationRun({}, scores).contents()["report.md"].decode()
    assert "| 75.0% | 50.0% – 100.0% | 6.70× | 2 |" in report
    assert "Pages that failed (1) have no row here" in report


def test_hostile_text_means_nothing_in_a_report() -> None:
    hostile = "<script>|![x](http://x)`\x1b[31m\n# big $x$ <|det|> _a_ \ud800"
    scores = [score(example("other", name=hostile), Prediction(hostile, error=hostile))]
    run = EvaluationRun({"model": hostile}, scores, [Rejection(hostile, hostile)], [hostile])
    report = run.contents()["report.md"].decode()
    assert "<script>" not in report
    assert "](http" not in report
    assert "\x1b" not in report
    rows = [line for line in report.splitlines() if "script" in line]
    assert rows
    assert all(line.startswith("| ") and line.count("|") in (3, 4) for line in rows)
    assert escaped("a|b\nc") == "a&#124;b c"


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["--test_file", "x", "--facts", "y", "--model_path", "pocket"],
        ["--test_file", "x", "--data_root", "x"],
        ["--test_file", "x", "--data_root", "x", "--model_path", "p", "--predictions", "q"],
        ["--test_file", "x", "--model_path", "pocket"],
        ["--test_file", "x", "--data_root", "x", "--predictions", "q", "--task", "ocr", "locate"],
        ["--test_file", "x", "--data_root", "x", "--model_path", "p", "--task", "read"],
        ["--test_file", "x", "--data_root", "x", "--model_path", "p", "--size", "huge"],
        ["--test_file", "x", "--data_root", "x", "--model_path", "p", "--limit", "0"],
        ["--test_file", "x", "--data_root", "x", "--model_path", "p", "--max_tokens", "0"],
        ["--facts", "x", "--predictions", "y", "--task", "locate"],
    ],
)
def test_flags_that_do_not_fit_together(wrong: list[str], tmp_path: Path) -> None:
    try:
        status: object = evaluate([*wrong, "--output_dir", str(tmp_path / "out")])
    except SystemExit as left:
        status = left.code
    assert status == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("evaluate", ("--predictions", "--facts", "exit status", "goes on where it was")),
        ("train", ("--train_file", "accelerate launch -m deepseek_ocr train", "exit status")),
        ("synth", ("--font-sizes", "Exit status")),
        ("split", ("--test_fraction", "exit status")),
    ],
)
def test_help_imports_nothing_large(name: str, parts: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom deepseek_ocr.cli.main import main\n"
        f"try:\n    main([{name!r}, '--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for part in parts:
        assert part in done.stdout
