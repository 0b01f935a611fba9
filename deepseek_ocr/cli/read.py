"""`deepseek-ocr read`: load the model once, then print pages, write documents, or ask for paths.

Its flags are here too: common ones first, rare ones under headings of their own.
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from deepseek_ocr import presets
from deepseek_ocr.cli.flags import add_config, add_model, add_placement, add_speed, named
from deepseek_ocr.formats import FORMATS
from deepseek_ocr.settings import DecodeSettings, ExistingText, FormulaDelimiters, RenderSettings

if TYPE_CHECKING:
    from deepseek_ocr.cli.read_options import OutputOptions, ReadOptions
    from deepseek_ocr.engine.ocr_engine import OcrEngine

DESCRIPTION = """\
Read pictures, PDFs, TIFFs, zips of pictures and folders of them: print the text as it is decoded,
or write documents into a folder with -o. Without a path, at a terminal, it asks for one after the
other. A zip is one document whose pages are its pictures.
"""

EPILOG = """\
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


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sub-command."""
    parser.usage = "deepseek-ocr read [options] PATH [PATH ...] [-o FOLDER]"
    text = "picture, TIFF, PDF, zip, folder, or pattern; - is standard input"
    parser.add_argument("inputs", nargs="*", metavar="PATH", help=text)
    _add_common(parser)
    _add_documents(parser.add_argument_group("documents"))
    _add_output(parser.add_argument_group("documents in a folder (with -o)"))
    add = parser.add_argument_group("how pages are cut, instead of --size").add_argument
    add("--base-size", type=int, metavar="PX", help="side of the global view beside tiles")
    add("--image-size", type=int, metavar="PX", help="side of a tile, or of the one view")
    text = "cut large pages into tiles too"
    add("--crop", action=argparse.BooleanOptionalAction, help=text)
    for title, meanings in _DECODING.items():
        _add_decoding(parser.add_argument_group(title), meanings)
    advanced = parser.add_argument_group("advanced (also by DEEPSEEK_OCR_DTYPE, …)")
    text = "LoRA adapter of deepseek-ocr train"
    advanced.add_argument("--adapter", type=Path, metavar="FOLDER", help=text)
    for add_some in (add_placement, add_speed, add_config):
        add_some(advanced)


def run(flags: argparse.Namespace) -> int:
    """Read what `flags` ask for; the exit status is in the help. Raises `OcrError` if nothing could
    be started."""
    from deepseek_ocr.cli.read_options import read_options

    _end_on_interruption(True)  # nothing is there to keep, and imports do not take one well
    try:
        options = read_options(flags)
        return _print(options) if options.output is None else _write(options, options.output)
    finally:
        _end_on_interruption(False)


def _print(options: ReadOptions) -> int:
    from deepseek_ocr.cli.engine_loading import load_engines

    (engine,) = load_engines(options)
    from deepseek_ocr.cli import interactive, printing

    _end_on_interruption(False)
    if not options.inputs:
        return interactive.ask(engine, options)
    return printing.print_all(engine, options)


def _write(options: ReadOptions, output: OutputOptions) -> int:
    from deepseek_ocr.cli.engine_loading import load_engines

    options.settings.checkpoint_folder()  # better to fail now than after listing
    from deepseek_ocr.cli.document_run import write_documents

    def load() -> list[OcrEngine]:
        engines = load_engines(options)
        _end_on_interruption(False)
        return engines

    return write_documents(options, output, load)


def _end_on_interruption(at_once: bool) -> None:
    """Let Ctrl-C end the program `at_once`, or raise `KeyboardInterrupt`."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL if at_once else signal.default_int_handler)


# --- flags --------------------------------------------------------------------------------------


