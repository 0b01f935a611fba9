"""The flags of `deepseek-ocr read` and its help: common ones first, rare ones under headings of
their own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from deepseek_ocr import presets
from deepseek_ocr.cli.flags import (
    Subparsers,
    add_config,
    add_model,
    add_placement,
    add_speed,
    named,
)
from deepseek_ocr.formats import FORMATS
from deepseek_ocr.settings import DecodeSettings, ExistingText, FormulaDelimiters, RenderSettings

PRINTED = ("txt", "md", "json")
"""Formats that can go to standard output."""

_DESCRIPTION = """\
Read pictures, PDFs, TIFFs, zips of pictures and folders of them: print the text as it is decoded,
or write documents into a folder with -o. Without a path, at a terminal, it asks for one after the
other. A zip is one document whose pages are its pictures.
"""

_EPILOG = """\
examples:
  deepseek-ocr read page.jpg                          Markdown with boxes, as the model writes it
  deepseek-ocr read --format md page.jpg > page.md    the same, cleaned
  deepseek-ocr read --task locate --reference "the total" receipt.jpg
  curl -s https://example.org/scan.jpg | deepseek-ocr read -
  deepseek-ocr read scans/ 'more/**/*.pdf' -o out --format md,html,searchable-pdf

The bundled model "pocket" is a toy for trying the whole path: it reads a few large, clean, printed
English words. Real pages need the model "deepseek-ocr": see deepseek-ocr weights --help.

