"""What a person sees: text on standard output, messages on standard error."""

from __future__ import annotations

import re
import sys

ALL_READ, SOME_FAILED, COULD_NOT_START, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses."""

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that could steer a terminal; a page's text must not."""


class OutputError(Exception):
    """Standard output takes nothing more."""


def harmless(text: str) -> str:
    """`text` without characters that steer a terminal, and such that it can be printed at all."""
    return _CONTROL.sub("\ufffd", text).encode("utf-8", "backslashreplace").decode()


def write(text: str) -> None:
    """Print at once; a terminal gets no control characters out of a page.

    Raises `OutputError`.
    """
    if sys.stdout is None:
        raise OutputError("it is closed")
    if sys.stdout.isatty():
        text = harmless(text)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise OutputError(error.strerror) from error


def output_is_gone(error: OutputError) -> int:
    """Say so, unless whoever read our output has just seen enough (`| head`); the status."""
    if not isinstance(error.__cause__, BrokenPipeError):
        complain(f"standard output cannot be written: {error}.")
    sys.stdout = None  # nothing is left to flush to
    return SOME_FAILED


def tell(text: str) -> None:
    """Progress for a person; silent when nobody watches."""
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(f"ocr.py: {harmless(text)}\n")


def complain(text: str) -> None:
    """A message on standard error."""
    if sys.stderr is not None:
        sys.stderr.write(f"ocr.py: {harmless(text)}\n")
        sys.stderr.flush()
