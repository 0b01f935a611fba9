"""At a terminal without a path: load once, then read what is asked for, one path after another."""

from __future__ import annotations

import glob
import os
import shlex
from contextlib import suppress
from pathlib import Path

from deepseek_ocr.cli.example_pages import examples_folder
from deepseek_ocr.cli.printing import Printer, print_inputs
from deepseek_ocr.cli.read_options import ReadOptions
from deepseek_ocr.cli.terminal import DONE, SOME_FAILED, complain, write
from deepseek_ocr.engine.ocr_engine import OcrEngine

_PROMPT = "page> "

_HELP = """\
PATH         read a picture, PDF, TIFF, zip of pictures, or pattern
all FOLDER   read everything in a folder
test         read the example pages
help         this
quit         leave (or Ctrl-D); Ctrl-C ends the page that is being read
"""

_COMMANDS = ("all", "help", "quit", "test")


def ask(engine: OcrEngine, options: ReadOptions) -> int:
    """Read what is asked for until there is nothing more; the exit status. Raises `StdoutError`."""
    _complete_paths()
    printer = Printer(engine, options)
    write("Give the path of a page, or: help\n")
    while (line := _line()) is not None:
        wanted = understood(line)
        if wanted == "quit":
            break
        if isinstance(wanted, str):
            write(wanted)
        elif wanted:
            _read(printer, options, wanted)
    return SOME_FAILED if printer.failed else DONE


def understood(line: str) -> list[str] | str:
    """The paths to read, "quit", or text to answer with."""
    line = line.strip()
    command, _, rest = line.partition(" ")
    if not line:
        return []
    if line == "help":
        return _HELP
    if line in ("quit", "exit"):
        return "quit"
    if line == "test":
        return [str(path) for path in sorted(examples_folder().glob("*.png"))]
    if command == "all" and not os.path.exists(line):
        folder = _path(rest)
        return [folder] if Path(folder).is_dir() else f"{folder or 'all'} is no folder.\n"
    return [_path(line)]


def _path(text: str) -> str:
    """A path as it was typed or dropped into the window: quoted, with escapes, with a ~."""
    text = text.strip()
    if not os.path.exists(text):
        with suppress(ValueError):  # an odd quote is part of the name
            text = " ".join(shlex.split(text))
    return str(Path(text).expanduser()) if text else ""


def _line() -> str | None:
    """What was typed; None at the end."""
    while True:
        try:
            return input(_PROMPT)
        except EOFError:
            write("\n")
            return None
        except KeyboardInterrupt:
            write("\n")


def _read(printer: Printer, options: ReadOptions, paths: list[str]) -> None:
    try:
        print_inputs(printer, options, paths)
        printer.finish()
    except KeyboardInterrupt:
        complain("interrupted; give another path, or: quit")
    printer.pages.clear()


def _complete_paths() -> None:
    """Let Tab complete paths and commands, if the system can."""
    try:
        import readline
    except ImportError:  # Windows
        return
    readline.set_completer(complete)
    readline.set_completer_delims("\n")
    library = readline.__doc__ or ""
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in library else "tab: complete")


def complete(text: str, state: int) -> str | None:
    """The `state`-th way in which `text` may go on, for readline."""
    command, space, rest = text.partition(" ")
    ahead = command + space if space and command == "all" else ""
    typed = rest if ahead else text
    pattern = glob.escape(os.path.expanduser(typed)) + "*"
    paths = [path + (os.sep if os.path.isdir(path) else "") for path in sorted(glob.glob(pattern))]
    if ahead:
        paths = [path for path in paths if path.endswith(os.sep)]
    commands = [name for name in _COMMANDS if not ahead and text and name.startswith(text)]
    ways = [ahead + path for path in paths] + commands
    return ways[state] if state < len(ways) else None