exit status: 0 all pages read, 1 some failed, 2 could not start, 130 interrupted
"""


def add_read_parser(commands: Subparsers) -> argparse.ArgumentParser:
    """Add the parser of `read`; `read_options` makes values of what it gives."""
    parser = commands.add_parser(
        "read",
        usage="deepseek-ocr read [options] PATH [PATH ...] [-o FOLDER]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "inputs", nargs="*", metavar="PATH",
        help="picture, TIFF, PDF, zip, folder, or pattern; - is standard input",
    )  # fmt: skip
    _add_common(parser)
    _add_documents(parser.add_argument_group("documents"))
    _add_output(parser.add_argument_group("documents in a folder (with -o)"))
    _add_cut(parser.add_argument_group("how pages are cut, instead of --size"))
    _add_decoding(parser)
    advanced = parser.add_argument_group("advanced (also by DEEPSEEK_OCR_DTYPE, …)")
    advanced.add_argument(
        "--adapter", type=Path, metavar="FOLDER", help="LoRA adapter of deepseek-ocr train"
    )
    add_placement(advanced)
    add_speed(advanced)
    add_config(advanced)
    return parser


def _add_common(parser: argparse.ArgumentParser) -> None:
    """What most people need: it stands first."""
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER",
        help="write FOLDER/NAME/ for each document and FOLDER/manifest.jsonl; the same command "
        "again goes on: pages that are done are not read again",
    )  # fmt: skip
    parser.add_argument(
        "--format", metavar="NAMES",
        help="printed: txt (default: as the model writes it), md (cleaned) or json; with -o some "
        f"of {','.join(FORMATS)} (default: md)",
    )  # fmt: skip
    add_model(parser)
    tasks = "; ".join(f"{name}: {task.purpose}" for name, task in presets.TASKS.items())
    parser.add_argument(
        "--task", type=named(presets.task_title),
        help=f"{tasks} (default: markdown; pocket: ocr)",
    )  # fmt: skip
    parser.add_argument("--reference", metavar="TEXT", help="what --task locate is to find")
    parser.add_argument(
        "--prompt", metavar="TEXT", help="a prompt of your own instead of --task; <image> in front"
    )
    parser.add_argument(
        "--size", type=named(presets.preset_title),
        help=f"{', '.join(presets.PRESETS)} (gundam; pocket: tiny)",
    )  # fmt: skip


def _add_documents(group: argparse._ArgumentGroup) -> None:
    base = RenderSettings()
    group.add_argument(
        "--pages", metavar="1-3,7,-1",
        help="which pages of each document: -1 is the last, 5- is from the fifth on "
        "(--pages=-3--1 if it begins with a dash)",
    )  # fmt: skip
    group.add_argument("--password", metavar="TEXT", help="of encrypted PDFs and zips")
    group.add_argument(
        "--dpi", type=int, default=base.dpi, metavar="N",
        help="resolution of PDF pages, lowered above "
        f"{base.max_pixels // 10**6} megapixels (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--rotate", choices=("auto", "0", "90", "180", "270"), default="auto", metavar="TURN",
        help="auto (default): as PDF and EXIF flags say; 0, 90, 180, 270: degrees",
    )  # fmt: skip
    group.add_argument(
        "--timeout", type=float, default=0.0, metavar="S",
        help="seconds a page may take; what was read by then is kept (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--stdout", action="store_true", help="print page after page; the same as no -o"
    )


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--overwrite", action="store_true", default=None, help="read everything again"
    )
    group.add_argument(
        "--retries", type=int, metavar="N",
        help="more tries for a page that loops, is cut or comes out empty: 0 to "
        f"{len(presets.RETRIES)} (default): {', '.join(retry.name for retry in presets.RETRIES)}",
    )  # fmt: skip
    group.add_argument(
        "--join-tables", action=argparse.BooleanOptionalAction, default=None,
        help="join tables that go on over a page break (default: yes)",
    )  # fmt: skip
    group.add_argument(
        "--existing-text", choices=get_args(ExistingText), default=None, metavar="MODE",
        help="text that pages of searchable PDFs have: skip (default: leave it), "
        "replace (a page of visible text becomes a picture at --dpi), both",
    )  # fmt: skip
    group.add_argument(
        "--formulas", choices=get_args(FormulaDelimiters), default=None, metavar="STYLE",
        help="in Markdown: dollars (default: $x$, $$x$$) or brackets (\\(x\\), \\[x\\])",
    )  # fmt: skip
    group.add_argument(
        "--shard", metavar="I/N", help="read the I-th of N parts of the inputs, on N machines"
    )
    group.add_argument(
        "--devices", metavar="A,B", help="read on several devices at once: cuda:0,cuda:1"
    )


def _add_cut(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--base-size", type=int, metavar="PX", help="side of the global view beside tiles"
    )
    group.add_argument(
        "--image-size", type=int, metavar="PX", help="side of a tile, or of the one view"
    )
    group.add_argument(
        "--crop", action=argparse.BooleanOptionalAction, help="cut large pages into tiles too"
    )


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    sampling = parser.add_argument_group("sampling (greedy unless --temperature is given)")
    _add_number(sampling, "max-new-tokens", int, "longest answer in tokens")
    _add_number(sampling, "temperature", float, "0 always takes the likeliest token")
    _add_number(sampling, "top-p", float, "sample from the likeliest tokens of this share")
    _add_number(sampling, "top-k", int, "sample from so many likeliest tokens; 0 is off")
    _add_number(sampling, "seed", int, "of the sampling")

    guard = parser.add_argument_group("repetition guard")
    _add_number(guard, "repetition-penalty", float, "above 1 discourages tokens already written")
    _add_number(
        guard, "no-repeat-ngram-size", int, "forbid sequences of so many tokens to return; 0 is off"
    )
    _add_number(guard, "no-repeat-window", int, "how many tokens back that looks; 0 is all")
    base = DecodeSettings()
    guard.add_argument(
        "--exempt-tokens", metavar="A,B", default=",".join(base.exempt_tokens),
        help="tokens that are never forbidden (default: those of tables)",
    )  # fmt: skip
    for flag, text in (
        ("exempt-ngrams", "also allow sequences that hold such a token (default: yes)"),
        ("stop-on-loop", "end a page whose text goes in circles (default: yes)"),
    ):
        default = getattr(base, flag.replace("-", "_"))
        guard.add_argument(
            f"--{flag}", action=argparse.BooleanOptionalAction, default=default, help=text
        )


def _add_number(group: argparse._ArgumentGroup, flag: str, kind: Any, text: str) -> None:
    """The flag of one field of `DecodeSettings`."""
    group.add_argument(
        f"--{flag}", type=kind, default=getattr(DecodeSettings(), flag.replace("-", "_")),
        metavar="N" if kind is int else "X", help=f"{text} (default: %(default)s)",
    )  # fmt: skip
