"""The environment with the container's versions, and the judgement over skipped tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import container, skips


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where environments would be made; and no arguments."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["container.py"])
    return tmp_path / "cache" / "deepseek-ocr"


def test_without_its_python_the_environment_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    leads_nowhere = tmp_path / f"python{container.PYTHON}"  # as pyenv's commands may
    leads_nowhere.write_text("#!/bin/sh\nexit 127\n")
    leads_nowhere.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    assert container.main() == container.UNAVAILABLE
    assert "No Python 3.12 that can make environments" in capsys.readouterr().err


def test_without_disk_the_environment_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    monkeypatch.setattr(container, "BYTES", 10**18)
    monkeypatch.setattr(container, "find_python", lambda: sys.executable)
    assert container.main() == container.UNAVAILABLE
    assert "wants 1000000000; name another folder" in capsys.readouterr().err
    assert not cache.exists()


def test_where_nothing_can_be_written_the_environment_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    cache.parent.touch()  # a file in the folder's place
    monkeypatch.setattr(container, "find_python", lambda: sys.executable)
    assert container.main() == container.UNAVAILABLE
    assert "Nothing can be written to" in capsys.readouterr().err


def test_an_environment_whose_python_is_gone_is_not_ready(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / container.READY).touch()
    (cache / "bin").mkdir()
    (cache / "bin" / "python").symlink_to(cache / "uninstalled")
    assert not container.is_ready(cache)


def test_an_environment_that_was_not_finished_is_made_anew(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    half = cache / f"container-{container.fingerprint('')}"
    half.mkdir(parents=True)
    (half / "left").touch()
    monkeypatch.setattr(container, "find_python", lambda: sys.executable)
    monkeypatch.setattr(container, "REQUIREMENTS", (cache.parent / "no-requirements.txt",))
    monkeypatch.setattr(container, "fingerprint", lambda index: half.name.split("-")[1])
    assert container.main() == container.FAILED  # pip finds no such file
    assert (half / "bin" / "python").exists()
    assert not (half / "left").exists()
    assert not (half / container.READY).exists()


def test_other_requirements_make_another_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "requirements.txt"
    monkeypatch.setattr(container, "REQUIREMENTS", (file,))
    names = set()
    for text, index in (("a==1", ""), ("a==2", ""), ("a==2", "https://example.org")):
        file.write_text(text)
        names.add(container.fingerprint(index))
    assert len(names) == 3


TESTS = """
import pytest

@pytest.mark.skipif({silicon}, reason="needs a processor with AVX-512 BF16")
def test_silicon(): pass

@pytest.mark.skipif({browser}, reason="needs Debian's package chromium")
def test_browser(): pass

def test_always(): pass
"""


@pytest.fixture
def report(tmp_path: Path) -> Any:
    """Run a small suite; the report it writes."""

    def run(name: str, **skipped: bool) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "test_it.py").write_text(TESTS.format(**skipped))
        written = folder / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={written}", "test_it.py"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return str(written)

    return run


def test_skips_for_want_of_silicon_are_told(
    report: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert skips.main([report("here", silicon=True, browser=False)]) == 0
    assert capsys.readouterr().out == "1 skipped: needs a processor with AVX-512 BF16\n"


def test_skips_for_want_of_what_can_be_installed_fail(
    report: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert skips.main([report("here", silicon=True, browser=True)]) == 1
    assert "may not be skipped: test_it::test_browser: needs Debian's package chromium" in (
        capsys.readouterr().err
    )


def test_a_test_that_ran_elsewhere_may_not_be_skipped(report: Any) -> None:
    here, there = (
        report(name, silicon=name == "here", browser=False) for name in ("here", "there")
    )
    assert skips.main([here]) == 0
    assert skips.main([here, there]) == 1
    assert skips.main([here, here]) == 0
