"""The flags of `ocr.py` and what its help says of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from deepseek_ocr import __version__, configuration, presets
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.formats import FORMATS
from deepseek_ocr.kernels import choice
from deepseek_ocr.settings import DecodeSettings, ExistingText, FormulaDelimiters, RenderSettings
from deepseek_ocr.weights import registry

PRINTED = ("txt", "md", "json")
"""Formats that can go to standard output."""

LIST_DEVICES = ""
"""What `--devices` is without names."""

_DESCRIPTION = """\
Read pictures of pages, PDFs, TIFFs, zips of pictures and folders of them with DeepSeek-OCR: print
the text as it is decoded, or with -o write documents into a folder. Without a path, at a terminal,
it asks for one after the other.
"""

_EPILOG = """\
examples:
  python ocr.py page.jpg                              Markdown with boxes, as the model writes it
  python ocr.py --format md page.jpg > page.md        the same, cleaned
  python ocr.py --task ocr --size base *.png          plain text of several pages, one model load
  python ocr.py --task locate --reference "the total" receipt.jpg
  python ocr.py --model pocket examples/invoice.png   the bundled model, no download
  curl -s https://example.org/scan.jpg | python ocr.py -
  python ocr.py --pages 1-3,-1 book.pdf --stdout | less
  python ocr.py scans/ 'more/**/*.pdf' -o out --format md,html,searchable-pdf
                                                      run it again to go on where it was stopped

The bundled model "pocket" is a toy for trying the whole path without the 6.7 GB checkpoint: it
reads a few large, clean, printed English words with --task ocr --size tiny (its defaults) and
nothing else. Real pages need the model "deepseek-ocr"; see checkpoints/README.md.

A zip is one document whose pages are its pictures. A name that begins with a dash needs ./ or --
in front.

