"""The sub-commands of `deepseek-ocr`, and the parser that knows them."""

from __future__ import annotations

import argparse
from collections.abc import Container
from dataclasses import dataclass
from importlib import import_module

from deepseek_ocr import __version__
from deepseek_ocr.cli.flags import CommandParser


@dataclass(frozen=True)
class Command:
    """A sub-command: its module in this package, its line in the help, and the extra of the
    distribution that it needs, if any.

    The module has `DESCRIPTION` and maybe `EPILOG` of its help, `add_flags`, and `run`, which
    returns the exit status, unless actions of its own have one each.
    """

    module: str
    help: str
    extra: str = ""


COMMANDS = {
    "read": Command("read", "read pictures and documents: print the text, or write files"),
    "serve": Command("serve", "answer over HTTP, with the API of OpenAI and a web page", "serve"),
    "weights": Command("weights", "list, fetch, verify and adopt checkpoints"),
    "devices": Command("list_devices", "list the devices that are here, and what fits on them"),
    "doctor": Command("doctor", "check the installation, read a small page, say what to fix"),
    "config": Command("config", "show the settings that apply, or write a file with the defaults"),
    "train": Command("train", "fine-tune a checkpoint on annotated pages", "train"),
    "evaluate": Command("evaluate", "measure how well a model reads pages", "train"),
    "synth": Command("synth", "make pages to train and to test with", "train"),
    "split": Command("split", "divide annotated pages into training and test"),
    "verify-checkpoint": Command(
        "verify_checkpoint", "load the real checkpoint, read three pages, write a report"
    ),
    "completion": Command("completion", "print the completions of a shell"),
}
"""Every sub-command by its name, in the order of the help."""

_DESCRIPTION = "Read pages with DeepSeek-OCR on your own machine."

_EPILOG = """\
examples:
  deepseek-ocr read page.jpg                       print the text of a page
  deepseek-ocr read scans/ -o out --format md,html write documents into a folder
  deepseek-ocr read page.png --model pocket        try it with the bundled model, no download
  deepseek-ocr weights fetch deepseek-ocr          download the real one (6.7 GB)
  deepseek-ocr COMMAND --help                      what a command takes
"""


def build_parser(wanted: Container[str]) -> argparse.ArgumentParser:
    """The parser of the program. Only the modules of the sub-commands `wanted` are imported; the
    others can be named and take nothing."""
    usage = "deepseek-ocr COMMAND [options]"
    parser = CommandParser(
        prog="deepseek-ocr", usage=usage, description=_DESCRIPTION, epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"deepseek-ocr {__version__}")
    commands = parser.add_subparsers(title="commands", prog="deepseek-ocr", metavar="COMMAND")
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.help)
        if name in wanted:
            module = import_module(f"deepseek_ocr.cli.{command.module}")
            one.description, one.epilog = module.DESCRIPTION, getattr(module, "EPILOG", None)
            one.set_defaults(run=getattr(module, "run", None))
            module.add_flags(one)
    return parser
