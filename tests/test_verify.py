"""The check of a real checkpoint, tried on the toy and on a reader that is always right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from deepseek_ocr.cli import verify_checkpoint
from deepseek_ocr.engine.results import Counts, Timings
from tests.conftest import ROOT

VERIFY = ("-m", "deepseek_ocr", "verify-checkpoint")


def test_the_toy_reads_the_first_page_not_the_letter_and_the_report_says_so(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = subprocess.run(
        [sys.executable, *VERIFY, "--model", "pocket", "--report", str(report)],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "every tensor fits" in done.stdout
    checks = json.loads(report.read_text())["checks"]
    assert len(checks) == 4
    assert checks[0]["passed"]
    assert checks[0]["text"] == "Invoice"
    assert not checks[2]["passed"]  # the letter
    for check in checks[1:]:
        assert check["passed"] != bool(check.get("missing") or check.get("error"))


def test_a_missing_checkpoint_cannot_start(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, *VERIFY, "--model", str(tmp_path / "none")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "no folder" in done.stderr


def test_what_is_on_the_pages_passes(capsys: Any) -> None:
    """The phrases are what the example pages say, not something no reader could find."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import make_pages
    finally:
        sys.path.pop(0)
    rows = "".join(
        "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in make_pages.TABLE
    )
    lines = " ".join(line[-1] for line in make_pages.LETTER)
    small = " ".join(line for _, _, lines in make_pages.PAGES.values() for line in lines)
    text = f"{small} <|ref|>table<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|> {lines} {rows}"
    reading = SimpleNamespace(
        text=text,
        finish_reason="stop",
        counts=Counts(1, 1, 1, 1, 1.0),
        timings=Timings(1, 1, 1, 1),
    )
    engine: Any = SimpleNamespace(read=lambda *_: reading)
    assert all(
        verify_checkpoint.run_check(engine, check)["passed"] for check in verify_checkpoint.CHECKS
    )
    assert capsys.readouterr().out.count("ok") == len(verify_checkpoint.CHECKS)
