"""Fixtures of the tests of `registry.py`: a world with pget's stand-in or without, folders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from deepseek_ocr.weights import registry
from tests import weights_world
from tests.weights_steps import CARRIERS, NOWHERE
from tests.weights_world import NAME, World, checkpoint_files, write_files


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The servers, with no pget on the path yet."""
    use(monkeypatch, tmp_path, pget=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    with weights_world.running(tmp_path / "check points") as running:
        yield running


def use(monkeypatch: pytest.MonkeyPatch, folder: Path, *, pget: bool) -> None:
    """Put the stand-in on the path, or see to it that there is none."""
    values = weights_world.environment(folder, pget)
    for name in set(os.environ) - values.keys():
        monkeypatch.delenv(name)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(params=CARRIERS)
def carrier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Each test runs with pget and without."""
    use(monkeypatch, tmp_path, pget=request.param == "pget")
    return str(request.param)


@pytest.fixture
def pget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The stand-in is on the path; this is where it notes its calls."""
    use(monkeypatch, tmp_path, pget=True)
    return tmp_path / "bin" / "calls.jsonl"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for named checkpoints, empty; the sources cannot be reached."""
    monkeypatch.setattr(registry, "CHECKPOINTS", NOWHERE)
    return tmp_path / "check points"  # a blank, as in many a home folder


@pytest.fixture
def by_hand(home: Path) -> Path:
    """A whole checkpoint under its name, put there by hand."""
    return write_files(home / NAME, checkpoint_files())


@pytest.fixture
def recorded(home: Path, by_hand: Path) -> Path:
    """A whole checkpoint under its name, with its record."""
    registry.adopt(by_hand, home)
    return by_hand
