"""The benchmarks run, at a tiny size, and write what they say."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import decode_speed, machine, page_speed, random_checkpoint, timing
from deepseek_ocr.model.loader import load_network
from tests.conftest import GOLDEN, ROOT


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random")
    config = json.loads((GOLDEN / "checkpoint" / "config.json").read_text())
    random_checkpoint.write(folder, config)
    return folder


def flags(folder: Path, output: Path) -> list[str]:
    given = ["--device", "cpu", "--dtype", "float32", "--tokens", "2", "--pages", "2"]
    return ["x", "--checkpoint", str(folder), *given, "--repeat", "1", "--json", str(output)]


def figures(output: Path) -> Any:
    return json.loads(output.read_text())


@pytest.mark.parametrize("quant", ["none", "int8"])
def test_run(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quant: str
) -> None:
    output = tmp_path / "figures.json"
    arguments = [*flags(tiny_checkpoint, output), "--skip-load", "--quant", quant]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(page_speed, "A4_AT_300_DPI", (1400, 700))  # two tiles instead of six
    page_speed.main()
    found = figures(output)
    assert found["machine"].keys() >= {"torch", "processor", "revision", "threads"}
    assert all(limit > 0 for limit in found["limits"].values())
    rows = {row["stage"]: row for row in found["rows"]}
    parts = ["preprocess A4 at 300 dpi", "vision, Gundam A4", "prefill, 493 tokens"]
    whole = sum(rows[part]["ours"] for part in parts) + 250 * rows["decode, 2 tokens"]["ours"]
    assert rows["page with 500 tokens (sum)"]["ours"] == pytest.approx(whole)
    assert rows["vision, Gundam A4"]["share"] > 0


def test_a_step_reads_the_experts_it_takes_and_the_cache(tiny_checkpoint: Path) -> None:
    network = load_network(tiny_checkpoint, "cpu", "float32")
    config = network.config.text_config
    layers = network.model.language_model.layers
    experts = sum(p.nbytes for n, p in layers.named_parameters() if ".experts." in n)
    everything = sum(p.nbytes for p in layers.parameters()) + network.lm_head.weight.nbytes
    unused = experts * (1 - config.num_experts_per_tok / config.n_routed_experts)
    cache = 2 * len(layers) * config.hidden_size * 10 * 4
    bytes_read, _ = decode_speed.needed_by_step(network, 1, 10)
    assert bytes_read == pytest.approx(everything - unused + cache)


def test_seconds_of_a_short_call() -> None:
    called: list[float] = []

    def call() -> None:
        began = time.perf_counter()
        while time.perf_counter() < began + 0.01:
            pass
        called.append(time.perf_counter() - began)

    assert timing.seconds_of(timing.CPU, call) == pytest.approx(min(called), rel=0.1)
    assert sum(called) > timing.WARM_UP + timing.TIMED


ONE_AFTER_THE_OTHER = """
import torch
from benchmarks import decode_speed, machine, page_speed, random_checkpoint, timing

def two_tensors():
    torch.ones(50_000_000)  # 200 MB, given back at once
    torch.ones(25_000_000)

print(machine.peak_memory(torch.device("cpu"), two_tensors))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux keeps the peak")
def test_peak_memory_is_the_most_that_a_call_takes() -> None:
    """In a process of its own: what other tests give back meanwhile would be taken off."""
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert 0.9 * 200e6 < int(done.stdout) < 1.2 * 200e6


def test_peak_memory_is_unknown_where_the_system_does_not_keep_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "_PEAK_RESET", tmp_path / "none" / "clear_refs")
    called: list[bool] = []
    assert machine.peak_memory(torch.device("cpu"), lambda: called.append(True)) == 0
    assert called
