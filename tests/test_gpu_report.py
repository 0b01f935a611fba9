"""The report of a card: its parts, run on the CPU at tiny size, and what becomes of parts that
fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import full_size, golden, gpu, machine, parts, quality, random_checkpoint
from benchmarks.parts import Part, Rows, Settings
from deepseek_ocr.engine import OcrEngine
from deepseek_ocr.errors import InputError
from deepseek_ocr.images import Views
from deepseek_ocr.kernels import steps
from deepseek_ocr.kernels.decoder import GRAPHS, NATIVE, TORCH
from deepseek_ocr.kernels.rehearsal import TOLERANCES, Outcome
from tests import report_parts
from tests.conftest import GOLDEN, ROOT


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for the golden checkpoint's decoder and vision encoders of a layer each."""
    folder = tmp_path_factory.mktemp("random")
    config = json.loads((GOLDEN / "checkpoint" / "config.json").read_text())
    towers = config["vision_config"]["width"]
    towers["sam_vit_b"] |= {"layers": 1, "global_attn_indexes": []}
    towers["clip-l-14-224"]["layers"] = 1
    random_checkpoint.write(folder, config)
    return folder


@pytest.fixture
def settings(checkpoint: Path) -> Settings:
    return Settings("cpu", "float32", checkpoint, pages=(1, 3), read=3, tokens=4, repeat=1)


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(tmp_path / "rows.json", 250)


def found(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "rows.json").read_text())["rows"]


# --- parts that fail ------------------------------------------------------------------------------


def report_of(tmp_path: Path, *names: str, seconds: float = 200, share: float = 1.0) -> Any:
    """The report of parts of `report_parts`, as it is written."""
    chosen = [Part(name, getattr(report_parts, name), share) for name in names]
    output = tmp_path / "report.json"
    parts.run(chosen, Settings("cpu", "float32", tmp_path), seconds, output, {"device": "cpu"})
    return json.loads(output.read_text())


def test_parts_that_fail_do_not_end_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = report_of(
        tmp_path, "raising", "out_of_memory", "killed", "disagreeing", "good"
    )  # fmt: skip
    assert report["complete"]
    assert report["device"] == "cpu"
    of = report["parts"]
    assert {name: part["status"] for name, part in of.items()} == {
        "raising": "failed",
        "out_of_memory": "failed",
        "killed": "failed",
        "disagreeing": "failed",
        "good": "done",
    }
    assert of["raising"]["error"] == {"type": "ValueError", "text": "no such thing as a card"}
    assert of["raising"]["rows"]["before"]["speed"] == 1
    assert "Traceback" in of["raising"]["stderr"]
    large = of["out_of_memory"]["rows"]["large"]
    assert large["error"] == {"type": "MemoryError", "text": "tried to allocate 150 GB"}
    assert of["out_of_memory"]["rows"]["last"]["speed"] == 3
    assert of["killed"]["error"] == {
        "type": "Killed",
        "text": "The process was ended by SIGKILL.",
    }
    assert of["killed"]["rows"]["before"]["speed"] == 1
    assert of["good"]["rows"]["one"]["device"] == "cpu"
    assert of["good"]["rows"]["two"]["speed"] == "nan"  # which JSON has no number for
    assert of["good"]["notes"] == ["a remark"]
    assert [line.split(":")[0] for line in parts.problems(report)] == [
        "raising",
        "out_of_memory, large",
        "killed",
        "disagreeing, logits",
    ]
    assert "one: speed 1.5, device cpu" in capfd.readouterr().out


def test_the_report_is_there_after_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    write = parts.write

    def watched(path: Path, content: Any) -> None:
        write(path, content)
        kept = json.loads(path.read_text())
        states.append([part["status"] for part in kept["parts"].values()])

    monkeypatch.setattr(parts, "write", watched)
    report_of(tmp_path, "raising", "good")
    assert states[:4] == [["running"], ["failed"], ["failed", "running"], ["failed", "done"]]


def test_rows_that_there_is_no_time_for_are_left_out(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.json", 100)
    assert rows.add("short", lambda: {"speed": 1.0}, needs=50)
    assert rows.add("long", lambda: {"speed": 2.0}, needs=200) is None
    kept = found(tmp_path)
    assert kept["short"]["speed"] == 1
    assert kept["long"] == {"left_out": "left out: no time"}


def test_a_part_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "GRACE", 1.0)
    report = report_of(tmp_path, "hanging", "good", seconds=100, share=0.02)
    assert report["parts"]["hanging"]["status"] == "failed"
    assert report["parts"]["hanging"]["error"]["type"] == "TimeoutError"
    assert report["parts"]["good"]["status"] == "done"


