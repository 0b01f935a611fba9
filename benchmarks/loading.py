"""Time and peak memory of loading a checkpoint, each time in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from deepseek_ocr.model.loader import load_network

ROOT = Path(__file__).resolve().parent.parent


def measure(
    folder: Path, device: str, dtype: str, repeat: int
) -> tuple[tuple[float, float], tuple[float, float]]:
    """((plain seconds, our seconds), (plain peak GB, our peak GB)), medians over `repeat` turns.

    The peak is anonymous memory (not the file's own pages, which the system takes back at will).
    """
    for path in folder.glob("*.safetensors"):
        _read_through(path)  # so that the first turn does not pay for the disk
    results: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
    for _ in range(repeat):
        for way, kept in results.items():
            command = [sys.executable, "-m", "benchmarks.loading", way, str(folder), device, dtype]
            output = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout
            kept.append(tuple(json.loads(output.splitlines()[-1])))
    plain, ours = (
        [statistics.median(values) for values in zip(*results[way], strict=True)]
        for way in ("plain", "ours")
    )
    return (plain[0], ours[0]), (plain[1], ours[1])


def _read_through(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def _load(way: str, folder: Path, device: str, dtype: str) -> object:
    from deepseek_ocr.devices import selection
    from deepseek_ocr.model import network as model
    from deepseek_ocr.model.checkpoint import read_config

    if way == "ours":
        return load_network(folder, device, dtype)
    target = selection.choose_device(device)
    kind = selection.choose_dtype(dtype, target)
    network = model.Network.from_pretrained(folder, config=read_config(folder), dtype=kind)
    return network.to(target)


def _anonymous_gb() -> float:
    """Resident memory of this process that no file backs (0 where the system does not say)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1e6


def _main() -> None:
    way, folder, device, dtype = sys.argv[1:]
    import deepseek_ocr.model.network  # noqa: F401 - imports are not loading

    peak, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, _anonymous_gb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    network = _load(way, Path(folder), device, dtype)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    print(json.dumps([seconds, max(peak, _anonymous_gb())]))
    del network


if __name__ == "__main__":
    _main()