def _add_common(parser: argparse.ArgumentParser) -> None:
    """What most people need: it stands first."""
    add = parser.add_argument
    add("-o", "--output", type=Path, metavar="FOLDER",
        help="write FOLDER/NAME/ for each document; the same command again goes on")  # fmt: skip
    add("--format", metavar="NAMES",
        help="printed: txt (default), md or json; with -o some of "
        f"{','.join(FORMATS)} (default: md)")  # fmt: skip
    add_model(parser)
    tasks = "; ".join(f"{name}: {task.purpose}" for name, task in presets.TASKS.items())
    add("--task", type=named(presets.task_title), help=f"{tasks} (default: markdown; pocket: ocr)")
    add("--reference", metavar="TEXT", help="what --task locate is to find")
    add("--prompt", metavar="TEXT", help="a prompt of your own instead of --task")
    sizes = ", ".join(presets.PRESETS)
    add("--size", type=named(presets.preset_title), help=f"{sizes} (gundam; pocket: tiny)")


def _add_documents(group: argparse._ArgumentGroup) -> None:
    add, base = group.add_argument, RenderSettings()
    add("--pages", metavar="1-3,7,-1",
        help="which pages; -1 is the last, 5- the fifth and later")  # fmt: skip
    add("--password", metavar="TEXT", help="of encrypted PDFs and zips")
    text = "resolution of PDF pages (default: %(default)s)"
    add("--dpi", type=int, default=base.dpi, metavar="N", help=text)
    add("--rotate", choices=("auto", "0", "90", "180", "270"), default="auto", metavar="TURN",
        help="0, 90, 180, 270 or auto, as flags say (default)")  # fmt: skip
    add("--timeout", type=float, default=0.0, metavar="S",
        help="seconds for a page; what was read is kept")  # fmt: skip
    add("--stdout", action="store_true", help="print page after page; the same as no -o")


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--overwrite", action="store_true", default=None, help="read everything again")
    tries = ", ".join(retry.name for retry in presets.RETRIES)
    add("--retries", type=int, metavar="N", help="more tries for a page that goes wrong, "
        f"0 to {len(presets.RETRIES)} (default): {tries}")  # fmt: skip
    add("--join-tables", action=argparse.BooleanOptionalAction, default=None,
        help="join tables over page breaks (default: yes)")  # fmt: skip
    add("--existing-text", choices=get_args(ExistingText), metavar="MODE",
        help="text that pages have, in searchable PDFs: "
        "skip (default), replace, both")  # fmt: skip
    text = "dollars (default: $x$) or brackets (\\(x\\))"
    add("--formulas", choices=get_args(FormulaDelimiters), metavar="STYLE", help=text)
    add("--shard", metavar="I/N", help="read part I of N, on N machines")
    add("--devices", metavar="A,B", help="read on several devices: cuda:0,cuda:1")


_DECODING = {
    "sampling (greedy unless --temperature is given)": {
        "max_new_tokens": "longest answer in tokens",
        "temperature": "0 takes the likeliest token",
        "top_p": "share of tokens to sample from",
        "top_k": "how many tokens to sample from; 0: all",
        "seed": "of the sampling",
    },
    "repetition guard": {
        "repetition_penalty": "above 1 avoids repetition",
        "no_repeat_ngram_size": "N tokens never come twice; 0: off",
        "no_repeat_window": "tokens it looks back; 0: all",
        "exempt_tokens": "tokens never forbidden (default: of tables)",
        "exempt_ngrams": "sequences with them neither (default: yes)",
        "stop_on_loop": "end a page that repeats itself (default: yes)",
    },
}
"""Fields of `DecodeSettings` by the headings under which their flags stand."""


def _add_decoding(group: argparse._ArgumentGroup, meanings: Mapping[str, str]) -> None:
    for name, text in meanings.items():
        value, options = getattr(DecodeSettings(), name), dict[str, Any](help=text)
        if isinstance(value, bool):
            options |= {"action": argparse.BooleanOptionalAction, "default": value}
        elif isinstance(value, tuple):
            options |= {"metavar": "A,B", "default": ",".join(value)}
        else:
            options |= {"type": type(value), "metavar": "N" if isinstance(value, int) else "X"}
            options |= {"default": value, "help": f"{text} (default: %(default)s)"}
        group.add_argument(f"--{name.replace('_', '-')}", **options)