def test_the_budget_ends_a_part_without_blaming_it(tmp_path: Path) -> None:
    report = report_of(tmp_path, "hanging", "good", seconds=6)
    assert report["parts"]["hanging"]["status"] == "stopped: no time"
    assert report["parts"]["good"]["status"] == "left out: no time"
    assert parts.problems(report) == []


def test_a_device_that_answers_nothing_more_ends_the_part(tmp_path: Path) -> None:
    def dead() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail() -> parts.Figures:
        raise RuntimeError("CUDA error")

    rows = Rows(tmp_path / "rows.json", 100, dead)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        rows.add("first", fail)
    assert found(tmp_path)["first"]["error"]["text"] == "CUDA error"


# --- the parts themselves -------------------------------------------------------------------------


def test_golden_in_every_type_by_every_way(
    settings: Settings, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "VIEWS", ("tiny",))
    monkeypatch.setattr(golden, "CASES", ("case_tiny",))
    golden.check(settings, rows)
    kept = found(tmp_path)
    for dtype in ("float32", "bfloat16", "float16"):
        for what in ("vision, plain", "vision, fast", "decoding, plain", "decoding, torch"):
            assert kept[f"{dtype}, {what}"]["difference"] > 0
    assert kept["float32, decoding, torch"]["greedy"] == "48 of 48 ids"
    assert "int8 in bfloat16, decoding, torch" in kept
    assert [row for row in kept.values() if "wrong" in row or "error" in row] == []


