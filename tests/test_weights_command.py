"""`deepseek-ocr weights` as a person runs it, without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_ocr.cli.main import main
from deepseek_ocr.cli.terminal import COULD_NOT_START, INTERRUPTED
from deepseek_ocr.cli.weights import DONE, FAILED
from deepseek_ocr.weights import registry
from tests.weights_steps import NOWHERE, cut
from tests.weights_world import NAME, ROOT, WEIGHTS, checkpoint_files, write_files

pytest_plugins = ["tests.weights_fixtures"]


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deepseek_ocr", "weights", *arguments],
        cwd=ROOT,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_teaches() -> None:
    done = run("--help")
    assert done.returncode == DONE
    for word in (
        "fetch deepseek-ocr",
        "adopt",
        "verify",
        "list",
        "HF_TOKEN",
        "pget",
        "exit status",
    ):
        assert word in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [(), ("fetch",), ("fetch", "pocket"), ("fetch", NAME, "--source", "x"), ("burn", NAME)],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == COULD_NOT_START
    assert done.stdout == ""


def test_list_says_what_is_here(
    home: Path, by_hand: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--checkpoints", str(home)]
    assert main(["weights", "list", *where]) == DONE
    assert "deepseek-ocr: complete, but placed by hand" in capsys.readouterr().out
    registry.adopt(by_hand, home)
    assert main(["weights", "list", *where]) == DONE
    listed = capsys.readouterr().out
    assert f"deepseek-ocr: ready, {by_hand}\n" in listed
    assert "from adopted" in listed
    assert f"pocket: bundled, {ROOT / 'checkpoints/pocket'}" in listed
    cut(by_hand / WEIGHTS)
    assert main(["weights", "list", *where]) == DONE
    assert "damaged" in capsys.readouterr().out
    shutil.rmtree(by_hand)
    assert main(["weights", "list", *where]) == DONE
    assert f"deepseek-ocr: not here, {by_hand}\n" in capsys.readouterr().out


def test_the_environment_says_where(home: Path, recorded: Path) -> None:
    done = run("verify", NAME, DEEPSEEK_OCR_CHECKPOINTS=str(home))
    assert (done.returncode, done.stderr) == (DONE, "")
    assert done.stdout == "deepseek-ocr: all 6 files are as they came from adopted\n"
    missing = run("verify", NAME, DEEPSEEK_OCR_CHECKPOINTS=str(home / "empty"))
    assert missing.returncode == FAILED
    assert missing.stderr.startswith("deepseek-ocr: The checkpoint 'deepseek-ocr' is not in ")


def test_a_wrong_setting_is_wrong_usage(home: Path) -> None:
    done = run("fetch", NAME, "--checkpoints", str(home), DEEPSEEK_OCR_SOURCE="torrent")
    assert done.returncode == COULD_NOT_START
    assert "There is no source 'torrent'" in done.stderr


def test_commands_for_the_bundled_one_and_for_adopting(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_files(tmp_path / "download", checkpoint_files())
    where = ["--checkpoints", str(home)]
    assert main(["weights", "verify", "pocket", *where]) == DONE
    assert "pocket is whole" in capsys.readouterr().out
    assert main(["weights", "adopt", str(folder), *where]) == DONE
    assert f"deepseek-ocr is in {home / NAME}" in capsys.readouterr().out
    assert main(["weights", "adopt", str(folder), *where]) == FAILED
    monkeypatch.setitem(registry.CHECKPOINTS, NAME, NOWHERE[NAME])
    assert main(["weights", "fetch", NAME, *where]) == DONE, "it is there: nothing to fetch"


def test_an_interrupt_is_no_traceback(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "ensure", interrupted)
    assert main(["weights", "fetch", NAME, "--checkpoints", str(home)]) == INTERRUPTED
    assert "interrupted" in capsys.readouterr().err
