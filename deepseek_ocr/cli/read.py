"""`deepseek-ocr read`: load the model once, then print pages, write documents, or ask for paths."""

from __future__ import annotations

import argparse
import signal
import threading
from typing import TYPE_CHECKING

from deepseek_ocr.cli.flags import Subparsers
from deepseek_ocr.cli.read_flags import add_read_parser

if TYPE_CHECKING:
    from deepseek_ocr.cli.read_options import OutputOptions, ReadOptions


def add_parser(commands: Subparsers) -> None:
    """Add the sub-command."""
    add_read_parser(commands).set_defaults(run=run)


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
    from deepseek_ocr.cli.document_run import prepared, write_documents

    with prepared(options, output) as ready:
        engines = load_engines(options)
        _end_on_interruption(False)
        return write_documents(engines, options, output, ready)


def _end_on_interruption(at_once: bool) -> None:
    """Let Ctrl-C end the program `at_once`, or raise `KeyboardInterrupt`."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL if at_once else signal.default_int_handler)
