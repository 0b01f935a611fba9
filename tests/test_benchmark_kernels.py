"""The benchmark of fast paths runs to its end at tiny size, and notices what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import kernels, random_checkpoint
from deepseek_ocr.kernels import torch_steps
from tests.conftest import GOLDEN

SMALL = ["--prompt", "20", "--tokens", "3", "--repeat", "1"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the golden checkpoint's sizes."""
    folder = tmp_path_factory.mktemp("random")
    config = json.loads((GOLDEN / "checkpoint" / "config.json").read_text())
    random_checkpoint.write(folder, config)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["kernels", "--device", "cpu", *SMALL, *arguments])
    with pytest.raises(SystemExit) as ended:
        kernels.main()
    return int(ended.value.code or 0)


def test_every_way_is_measured_and_right(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = tmp_path / "figures.json"
    flags = ("--checkpoint", str(checkpoint), "--dtype", "float32", "--pages", "1,3")
    assert run(monkeypatch, *flags, "--json", str(report)) == 0
    figures = json.loads(report.read_text())
    found = {(row["way"], row["quant"], row["pages"]) for row in figures["rows"]}
    assert {("plain", "none", 1), ("torch", "none", 3), ("torch", "int8", 1)} <= found
    assert all(row["tokens_per_s"] > 0 for row in figures["rows"])
    assert "slot_decoder.COMPILED" in capsys.readouterr().out


def test_a_wrong_way_fails_the_run(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = torch_steps.step
    monkeypatch.setattr(torch_steps, "step", lambda *given: right(*given) + torch.tensor(1.0))
    flags = ("--checkpoint", str(checkpoint), "--dtype", "float32", "--pages", "1")
    assert run(monkeypatch, *flags, "--quant", "none") == 1
    assert "!! kernels, torch, 1 page: differs by" in capsys.readouterr().out


def test_a_way_that_fails_is_told_and_the_others_are_measured(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = torch_steps.TorchSteps.__call__

    def refusing(self: torch_steps.TorchSteps, slots: list[int], ids: list[int]) -> torch.Tensor:
        if len(slots) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return right(self, slots, ids)

    monkeypatch.setattr(torch_steps.TorchSteps, "__call__", refusing)
    report = tmp_path / "figures.json"
    flags = ("--checkpoint", str(checkpoint), "--dtype", "float32", "--pages", "1,3,2")
    assert run(monkeypatch, *flags, "--quant", "none", "--json", str(report)) == 1
    figures = json.loads(report.read_text())
    (failed,) = figures["failed"]
    assert failed["row"] == "torch, 3 pages"
    assert failed["error"] == {"type": "OutOfMemoryError", "text": "CUDA out of memory."}
    assert {1, 2} <= {row["pages"] for row in figures["rows"] if row["way"] == "torch"}
