"""The scripts for Ascend, with a toolkit that sets nothing up and the CPU in place of an NPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import POCKET, ROOT

ASCEND = ROOT / "examples" / "ascend"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A toolkit whose script, like the real one, uses a variable that nobody set."""
    folder = tmp_path / "toolkit"
    folder.mkdir()
    (folder / "set_env.sh").write_text(
        'export TOOLKIT_WAS_SET_UP="yes$LD_LIBRARY_PATH_OF_NOBODY"\n'
    )
    return folder


def run(script: str, *arguments: str, toolkit: Path, cwd: Path) -> tuple[int, str, str]:
    environ = {
        "ASCEND_TOOLKIT": str(toolkit), "DEEPSEEK_OCR_DEVICE": "cpu",
        "DEEPSEEK_OCR_MODEL": "pocket", "PYTHON": sys.executable,
    }  # fmt: skip
    done = subprocess.run(
        [ASCEND / script, *arguments], env=os.environ | environ, cwd=cwd,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_prompt_starts_with_the_toolkit_set_up(toolkit: Path, tmp_path: Path) -> None:
    page = str(ROOT / "examples" / "invoice.png")
    assert run("start_ocr.sh", page, toolkit=toolkit, cwd=tmp_path)[:2] == (0, "Invoice\n")


def test_without_a_toolkit_the_scripts_say_so(tmp_path: Path) -> None:
    for script in ("start_ocr.sh", "benchmark.sh"):
        status, _, err = run(script, toolkit=tmp_path / "gone", cwd=tmp_path)
        assert status == 2
        assert "Install CANN, or set ASCEND_TOOLKIT" in err


def test_a_folder_is_read(toolkit: Path, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    shutil.copy(ROOT / "examples" / "invoice.png", tmp_path / "scans")
    status, _, err = run("read_folder.sh", "scans", "out", toolkit=toolkit, cwd=tmp_path)
    assert status == 0, err
    assert "Invoice" in (tmp_path / "out/invoice/invoice.md").read_text()
    assert run("read_folder.sh", "scans", toolkit=toolkit, cwd=tmp_path)[0] == 2


def test_the_benchmark_prints_the_table(toolkit: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "total.png", tmp_path)
    status, out, err = run("benchmark.sh", "total.png", toolkit=toolkit, cwd=tmp_path)
    assert status == 0, err
    assert "| success | 1 of 1 (100%) |" in out
    assert (tmp_path / "report.json").is_file()


def test_basic_usage_reads_a_page() -> None:
    done = subprocess.run(
        [sys.executable, ASCEND / "basic_usage.py", POCKET, ROOT / "examples/invoice.png", "cpu"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ended by" in done.stdout


def test_the_container_copies_what_is_there() -> None:
    recipe = (ASCEND / "Dockerfile").read_text()
    for line in recipe.splitlines():
        if line.startswith("COPY") and not line.startswith("COPY . "):
            assert (ROOT / line.split()[1]).is_file()
    entry = recipe.split('ENTRYPOINT ["')[1].split('"')[0]
    assert os.access(ROOT / entry, os.X_OK)
