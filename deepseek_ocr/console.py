"""What programs say to a person: messages on standard error, and text that is safe to print."""

from __future__ import annotations

import re
import sys

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that could steer a terminal; tabs and line ends are none of them."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_ADDRESS = re.compile(r"https?://[^\s'\"]+")
"""Up to its end, the query included: a pattern that sought the query would take time with the
square of a text of many addresses."""

_READ = 20
"""Times the characters to be printed that `one_line` looks at: white space and queries go."""


def complain(text: str, program: str = "") -> None:
    """Write the message `text` to standard error, after the name of `program` if one is given."""
    if sys.stderr is not None:
        sys.stderr.write(f"{program}: {harmless(text)}\n" if program else f"{harmless(text)}\n")
        sys.stderr.flush()


def tell(text: str, program: str = "") -> None:
    """The same, but only if standard error is a terminal: progress that no log needs."""
    if sys.stderr is not None and sys.stderr.isatty():
        complain(text, program)


def harmless(text: str) -> str:
    """`text` without characters that steer a terminal, and such that it can be printed at all."""
    return _CONTROL.sub("\ufffd", text).encode("utf-8", "backslashreplace").decode()


def one_line(text: object, most: int = 300) -> str:
    """`text` from elsewhere as one line of at most `most` characters that is safe to print.

    Control characters and line ends become blanks; addresses lose their queries, which may be
    signatures. Only the first `_READ` times `most` characters are looked at, so that a text of any
    length takes little time.
    """
    whole = str(text).strip()
    head = whole[: _READ * most]
    line = _ADDRESS.sub(_without_query, " ".join(_UNPRINTABLE.sub(" ", head).split()))
    if len(line) <= most and len(head) == len(whole):
        return line
    return f"{line[: most - 1]}…"


def _without_query(address: re.Match[str]) -> str:
    before, _, query = address[0].partition("?")
    return f"{before}?…" if query else address[0]


def readable(size: float) -> str:
    """`size` in bytes as people write it: 6.7 GB."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
