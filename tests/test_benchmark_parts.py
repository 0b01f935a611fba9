"""Parts of a report in processes of their own: those that fail, hang, or cannot be ended, and what
becomes of the others."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import part_runner
from benchmarks.part_runner import Part, Rows, Settings
from tests import report_parts
from tests.conftest import ROOT


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    return Rows(tmp_path / "rows.json", math.inf)


def found(tmp_path: Path) -> Any:
    return json.loads((tmp_path / "rows.json").read_text())["rows"]


def report_of(tmp_path: Path, *names: str, seconds: float = 200, share: float = 1.0) -> Any:
    """The report of parts of `report_parts`, as it is written."""
    chosen = [Part(name, getattr(report_parts, name), share) for name in names]
    output = tmp_path / "report.json"
    part_runner.run(
        chosen, Settings("cpu", "float32", tmp_path), seconds, output, {"device": "cpu"}
    )
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
    assert [line.split(":")[0] for line in part_runner.problems(report)] == [
        "raising",
        "out_of_memory, large",
        "killed",
        "disagreeing, logits",
    ]
    assert part_runner.left_out(report) == []
    assert "one: speed 1.5, device cpu" in capfd.readouterr().out


def test_the_report_is_there_after_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    write = part_runner.write

    def watched(path: Path, content: Any) -> None:
        write(path, content)
        kept = json.loads(path.read_text())
        states.append([part["status"] for part in kept["parts"].values()])

    monkeypatch.setattr(part_runner, "write", watched)
    report_of(tmp_path, "raising", "good")
    short = [state for at, state in enumerate(states) if state not in states[:at]]
    assert short == [["running"], ["failed"], ["failed", "running"], ["failed", "done"]]


def test_rows_are_in_the_report_while_the_part_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_runner, "GRACE", 1.0)
    kept = []
    write = part_runner.write

    def watched(path: Path, content: Any) -> None:
        write(path, content)
        kept.append(json.loads(path.read_text())["parts"]["hanging"])

    monkeypatch.setattr(part_runner, "write", watched)
    report_of(tmp_path, "hanging", seconds=100, share=0.05)
    assert any(part["status"] == "running" and "before" in part.get("rows", {}) for part in kept)


def test_sigterm_ends_the_part_and_leaves_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = part_runner.write

    def watched(path: Path, content: Any) -> None:
        write(path, content)
        if json.loads(path.read_text())["parts"]["hanging"].get("rows"):
            signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(part_runner, "write", watched)
    with pytest.raises(SystemExit) as ended:
        report_of(tmp_path, "hanging", "good")
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert multiprocessing.active_children() == []
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["parts"]["hanging"]["status"] == "interrupted"
    assert report["parts"]["hanging"]["rows"]["before"]["speed"] == 1
    assert not report["complete"]


def test_a_process_that_cannot_be_killed_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_runner, "GRACE", 1.0)
    monkeypatch.setattr(part_runner, "KILL_SECONDS", 0.1)
    with monkeypatch.context() as patched:
        patched.setattr(BaseProcess, "kill", lambda self: None)
        report = report_of(tmp_path, "hanging", "good", seconds=100, share=0.02)
    assert "could not be killed" in report["parts"]["hanging"]["error"]["text"]
    assert report["parts"]["good"]["status"] == "done"
    assert report["complete"]
    for process in multiprocessing.active_children():
        process.kill()
        process.join()


def test_the_command_does_not_wait_for_a_process_that_cannot_be_killed() -> None:
    script = (
        "import multiprocessing, time; from benchmarks import parts\n"
        "class Stuck: daemon = True\n"
        "parts.multiprocessing.active_children = lambda: [Stuck()]\n"
        "import atexit; atexit.register(time.sleep, 250)\n"
        "print('the report'); parts.leave(1)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert (done.returncode, done.stdout) == (1, "the report\n")


def test_an_error_of_the_part_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_runner, "GRACE", 1.0)
    report = report_of(tmp_path, "failing_and_hanging", seconds=100, share=0.05)
    assert report["parts"]["failing_and_hanging"]["error"]["type"] == "ValueError"


def test_a_part_with_seconds_of_its_own_takes_none_of_the_budget(tmp_path: Path) -> None:
    chosen = [
        Part("hanging", report_parts.hanging, own_seconds=6),
        Part("good", report_parts.good),
    ]
    report = part_runner.run(
        chosen, Settings("cpu", "float32", tmp_path), 60, tmp_path / "r.json", {}
    )
    assert report["parts"]["hanging"]["error"]["type"] == "TimeoutError"
    assert report["parts"]["good"]["status"] == "done"
    assert report["seconds"] == report["parts"]["good"]["seconds"]


def test_a_part_knows_what_the_ones_before_it_found(tmp_path: Path) -> None:
    report = report_of(tmp_path, "good", "after_good")
    assert report["parts"]["after_good"]["rows"]["copied"]["speed"] == 1.5


def test_rows_that_are_left_out_make_a_part_incomplete(tmp_path: Path) -> None:
    report = report_of(tmp_path, "leaving_out", "good")
    assert report["parts"]["leaving_out"]["status"] == "incomplete"
    assert part_runner.left_out(report) == ["leaving_out (2 rows)"]
    assert part_runner.problems(report) == []


def test_rows_that_there_is_no_time_for_are_left_out(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.json", 100)
    assert rows.add("short", lambda: {"speed": 1.0}, needs=50)
    assert rows.add("long", lambda: {"speed": 2.0}, needs=200) is None
    kept = found(tmp_path)
    assert kept["short"]["speed"] == 1
    assert kept["long"] == {"left_out": "no time"}


def test_figures_are_printed_with_their_units(
    rows: Rows, capsys: pytest.CaptureFixture[str]
) -> None:
    rows.add(
        "card",
        lambda: {
            "bytes_per_second": 3.3e12, "operations_per_second": 7e14, "total_bytes": 80 * 10**9,
            "share_of_peak": 0.5, "exact": 3, "peak_bytes": None,
        },
    )  # fmt: skip
    assert capsys.readouterr().out == (
        "  card: bytes per second 3300 GB/s, operations per second 700 TFLOP/s, total bytes 80 GB, "
        "share of peak 50 %, exact 3, peak bytes None\n"
    )


def test_a_part_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_runner, "GRACE", 1.0)
    report = report_of(tmp_path, "hanging", "good", seconds=100, share=0.02)
    assert report["parts"]["hanging"]["status"] == "failed"
    assert report["parts"]["hanging"]["error"]["type"] == "TimeoutError"
    assert report["parts"]["good"]["status"] == "done"


def test_the_budget_ends_a_part_without_blaming_it(tmp_path: Path) -> None:
    report = report_of(tmp_path, "hanging", "good", seconds=6)
    assert report["parts"]["hanging"]["status"] == "stopped: no time"
    assert report["parts"]["good"]["status"] == "left out: no time"
    assert part_runner.problems(report) == []
    assert part_runner.left_out(report) == ["hanging (its last rows)", "good"]


def test_a_device_that_answers_nothing_more_ends_the_part(tmp_path: Path) -> None:
    def dead() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail() -> part_runner.Figures:
        raise RuntimeError("CUDA error")

    rows = Rows(tmp_path / "rows.json", 100, dead)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        rows.add("first", fail)
    assert found(tmp_path)["first"]["error"]["text"] == "CUDA error"
