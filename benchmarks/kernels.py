"""Every fast way of decoding on this machine: is it right, and how fast is it?

    python -m benchmarks.kernels [--device cuda] [--pages 1,8,64] [--json FILE]

Against the library's plain class, over one set of full-size random weights, in a few minutes; on a
processor it says too what the table in `deepseek_ocr/kernels/slot_decoder.py` should hold here.
Exits with 1 if a way failed, which does not stop the others, or disagrees with the plain class.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import asdict, replace
from functools import partial

import torch

from benchmarks import command, decode_speed, full_size, machine, page_stages, part_runner
from benchmarks.page_stages import PROMPT
from benchmarks.part_rows import Figures, ReportRows
from benchmarks.random_checkpoint import provide
from deepseek_ocr.devices import memory
from deepseek_ocr.kernels import slot_decoder
from deepseek_ocr.model.int8_layers import quantize_decoder


def main() -> None:
    """Command line."""
    flags = _parser().parse_args()
    provide(flags.checkpoint)
    pair = page_stages.load_pair(flags.checkpoint, flags.device, flags.dtype, "plain")
    device = pair.ours.device
    limits = decode_speed.limits(device, pair.ours.dtype)
    print(limits, flush=True)
    about: Figures = {
        "machine": machine.describe(device) | {"card": machine.card(device)},
        "limits": asdict(limits),
    }

    def keep() -> None:
        measured = [row for row in rows.found["rows"].values() if "way" in row]
        others = [{"row": n, **row} for n, row in rows.found["rows"].items() if "way" not in row]
        command.write_json(flags.json, about | {"rows": measured, "failed": others})

    rows = ReportRows(math.inf, keep, partial(memory.give_back, device))
    best = None
    for quant in flags.quant.split(","):
        if quant == "int8":
            quantize_decoder(pair.ours)
            pair = replace(pair, plain=pair.ours)
        task = decode_speed.task_of(pair.plain, flags.prompt, flags.tokens, flags.repeat, best)
        best = task.best
        full_size.every_way(rows, pair, task, limits, flags.pages, quant)
    if device.type == "cpu":
        print(_proposal(rows.found["rows"]))
    problems = part_runner.problems({"parts": {"kernels": rows.found}})
    print("\n".join(f"!! {line}" for line in problems) or "nothing is wrong")
    sys.exit(bool(problems))


def _parser() -> argparse.ArgumentParser:
    made = command.full_size_parser("kernels", __doc__)
    made.add_argument("--pages", type=command.counts, default=(1, 2, 4, 8), metavar="N,N,…",
                      help="pages in flight, as in 1,8,64")  # fmt: skip
    made.add_argument("--quant", default="none,int8", help="none first: int8 replaces weights")
    made.add_argument("--prompt", type=int, default=PROMPT, help="tokens of a page's prompt")
    made.add_argument("--tokens", type=int, default=32, help="decoded per repetition")
    return made


def _proposal(rows: dict[str, Figures]) -> str:
    """What the table of processor features should say, going by one page in the file's type."""
    features = torch.backends.cpu.get_cpu_capability()
    compiled, simple = (
        rows.get(f"{way}, 1 page", {}).get("tokens_per_s", 0) for way in ("compiled", "torch")
    )
    better = compiled > simple
    now = slot_decoder.COMPILED.get(features, False)
    verdict = "as it is" if better == now else f"not {now} as now"
    return f'slot_decoder.COMPILED["{features}"] should be {better}, {verdict}'


if __name__ == "__main__":
    main()