exit status: 0 all pages read, 1 some failed (the others were read), 2 could not start,
130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; `arguments.py` makes values of what it gives."""
    parser = argparse.ArgumentParser(
        prog="ocr.py",
        usage="python ocr.py [options] PATH [PATH ...] [-o FOLDER]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="PATH",
        help="picture, TIFF, PDF, zip of pictures, folder, or pattern; - is standard input",
    )
    parser.add_argument("--version", action="version", version=f"deepseek-ocr {__version__}")
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="printed: txt (the default: what the model writes, at once), md (cleaned Markdown) or "
        "json (pages with regions, boxes in 0-999 and pixels, confidence, counts, timings); "
        f"with -o any of {','.join(FORMATS)}, with commas between (default: md)",
    )
    _add_documents(parser)
    _add_output(parser)
    _add_what(parser)
    _add_where(parser)
    _add_how(parser)
    return parser


def _add_documents(parser: argparse.ArgumentParser) -> None:
    base = RenderSettings()
    group = parser.add_argument_group("documents")
    group.add_argument(
        "--pages",
        metavar="1-3,7,-1",
        help="which pages of each document: from 1, negative ones from the end, 5- is the rest "
        "(write --pages=-3--1 where it begins with a dash)",
    )
    group.add_argument(
        "--dpi", type=int, default=base.dpi, metavar="N",
        help="resolution of PDF pages; lowered for a page that would have more than "
        f"{base.max_pixels // 10**6} million pixels (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--rotate", choices=("auto", "0", "90", "180", "270"), default="auto",
        help="turn pages as their PDF and EXIF flags say (auto), or so many degrees clockwise in "
        "place of the flags (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--password", metavar="TEXT", help="of encrypted PDFs and zips")
    group.add_argument(
        "--timeout", type=float, default=0.0, metavar="S",
        help="longest time for a page in seconds; what was read by then is kept (default: no end)",
    )  # fmt: skip
    group.add_argument(
        "--stdout", action="store_true", help="print page after page; the same as no -o"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("writing documents into a folder")
    group.add_argument(
        "-o", "--output", type=Path, metavar="FOLDER",
        help="write FOLDER/NAME/ for every document and FOLDER/manifest.jsonl; run again to go on: "
        "pages that are done are not read again",
    )  # fmt: skip
    group.add_argument(
        "--overwrite", action="store_true", default=None, help="read everything anew"
    )
    group.add_argument(
        "--retries", type=int, metavar="N",
        help="how often a page that loops, is cut or comes out empty is tried again (default: "
        f"{len(presets.RETRIES)}: {', '.join(retry.name for retry in presets.RETRIES)})",
    )  # fmt: skip
    group.add_argument(
        "--join-tables", action=argparse.BooleanOptionalAction, default=None,
        help="join tables that go on over a page break (default: yes)",
    )  # fmt: skip
    group.add_argument(
        "--existing-text", choices=get_args(ExistingText), default=None,
        help="pages that have text of their own, in searchable PDFs: skip (it stays, nothing is "
        "added), replace (what was read takes the place of an invisible layer; a page of visible "
        "text becomes a picture at --dpi), both (default: skip)",
    )  # fmt: skip
    group.add_argument(
        "--formulas", choices=get_args(FormulaDelimiters), default=None,
        help="what stands around formulas in Markdown: dollars ($x$, $$x$$), which most viewers "
        "show, or brackets (\\(x\\), \\[x\\]), as the model writes them (default: dollars)",
    )  # fmt: skip
    group.add_argument(
        "--shard", metavar="I/N", help="read the I-th of N parts of the inputs, on N machines"
    )
    group.add_argument(
        "--devices", metavar="A,B", nargs="?", const=LIST_DEVICES,
        help="read on several devices at once: cuda:0,cuda:1; without names, at the end of the "
        "command: list the devices that are here, what would be chosen and why, and end",
    )  # fmt: skip


def _add_what(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to read and how closely")
    task_list = "; ".join(f"{task.short}: {task.purpose}" for task in presets.TASKS.values())
    group.add_argument(
        "--task",
        type=_named(presets.task_name),
        help=f"{task_list} (default: markdown; pocket: ocr)",
    )
    group.add_argument("--reference", metavar="TEXT", help="what --task locate is to find")
    group.add_argument(
        "--prompt", metavar="TEXT", help="a prompt of your own instead of --task; <image> in front"
    )
    group.add_argument(
        "--size",
        type=_named(presets.resolution_name),
        help=f"preset: {', '.join(presets.RESOLUTION_SHORT_NAMES)} (default: gundam; pocket: tiny)",
    )
    group.add_argument(
        "--base-size", type=int, metavar="PX", help="side of the global view beside tiles"
    )
    group.add_argument(
        "--image-size", type=int, metavar="PX", help="side of a tile, or of the one view"
    )
    group.add_argument(
        "--crop", action=argparse.BooleanOptionalAction, help="cut large pages into tiles too"
    )


def _add_where(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which model and where (also by DEEPSEEK_OCR_MODEL, …)")
    names = ", ".join(registry.CHECKPOINTS)
    group.add_argument("--model", metavar="NAME|FOLDER", help=f"{names}, or a checkpoint folder")
    group.add_argument(
        "--adapter",
        type=Path,
        metavar="FOLDER",
        help="LoRA adapter of deepseek-ocr train to add to it",
    )
    group.add_argument("--checkpoints", metavar="FOLDER", help="where named models are kept")
    group.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps, npu (default: auto)")
    group.add_argument(
        "--vision-device", metavar="DEVICE",
        help="where the encoders run, for small cards: cpu, cuda:1 … (default: same as --device)",
    )  # fmt: skip
    group.add_argument("--dtype", help="auto, bfloat16, float16, float32 (default: auto)")
    add_speed(group)
    group.add_argument(
        "--doctor", action="store_true",
        help="check the whole installation, read a small page, say what to fix, and end",
    )  # fmt: skip
    add_config(group)


def add_config(group: argparse._ArgumentGroup) -> None:
    """The flags of the file with settings, which `ocr.py` and `serve.py` share."""
    group.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="TOML file with model, device, … (default: "
        + str(configuration.default_path()).replace("%", "%%")
        + ")",
    )
    group.add_argument(
        "--print-config", action="store_true", help="print the settings that hold, as TOML, and end"
    )
    group.add_argument(
        "--init-config", action="store_true", help="write such a file with all defaults, and end"
    )


def add_speed(group: argparse._ArgumentGroup) -> None:
    """The flags that change how fast pages are read."""
    group.add_argument(
        "--quant", metavar="NAME",
        help=f"how the decoder's weights are held: {', '.join(choice.QUANTS)} (default: none)",
    )  # fmt: skip
    group.add_argument(
        "--kernels", metavar="A,B",
        help=f"fast paths: auto (all), plain (none), {', '.join(choice.NAMES)}; - before one "
        "leaves it out, as in auto,-compiled (default: auto)",
    )  # fmt: skip
    group.add_argument(
        "--slots", metavar="N",
        help="how many pages are read at once, or auto, by free memory (default: auto)",
    )  # fmt: skip


def _add_how(parser: argparse.ArgumentParser) -> None:
    base = DecodeSettings()
    group = parser.add_argument_group("decoding (greedy unless --temperature is given)")
    for flag, kind, text in (
        ("max-new-tokens", int, "longest answer in tokens"),
        ("temperature", float, "0 always takes the likeliest token"),
        ("top-p", float, "sample from the likeliest tokens that make up this share"),
        ("top-k", int, "sample from this many likeliest tokens; 0 is off"),
        ("seed", int, "of the sampling"),
        ("repetition-penalty", float, "above 1 discourages tokens already written"),
        ("no-repeat-ngram-size", int, "forbid sequences of this many tokens to return; 0 is off"),
        ("no-repeat-window", int, "how many tokens back that looks; 0 is everything"),
    ):
        default = getattr(base, flag.replace("-", "_"))
        metavar = "N" if kind is int else "X"
        group.add_argument(
            f"--{flag}", type=kind, default=default, metavar=metavar,
            help=f"{text} (default: %(default)s)",
        )  # fmt: skip
    group.add_argument(
        "--exempt-tokens",
        metavar="A,B",
        default=",".join(base.exempt_tokens),
        help="tokens that guard never forbids (default: those of tables)",
    )
    group.add_argument(
        "--exempt-ngrams",
        action=argparse.BooleanOptionalAction,
        default=base.exempt_ngrams,
        help="nor does a sequence with one of them forbid anything (default: yes)",
    )
    group.add_argument(
        "--stop-on-loop",
        action=argparse.BooleanOptionalAction,
        default=base.stop_on_loop,
        help="end a page whose text goes in circles (default: yes)",
    )


def _named(find: Callable[[str], str]) -> Callable[[str], str]:
    """An argparse type that turns `SettingsError` into argparse's own complaint."""

    def convert(text: str) -> str:
        try:
            return find(text)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
