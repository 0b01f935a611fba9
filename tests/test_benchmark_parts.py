"""Parts of a report in processes of their own: those that fail, hang, or cannot be ended, and what
becomes of the others."""

from __future__ import annotations

import json
import math
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import part_runner
from benchmarks.part_rows import Figures, ReportRows
from benchmarks.part_runner import ReportPart, ReportSettings
from tests import report_parts
from tests.conftest import ROOT


def report_of(tmp_path: Path, *names: str, seconds: float = 200, share: float = 1.0) -> Any:
    """The report of parts of `report_parts`, as it is written."""
    chosen = [ReportPart(name, getattr(report_parts, name), share) for name in names]
    output = tmp_path / "report.json"
    part_runner.run(
        chosen, ReportSettings("cpu", "float32", tmp_path), seconds, output, {"device": "cpu"}
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


def statuses(report: Any) -> list[str]:
    return [part["status"] for part in report["parts"].values()]


def test_the_report_is_there_after_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    write_json = part_runner.write_json

    def watched(path: Path, content: Any) -> None:
        write_json(path, content)
        states.append(statuses(json.loads(path.read_text())))

    monkeypatch.setattr(part_runner, "write_json", watched)
    report_of(tmp_path, "raising", "good")
    assert [state for at, state in enumerate(states) if state not in states[:at]] == [
        ["running"], ["failed", "running"], ["failed", "done"],
    ]  # fmt: skip


def once_it_has_a_row(
    monkeypatch: pytest.MonkeyPatch, output: Path, act: Callable[[Any], None]
) -> None:
    """Call `act` with the report as soon as the part `hanging`, which still runs, has a row."""
    join, acts = BaseProcess.join, [act]

    def joined(process: BaseProcess, timeout: float | None = None) -> None:
        while acts and process.is_alive():
            join(process, 0.05)
            report = json.loads(output.read_text())
            if report["parts"]["hanging"].get("rows"):
                acts.pop()(report)
        join(process, timeout)

    monkeypatch.setattr(BaseProcess, "join", joined)


def test_rows_are_in_the_report_while_the_part_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_runner, "GRACE", 0.5)
    kept: list[Any] = []
    once_it_has_a_row(monkeypatch, tmp_path / "report.json", kept.append)
    report_of(tmp_path, "hanging", seconds=100, share=0.02)
    assert kept[0]["parts"]["hanging"]["status"] == "running"
    assert kept[0]["parts"]["hanging"]["rows"]["before"]["speed"] == 1


def test_sigterm_ends_the_part_and_leaves_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, output = signal.getsignal(signal.SIGTERM), tmp_path / "report.json"
    once_it_has_a_row(monkeypatch, output, lambda _: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        report_of(tmp_path, "hanging", "good")
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert multiprocessing.active_children() == []
    report = json.loads(output.read_text())
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
        "import multiprocessing, time; from benchmarks import part_runner\n"
        "class Stuck: daemon = True\n"
        "part_runner.multiprocessing.active_children = lambda: [Stuck()]\n"
        "import atexit; atexit.register(time.sleep, 250)\n"
        "print('the report'); part_runner.leave(1)"
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
        ReportPart("hanging", report_parts.hanging, own_seconds=6),
        ReportPart("good", report_parts.good),
    ]
    report = part_runner.run(
        chosen, ReportSettings("cpu", "float32", tmp_path), 60, tmp_path / "r.json", {}
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


def test_rows_that_there_is_no_time_for_are_left_out() -> None:
    rows = ReportRows(100)
    assert rows.add("short", lambda: {"speed": 1.0}, needs=50)
    assert rows.add("long", lambda: {"speed": 2.0}, needs=200) is None
    assert rows.found["rows"]["short"]["speed"] == 1
    assert rows.found["rows"]["long"] == {"left_out": "no time"}


def test_figures_are_printed_with_their_units(capsys: pytest.CaptureFixture[str]) -> None:
    ReportRows(math.inf).add(
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


def test_a_device_that_answers_nothing_more_ends_the_part() -> None:
    def dead() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail() -> Figures:
        raise RuntimeError("CUDA error")

    rows = ReportRows(100, recover=dead)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        rows.add("first", fail)
    assert rows.found["rows"]["first"]["error"]["text"] == "CUDA error"
