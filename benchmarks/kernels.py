"""Every fast way of decoding on this machine: is it right, and how fast is it?

    python -m benchmarks.kernels [--device cuda] [--pages 1,8,64] [--json FILE]

Against the library's plain class, in one run, over one set of full-size random weights. Prints
what the device's memory and arithmetic can do, what is reached as a share of it, and, on a
processor, what the table in `deepseek_ocr/kernels/slot_decoder.py` should say here. A few minutes.
A way that fails does not stop the others. Exits with 1 if a way failed or does not agree with the
plain class.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import decode_speed, machine, random_checkpoint
from benchmarks.decode_speed import Limits, Row
from deepseek_ocr.decoding.decoder import Decoder, PlainDecoder
from deepseek_ocr.devices import memory, selection
from deepseek_ocr.files import appearing
from deepseek_ocr.images.views import Views
from deepseek_ocr.kernels import op_fallbacks, slot_decoder
from deepseek_ocr.kernels.slot_decoder import SlotDecoder
from deepseek_ocr.model import int8_layers
from deepseek_ocr.model import network as model
from deepseek_ocr.model.loader import load_network

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Command line."""
    flags = _flags()
    if not (flags.checkpoint / random_checkpoint.FILE).is_file():
        print(f"writing a random checkpoint to {flags.checkpoint} …", flush=True)
        random_checkpoint.write(flags.checkpoint)
    network = load_network(flags.checkpoint, flags.device, flags.dtype)
    op_fallbacks.fit(network)
    limits = decode_speed.limits(network.device, network.dtype)
    found: dict[str, Any] = {
        "machine": machine.describe(network.device) | {"card": machine.card(network.device)},
        "limits": asdict(limits),
        "stages": {},
        "rows": [],
        "failed": [],
    }
    print(
        f"{limits.bytes_per_second / 1e9:.1f} GB/s, "
        f"{limits.operations_per_second / 1e12:.2f} TFLOP/s",
        flush=True,
    )

    def keep() -> None:
        if flags.json:
            with appearing(flags.json) as stream:
                stream.write(json.dumps(found, indent=1).encode())

    for name, seconds in _stages(network, flags):
        print(f"{name:24}{seconds:10.4f}", flush=True)
        found["stages"][name] = seconds
        keep()
    rows: list[Row] = []
    for row in _rows(network, flags, limits):
        if isinstance(row, Row):
            print(row, flush=True)
            rows.append(row)
            found["rows"].append(asdict(row))
        else:
            print(f"FAILED: {row}", flush=True)
            found["failed"].append(row)
        keep()
    if network.device.type == "cpu":
        print(_proposal(rows))
    wrong = [row for row in rows if not row.agrees(network.dtype)]
    for row in wrong:
        print(f"WRONG: {row!r}")
    sys.exit(bool(wrong or found["failed"]))


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "build" / "random-checkpoint")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--pages", default="1,2,4,8", help="pages in flight, as in 1,8,64")
    parser.add_argument("--quant", default="none,int8", help="none first: int8 replaces weights")
    parser.add_argument("--prompt", type=int, default=913, help="tokens of a page's prompt")
    parser.add_argument("--tokens", type=int, default=32, help="decoded per repetition")
    parser.add_argument("--repeat", type=int, default=3, help="repetitions; the median counts")
    parser.add_argument("--view", type=int, default=1024, help="side of the global view, px")
    parser.add_argument("--tiles", type=int, default=6, help="tiles of 640 px beside it")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    return parser.parse_args()


def _stages(network: model.Network, flags: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Median seconds of vision and of prefill, by the class and by the fast decoder's way."""
    tiles = torch.rand(flags.tiles, 3, 640, 640) if flags.tiles else torch.empty(0, 3, 640, 640)
    grid = (2, flags.tiles // 2) if flags.tiles else (1, 1)
    views = Views(torch.rand(3, flags.view, flags.view), tiles, grid)
    prompt = decode_speed.prompt_of(network, flags.prompt)
    plain = PlainDecoder(network)
    median = partial(_median, network, flags.repeat)
    yield "vision_s", median(lambda: model.vision_tokens(network, views))
    yield "prefill_plain_s", median(lambda: plain.prefill(0, prompt))
    plain.free(0)
    for name, way in decode_speed.ways(network):
        fast = SlotDecoder(network, 1, flags.prompt, way)
        yield f"prefill_{name}_s", median(partial(fast.prefill, 0, prompt))


def _rows(
    network: model.Network, flags: argparse.Namespace, limits: Limits
) -> Iterator[Row | dict[str, Any]]:
    """All ways at all numbers of pages, the plain class for one page as it takes them in turn; in
    place of a way that fails, what it was and why."""
    counts = [int(count) for count in flags.pages.split(",")]
    best = None
    for quant in flags.quant.split(","):
        if quant == "int8":
            int8_layers.quantize_decoder(network)
        task = decode_speed.task_of(network, flags.prompt, flags.tokens, flags.repeat, best)
        best = task.best
        made: list[tuple[str, int, Callable[[], Decoder]]] = [
            ("plain", 1, partial(PlainDecoder, network))
        ]
        for name, way in decode_speed.ways(network):
            for count in counts:
                made.append((name, count, partial(SlotDecoder, network, count, task.context, way)))
        found: Row | dict[str, Any]
        for name, count, make in made:
            try:
                found = decode_speed.measure(name, make(), task, network, limits, quant)
            except Exception as error:  # whatever a device raises; the other ways go on
                why = f"{type(error).__name__}: {error}"
                found = {"way": name, "quant": quant, "pages": count, "error": why}
            yield found
            memory.give_back(network.device)


def _median(network: model.Network, repeat: int, call: Callable[[], object]) -> float:
    """Median seconds, after one call that does not count."""
    times = []
    for turn in range(repeat + 1):
        start = time.perf_counter()
        call()
        selection.synchronize(network.device)
        if turn:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _proposal(rows: list[Row]) -> str:
    """What the table of processor features should say, going by one page in the file's type."""
    features = torch.backends.cpu.get_cpu_capability()
    speeds = {row.way: row.tokens_per_s for row in rows if row.pages == 1 and row.quant == "none"}
    better = speeds.get("compiled", 0) > speeds.get("torch", 0)
    now = slot_decoder.COMPILED.get(features, False)
    verdict = "as it is" if better == now else f"not {now} as now"
    return f'decoder.COMPILED["{features}"] should be {better}, {verdict}'


if __name__ == "__main__":
    main()
