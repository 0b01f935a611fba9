"""What an NVIDIA card does with this project, in one report of six minutes at most.

    python -m benchmarks.gpu [--device cuda] [--json FILE] [--seconds 360]

The six minutes do not include writing 6.7 GB of random weights, once, nor making the environment of
`make gpu-report`.

Is it right: the golden checkpoint in float32, bfloat16, float16 and int8 against the official
outputs, and what the bundled model reads, by every choice of kernels. How fast is it: a full-size
network of random weights in tokens and pages a second against the library's plain class, and as a
share of what the card was measured to do. What it takes: memory by preset and by pages at once.

Every part runs in a process of its own, so that one that fails does not end the others. The report
is a file that stays on this machine: attach it to a report of a problem, or to a comparison of
cards. Exit status: 0 nothing that ran is wrong, 1 a part failed or something is wrong, 2 it could
not start.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import decode_speed, full_size, golden, machine, part_runner, quality
from benchmarks.part_runner import Part, Rows, Settings
from deepseek_ocr.devices import selection
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.errors import OcrError

ROOT = Path(__file__).resolve().parent.parent

WELL, WRONG, COULD_NOT_START = 0, 1, 2


def about(settings: Settings, rows: Rows) -> None:
    """The part: what the device is, and what it can do at most."""
    device = selection.choose_device(settings.device)
    dtype = selection.choose_dtype(settings.dtype, device)
    rows.add("machine", lambda: machine.describe(device))
    rows.add("packages", lambda: dict(machine.packages()))
    card = machine.card(device)
    if card is None:
        rows.note(f"{device}: no NVIDIA card")
    else:
        rows.add("card", lambda: card)
    rows.add(decode_speed.LIMITS, lambda: asdict(decode_speed.limits(device, dtype)), needs=4)


def rehearse(settings: Settings, rows: Rows) -> None:
    """The part: what the bundled model's engine finds out at load."""
    engine = OcrEngine.load(quality.POCKET, settings.device, settings.dtype)
    rows.add("pocket", lambda: full_size.rehearsal(engine))
    engine.close()


PARTS = (
    Part("card", about, 0.15),
    Part("rehearsal", rehearse, 0.15),
    Part("golden", golden.check, 0.25),
    Part("quality", quality.check, 0.25),
    Part("checkpoint", full_size.write_checkpoint, own_seconds=900),
    Part("start", full_size.start, 0.2),
    Part("decoding", full_size.decode, 0.35),
    Part("pages", full_size.pages, 0.35),
    Part("stages", full_size.stages_of_a_page, 0.2),
    Part("memory", full_size.memory_use, 0.2),
)
"""All parts, by value: if time runs out, it is the last that are left out."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    flags = _parser().parse_args(arguments)
    try:
        device = selection.choose_device(flags.device)
        selection.choose_dtype(flags.dtype, device)
    except OcrError as error:
        sys.stderr.write(f"gpu: {error}\n")
        return COULD_NOT_START
    checkpoint = flags.checkpoint.resolve()
    settings = Settings(
        str(device), flags.dtype, checkpoint, flags.pages, flags.read, flags.tokens, flags.repeat
    )
    head = {"device": str(device), "dtype": flags.dtype, "budget_s": flags.seconds}
    chosen = [part for part in PARTS if part.name in flags.only]
    try:
        flags.json.parent.mkdir(parents=True, exist_ok=True)
        report = part_runner.run(chosen, settings, flags.seconds, flags.json, head)
    except OSError as error:
        sys.stderr.write(f"gpu: the report cannot be written: {error}\n")
        return COULD_NOT_START
    found, missing = part_runner.problems(report), part_runner.left_out(report)
    if missing:
        print(f"left out: {', '.join(missing)}")
    well = "nothing that ran is wrong" if missing else "nothing is wrong"
    print("\n".join(f"!! {line}" for line in found) or well)
    print(f"The report is {flags.json}")
    return WRONG if found else WELL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    names = [part.name for part in PARTS]
    # fmt: off
    parser.add_argument("--device", default="cuda",
                        help="Run on this device: cuda (default), cuda:1, auto or cpu.")
    parser.add_argument("--dtype", default="auto",
                        help="Hold the bundled and the full-size model in this type.")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "gpu-report.json",
                        metavar="FILE",
                        help="Write the report to this file (default: build/gpu-report.json).")
    parser.add_argument("--seconds", type=float, default=360, metavar="S",
                        help="Leave out what takes longer than this (default: 360).")
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER",
                        default=ROOT / "build" / "random-checkpoint",
                        help="Keep the random weights here (default: build/random-checkpoint).")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART",
                        help=f"Run only some of the parts: {', '.join(names)}.")
    parser.add_argument("--pages", type=_counts, default=(1, 8, 32, 64), metavar="N,N,…",
                        help="Decode so many pages at once (default: 1,8,32,64).")
    parser.add_argument("--read", type=int, default=64, metavar="N",
                        help="Read so many pages from picture to text (default: 64).")
    parser.add_argument("--tokens", type=int, default=200, metavar="N",
                        help="Read so many tokens of each of them (default: 200).")
    parser.add_argument("--repeat", type=int, default=3, metavar="N",
                        help="Time each stage so often and take the median (default: 3).")
    # fmt: on
    return parser


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


if __name__ == "__main__":
    part_runner.leave(main())
