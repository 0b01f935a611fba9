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
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import command, decode_speed, machine
from benchmarks.decode_speed import DecodeRow, Limits
from benchmarks.page_stages import PROMPT
from benchmarks.random_checkpoint import provide
from deepseek_ocr.devices import memory
from deepseek_ocr.kernels import op_fallbacks, slot_decoder
from deepseek_ocr.model.int8_layers import quantize_decoder
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network


def main() -> None:
    """Command line."""
    flags = _parser().parse_args()
    provide(flags.checkpoint)
    network = load_network(flags.checkpoint, flags.device, flags.dtype)
    op_fallbacks.fit(network)
    limits = decode_speed.limits(network.device, network.dtype)
    print(limits, flush=True)
    rows: list[DecodeRow] = []
    found: dict[str, Any] = {
        "machine": machine.describe(network.device) | {"card": machine.card(network.device)},
        "limits": asdict(limits),
        "rows": rows,
        "failed": [],
    }
    for row in _rows(network, flags, limits):
        if isinstance(row, DecodeRow):
            rows.append(row)
            print(row, flush=True)
        else:
            found["failed"].append(row)
            print(f"FAILED: {row}", flush=True)
        command.write_json(flags.json, found | {"rows": [asdict(one) for one in rows]})
    if network.device.type == "cpu":
        print(_proposal(rows))
    wrong = [row for row in rows if not row.agrees(network.dtype)]
    for one in wrong:
        print(f"WRONG: {one!r}")
    sys.exit(bool(wrong or found["failed"]))


def _parser() -> argparse.ArgumentParser:
    made = command.full_size_parser("kernels", __doc__)
    made.add_argument(
        "--pages",
        type=command.counts,
        default=(1, 2, 4, 8),
        metavar="N,N,…",
        help="pages in flight, as in 1,8,64",
    )
    made.add_argument("--quant", default="none,int8", help="none first: int8 replaces weights")
    made.add_argument("--prompt", type=int, default=PROMPT, help="tokens of a page's prompt")
    made.add_argument("--tokens", type=int, default=32, help="decoded per repetition")
    return made  # fmt: skip


def _rows(
    network: Network, flags: argparse.Namespace, limits: Limits
) -> Iterator[DecodeRow | dict[str, Any]]:
    """All ways at all numbers of pages, the plain class for one page as it takes them in turn; in
    place of a way that fails, what it was and why."""
    best = None
    for quant in flags.quant.split(","):
        if quant == "int8":
            quantize_decoder(network)
        task = decode_speed.task_of(network, flags.prompt, flags.tokens, flags.repeat, best)
        best = task.best
        for name, pages, make in decode_speed.decoders(network, flags.pages, task.context):
            try:
                yield decode_speed.measure(name, make(), task, network, limits, quant)
            except Exception as error:  # whatever a device raises; the other ways go on
                why = f"{type(error).__name__}: {error}"
                yield {"way": name, "quant": quant, "pages": pages, "error": why}
            memory.give_back(network.device)


def _proposal(rows: list[DecodeRow]) -> str:
    """What the table of processor features should say, going by one page in the file's type."""
    features = torch.backends.cpu.get_cpu_capability()
    speeds = {row.way: row.tokens_per_s for row in rows if row.pages == 1 and row.quant == "none"}
    better = speeds.get("compiled", 0) > speeds.get("torch", 0)
    now = slot_decoder.COMPILED.get(features, False)
    verdict = "as it is" if better == now else f"not {now} as now"
    return f'slot_decoder.COMPILED["{features}"] should be {better}, {verdict}'


if __name__ == "__main__":
    main()
