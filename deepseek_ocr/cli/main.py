"""The program `deepseek-ocr`: chooses the sub-command, and says what went wrong."""

from __future__ import annotations

import difflib
import io
import os
import signal
import sys
from collections.abc import Sequence

from deepseek_ocr.cli.commands import COMMANDS, build_parser
from deepseek_ocr.cli.terminal import (
    COULD_NOT_START,
    INTERRUPTED,
    StdoutError,
    complain,
    stdout_failed,
)
from deepseek_ocr.errors import OcrError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; the exit status is in its help.

    `arguments` are those of the process if None. Leaves by `SystemExit` with status 2 if they are
    wrong, and with 0 for `--help` and `--version`.
    """
    status = _run(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        # All is written. Python still waits for threads to end; a second Ctrl-C does not.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return status


def _run(words: Sequence[str]) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")
    name = next((word for word in words if not word.startswith("-")), "")
    parser = build_parser([name])
    if name and name not in COMMANDS:
        parser.error(_unknown(name))
    flags, unknown = parser.parse_known_args(words)
    if unknown:
        command = f"deepseek-ocr {name}".rstrip()
        parser.error(f"unrecognized arguments: {' '.join(unknown)}; see: {command} --help")
    if not name:
        parser.print_help(sys.stderr)
        return COULD_NOT_START
    try:
        status: int = flags.run(flags)
        return status
    except StdoutError as error:
        return stdout_failed(error)
    except ModuleNotFoundError as error:
        complain(_missing(name, error))
    except OcrError as error:
        complain(str(error))
    except (ImportError, OSError, RuntimeError) as error:
        from deepseek_ocr.devices import ascend

        if (advice := ascend.advice(error)) is None:
            raise
        complain(advice)
    except KeyboardInterrupt:
        return INTERRUPTED
    return COULD_NOT_START


def _unknown(name: str) -> str:
    """What to say of a sub-command that does not exist."""
    if os.path.exists(name):
        return f"{name} is not a command; to read it: deepseek-ocr read {name}"
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}."
    return f"unknown command {name!r}; {hint}"


def _missing(name: str, error: ModuleNotFoundError) -> str:
    """What to say of a package that the sub-command `name` needs. Raises `error` again if it is
    one of this program's own modules."""
    package = (error.name or "").partition(".")[0].replace("PIL", "pillow")
    if package in ("", "deepseek_ocr"):
        raise error
    if not (extra := COMMANDS[name].extra):
        return f"{name} needs {package}, which is not installed: pip install {package}"
    advice = f"install that from where the package came, as in: pip install '.[{extra}]'"
    return f"{name} needs cog-deepseek-ocr[{extra}] ({package} is not installed); {advice}"
