"""`deepseek-ocr synth`: make synthetic pages with exact annotations."""

from __future__ import annotations

import argparse
import os
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

from deepseek_ocr.cli.number_types import positive
from deepseek_ocr.cli.terminal import COULD_NOT_START, DONE, INTERRUPTED, complain, write_line
from deepseek_ocr.training.synthetic.recipes import CLEAN_LINES, DRAWN_KINDS, MIXED, Recipe

DESCRIPTION = """\
Make synthetic pages with exact annotations for every task: plain text,
regions with boxes, a line to locate, a chart's content."""

EPILOG = """\
Example: deepseek-ocr synth --output build/pages --pages 1000 --seed 1.
Exit status: 0 all pages were made, 2 it could not start or write, 130 interrupted."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sub-command."""
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the pages")
    add("--pages", type=positive, default=100, metavar="N", help="how many (default: 100)")
    add("--seed", type=int, default=0, help="same seed and fonts, same pages")
    kinds = ", ".join(MIXED.kinds)
    add("--kinds", nargs="+", choices=DRAWN_KINDS, help=f"default: {kinds}, in shares")
    add("--clean", action="store_true",
        help="only clean lines of English, nothing else by default")  # fmt: skip
    add("--size", type=_size, default=(512, 512), metavar="WxH", help="px")
    add("--font-sizes", type=positive, nargs=2, default=(24, 48), metavar=("MIN", "MAX"), help="px")
    add("--fonts", choices=("train", "held-out", "all"), default="train", help="default: train")
    text = "that draw at once (default: one for each core)"
    add("--processes", type=positive, default=os.cpu_count() or 1, metavar="N", help=text)


def run(flags: argparse.Namespace) -> int:
    """Make the pages that `flags` ask for; the exit status is in the help. Raises `OcrError`."""
    from deepseek_ocr.progress import track
    from deepseek_ocr.training.synthetic.synthetic_pages import write_pages

    numbers = range(1, flags.pages + 1)
    try:
        flags.output.mkdir(parents=True, exist_ok=True)
        made = write_pages(flags.output, _recipe(flags), numbers, flags.seed, flags.processes)
        for _ in track(made, flags.pages, "pages"):
            pass
        others = len(list(flags.output.glob("*.png"))) - flags.pages
    except OSError as error:
        complain(str(error))
        return COULD_NOT_START
    except BrokenProcessPool:
        what = "a process that draws pages was ended from outside, mostly for want of memory"
        complain(f"{what}; choose fewer --processes.")
        return COULD_NOT_START
    except KeyboardInterrupt:
        what = f"interrupted; the pages made so far are in {flags.output}"
        complain(f"{what}, and the same command makes them all.")
        return INTERRUPTED
    if others > 0:
        what = f"{flags.output} holds {others} more pages from before"
        complain(f"{what}; choose an empty --output to have only these.")
    write_line(f"{flags.pages} pages with annotations are in {flags.output}.")
    return DONE


def _recipe(flags: argparse.Namespace) -> Recipe:
    base = CLEAN_LINES if flags.clean else MIXED
    kinds = {kind: base.kinds.get(kind, 1.0) for kind in flags.kinds} if flags.kinds else base.kinds
    smallest, largest = flags.font_sizes
    sizes = {"size": flags.size, "smallest": smallest, "largest": largest}
    return replace(base, kinds=kinds, font_set=flags.fonts, **sizes)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not all(side.isdecimal() and 64 <= int(side) <= 4096 for side in (width, height)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 512x640 (64 to 4096 px a side)")
    return int(width), int(height)
