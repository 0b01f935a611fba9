"""What a person sees of the command line: text on standard output, messages on standard error."""

from __future__ import annotations

import sys
from functools import partial

from deepseek_ocr import console
from deepseek_ocr.console import harmless

PROGRAM = "deepseek-ocr"

DONE, SOME_FAILED, COULD_NOT_START, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""


class StdoutError(Exception):
    """Standard output takes nothing more."""


def write(text: str) -> None:
    """Print at once; a terminal gets no control characters out of a page. Raises `StdoutError`."""
    if sys.stdout is None:
        raise StdoutError("it is closed")
    if sys.stdout.isatty():
        text = harmless(text)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise StdoutError(error.strerror) from error


def write_line(text: str) -> None:
    """`write` a line. Raises `StdoutError`."""
    write(f"{text}\n")


def stdout_failed(error: StdoutError) -> int:
    """Say so, unless the reader of our output has just seen enough (`| head`); the status."""
    if not isinstance(error.__cause__, BrokenPipeError):
        complain(f"standard output cannot be written: {error}.")
    sys.stdout = None  # nothing is left to flush to
    return SOME_FAILED


complain = partial(console.complain, program=PROGRAM)
"""Say something on standard error."""

tell = partial(console.tell, program=PROGRAM)
"""The same, but only if it is a terminal."""
