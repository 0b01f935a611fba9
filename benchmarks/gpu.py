"""What an NVIDIA card does with this project, in one report of six minutes at most.

    python -m benchmarks.gpu [--device cuda] [--json FILE] [--seconds 360]

Writing 6.7 GB of random weights, once, is not counted. What the parts say, and what they call
wrong, is in benchmarks/README.md; each runs in a process of its own, so that one that fails does
not end the others. The report stays on this machine. Exit status: 0 nothing that ran is wrong, 1 a
part failed or something is wrong, 2 it could not start.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from benchmarks import command, decode_speed, full_size, golden, machine, part_runner, quality
from benchmarks.part_rows import ReportRows
from benchmarks.part_runner import ReportPart, ReportSettings
from deepseek_ocr.devices import selection
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.errors import OcrError

WELL, WRONG, COULD_NOT_START = 0, 1, 2


def about(settings: ReportSettings, rows: ReportRows) -> None:
    """The part: what the device is, and what it can do at most."""
    device = selection.choose_device(settings.device)
    dtype = selection.choose_dtype(settings.dtype, device)
    rows.add("machine", lambda: machine.describe(device))
    rows.add("packages", partial(dict, machine.packages()))
    if card := machine.card(device):
        rows.add("card", partial(dict, card))
    else:
        rows.note(f"{device}: no NVIDIA card")
    rows.add(decode_speed.LIMITS, lambda: asdict(decode_speed.limits(device, dtype)), needs=4)


def rehearse(settings: ReportSettings, rows: ReportRows) -> None:
    """The part: what the bundled model's engine finds out at load."""
    engine = OcrEngine.load(command.POCKET, settings.device, settings.dtype)
    rows.add("pocket", lambda: full_size.rehearsal(engine))
    engine.close()


PARTS = (
    ReportPart("card", about, 0.15),
    ReportPart("rehearsal", rehearse, 0.15),
    ReportPart("golden", golden.check, 0.25),
    ReportPart("quality", quality.check, 0.25),
    ReportPart("checkpoint", full_size.write_checkpoint, own_seconds=900),
    ReportPart("start", full_size.start, 0.2),
    ReportPart("decoding", full_size.decode, 0.35),
    ReportPart("pages", full_size.pages, 0.35),
    ReportPart("stages", full_size.stages_of_a_page, 0.2),
    ReportPart("memory", full_size.memory_use, 0.2),
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
    settings = ReportSettings(
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
    made = command.full_size_parser("gpu", __doc__)
    made.set_defaults(device="cuda", json=command.ROOT / "build" / "gpu-report.json")
    names = [part.name for part in PARTS]
    # fmt: off
    made.add_argument("--seconds", type=float, default=360, metavar="S",
                      help="leave out what takes longer than this (default: 360)")
    made.add_argument("--only", nargs="+", choices=names, default=names, metavar="PART",
                      help=f"run only some of the parts: {', '.join(names)}")
    made.add_argument("--pages", type=command.counts, default=(1, 8, 32, 64), metavar="N,N,…",
                      help="decode so many pages at once (default: 1,8,32,64)")
    made.add_argument("--read", type=int, default=64, metavar="N",
                      help="read so many pages from picture to text (default: 64)")
    made.add_argument("--tokens", type=int, default=200, metavar="N",
                      help="read so many tokens of each of them (default: 200)")
    # fmt: on
    return made


if __name__ == "__main__":
    part_runner.leave(main())