def test_a_way_that_computes_something_else_is_told(
    settings: Settings, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = steps.step
    monkeypatch.setattr(steps, "step", lambda *given: right(*given) * torch.tensor(1.001))
    monkeypatch.setattr(golden, "VIEWS", ("tiny",))
    monkeypatch.setattr(golden, "CASES", ("case_tiny",))
    monkeypatch.setattr(golden, "TYPES", ("float32",))
    golden.check(settings, rows)
    kept = found(tmp_path)
    assert "1e-05 at most" in kept["float32, decoding, torch"]["wrong"]
    assert "wrong" not in kept["float32, decoding, plain"]


def test_quality_by_every_choice_of_kernels(
    settings: Settings, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fonts(*given: object) -> quality.Measure:
        raise InputError("No fonts were found.")

    monkeypatch.setattr(quality, "_synthetic", no_fonts)
    monkeypatch.setattr(quality, "KERNELS", ("plain", "auto", "auto,-telepathy"))
    quality.check(settings, rows)
    kept = json.loads((tmp_path / "rows.json").read_text())
    assert {name: row["examples"] for name, row in kept["rows"].items()} == {"plain": 3, "auto": 3}
    assert kept["notes"][0] == "no synthetic pages: No fonts were found."
    assert "no fast path called 'telepathy'" in kept["notes"][1]


def test_synthetic_pages_are_scored(settings: Settings, rows: Rows, tmp_path: Path) -> None:
    try:
        measure = quality._synthetic(tmp_path, rows, count=2)
    except InputError:
        pytest.skip("needs fonts")
    engine = OcrEngine.load(quality.POCKET, "cpu", "float32")
    figures = measure(engine)
    engine.close()
    assert 0 <= figures["cer"] < 0.5
    assert figures["failed"] == 0
    assert 0.5 < figures["iou"] <= 1


def test_a_reading_that_got_worse_is_told() -> None:
    plain = {"examples": 3, "cer": 0.01}
    assert quality._complaints({"examples": 3, "cer": 0.015}, plain) == []
    assert len(quality._complaints({"examples": 2, "cer": 0.05}, plain)) == 2
    assert len(quality._complaints({"examples": 3, "cer": float("nan")}, plain)) == 2


def test_start_decoding_and_pages(settings: Settings, rows: Rows, tmp_path: Path) -> None:
    full_size.write_checkpoint(settings, rows)
    full_size.start(settings, rows)
    full_size.decode(settings, rows)
    full_size.pages(settings, rows)
    kept = found(tmp_path)
    assert [row for row in kept.values() if "wrong" in row or "error" in row] == []
    assert kept["checkpoint"]["was_there"]
    assert kept["load"]["slots"] >= 1
    assert kept["plain, 1 page"]["agreement"] is None
    for pages in (1, 3):
        row = kept[f"torch, {pages} pages"]
        assert row["agreement"] < TOLERANCES[torch.float32]
        assert row["times_plain"] == pytest.approx(
            row["tokens_per_s"] / kept["plain, 1 page"]["tokens_per_s"]
        )
    assert kept["3 pages at once, second time"]["tokens_per_page"] == 4
    assert kept["3 pages one by one"]["pages_per_s"] > 0


def test_stages_and_memory(
    settings: Settings, rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_size, "a4_views", small_views)
    monkeypatch.setattr(full_size, "PRESETS", ("tiny",))
    full_size.stages_of_a_page(settings, rows)
    full_size.memory_use(settings, rows)
    kept = found(tmp_path)
    assert [row for row in kept.values() if "error" in row] == []
    assert kept["vision, A4 at Gundam"]["ratio"] > 0
    assert kept["prefill"]["tokens"] == full_size.PROMPT
    assert kept["vision, tiny"]["estimate"] > 0
    assert kept["3 slots"]["cache_estimate_per_slot"] == kept["1 slots"]["cache_estimate_per_slot"]


def small_views() -> Views:
    return Views(torch.rand(3, 512, 512), torch.empty(0, 3, 640, 640), (1, 1))


class Engine:
    """One that was loaded."""

    def __init__(self, kind: str, decoder: str) -> None:
        self.device = torch.device(kind)
        self.rehearsal = Outcome(kind, "bfloat16", decoder, "dense", "sdpa", "folded", 64, 1e-3)


@pytest.mark.parametrize(
    ("kind", "decoder", "wrong"),
    [("cuda", GRAPHS.name, False), ("cuda", TORCH.name, True), ("cpu", NATIVE.name, False)],
)
def test_a_card_that_decodes_without_graphs_is_told(kind: str, decoder: str, wrong: bool) -> None:
    figures = full_size.rehearsal(Engine(kind, decoder))  # type: ignore[arg-type]
    assert f"decoding by {decoder}" in figures["line"]
    assert figures["difference"] == 1e-3
    assert ("wrong" in figures) == wrong


# --- the command ----------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--dtype", "float32",
         "--pages", "1,2", "--read", "2", "--tokens", "3", "--repeat", "1", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.timeout(600)
def test_the_command_runs_parts_to_their_end(checkpoint: Path, tmp_path: Path) -> None:
    """All but those that tests above run in one process; on a busy machine the last may be left
    out."""
    output = tmp_path / "report.json"
    chosen = ["card", "checkpoint", "start", "decoding", "pages", "stages", "memory"]
    done = command(
        "--checkpoint", str(checkpoint), "--json", str(output), "--seconds", "200",
        "--only", *chosen,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(output.read_text())
    assert report["complete"]
    assert report["seconds"] < 210
    assert list(report["parts"]) == chosen
    statuses = [part["status"] for part in report["parts"].values()]
    assert statuses[:3] == ["done"] * 3
    assert set(statuses) <= {"done", parts.NO_TIME, parts.STOPPED}
    card = report["parts"]["card"]["rows"]
    assert card["machine"]["revision"]
    assert card["packages"]["torch"] == torch.__version__
    assert report["parts"]["start"]["rows"]["load"]["seconds_to_load"] > 0
    assert "nothing is wrong" in done.stdout


def test_a_wrong_checkpoint_is_told_and_the_rest_is_there(tmp_path: Path) -> None:
    folder, output = tmp_path / "checkpoint", tmp_path / "report.json"
    folder.mkdir()
    (folder / random_checkpoint.FILE).write_bytes(b"")
    done = command(
        "--checkpoint", str(folder), "--json", str(output), "--only", "checkpoint", "start"
    )  # fmt: skip
    assert done.returncode == 1
    assert "!! start: CheckpointError" in done.stdout
    assert json.loads(output.read_text())["parts"]["start"]["status"] == "failed"


def test_what_cannot_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main(["--device", "cuda:77"]) == 2
    assert "not available here" in capsys.readouterr().err
    assert gpu.main(["--device", "cpu", "--json", str(tmp_path / "no" / "folder.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


# --- what only a card does ------------------------------------------------------------------------


class Event:
    """Stands in for `torch.cuda.Event`: its clock goes by the calls that were made."""

    calls = 0

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = Event.calls

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 5.0 * (end.at - self.at)  # each call takes 5 ms


def test_a_card_is_timed_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())

    def call() -> None:
        Event.calls += 1

    assert machine.seconds_of(torch.device("cuda"), call) == pytest.approx(0.005)
    assert Event.calls > 10


def test_what_a_card_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert machine.card(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 570.86\necho 570.86\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    card = machine.card(torch.device("cuda"))
    assert card
    assert (card["name"], card["capability"]) == ("NVIDIA H100", "9.0")
    assert (card["free_bytes"], card["driver"]) == (70 * 10**9, "570.86")
    program.unlink()
    assert (machine.card(torch.device("cuda")) or {})["driver"] is None
