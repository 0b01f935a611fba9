"""Time and peak memory of loading a checkpoint, each time in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks import machine
from benchmarks.command import ROOT
from benchmarks.page_stages import StageTime
from deepseek_ocr.devices import selection
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network


def measure(
    folder: Path, device: str, dtype: str, repeat: int
) -> tuple[StageTime, dict[str, float]]:
    """Median seconds of the plain class and of ours over `repeat` turns, and the medians of their
    peaks in GB: of anonymous memory, not the file's own pages, which the system takes back at will.
    """
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:  # so that the first turn does not pay for the disk
            while file.read(1 << 24):
                pass
    found: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
    for _ in range(repeat):
        for way, kept in found.items():
            command = [sys.executable, "-m", "benchmarks.loading", way, str(folder), device, dtype]
            output = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout
            kept.append(tuple(json.loads(output.splitlines()[-1])))
    seconds = {way: statistics.median(one[0] for one in kept) for way, kept in found.items()}
    peaks = {way: statistics.median(one[1] for one in kept) for way, kept in found.items()}
    return StageTime("load", seconds["plain"], seconds["ours"]), peaks


def _load(way: str, folder: Path, device: str, dtype: str) -> object:
    if way == "ours":
        return load_network(folder, device, dtype)
    target = selection.choose_device(device)
    kind = selection.choose_dtype(dtype, target)
    return Network.from_pretrained(folder, config=read_config(folder), dtype=kind).to(target)


def _main(way: str, folder: str, device: str, dtype: str) -> None:
    with machine.highest(partial(machine.resident, "RssAnon"), 0.02) as peak:
        began = time.perf_counter()
        network = _load(way, Path(folder), device, dtype)
        seconds = time.perf_counter() - began
    print(json.dumps([seconds, peak[0] / 1e9]))
    del network


if __name__ == "__main__":
    _main(*sys.argv[1:])
