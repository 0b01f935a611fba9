"""Where the formulas of a text are."""

from __future__ import annotations

import re
from collections.abc import Iterator

from deepseek_ocr.markup.blocks import Formula

_DELIMITER = re.compile(
    r"(?P<none>\\\\|\n\n|</?(?:table|tr|td|th)\b)"
    r"|(?P<open>\\[\[(]|(?:\A|(?<=\n\n))\$\$)"
    r"|(?P<close>\\[\])]|\$\$(?=\n\n|\Z))",
    re.IGNORECASE,
)
_ENDING_SPACE = re.compile(r"(?<!\\)((?:\\\\)*)\\\Z")
"""Of a space that a backslash keeps; after it comes the end, so nothing is seen of it."""

_PARTNER = {"\\)": "\\(", "\\]": "\\[", "$$": "$$"}


def formulas_in(text: str) -> Iterator[tuple[int, int, Formula]]:
    """Start, end and content of each formula. None goes over a blank line or out of a cell."""
    opened: re.Match[str] | None = None
    for found in _DELIMITER.finditer(text):
        sign = found[0]
        if found["open"]:
            inside = opened is not None and sign == "\\(" and opened[0] != sign
            opened = opened if inside else found  # as in \[ … \text{if \(x\)} … \]
        elif found["close"]:
            if opened is not None and _PARTNER[sign] == opened[0]:
                source = _ENDING_SPACE.sub(r"\1", text[opened.end() : found.start()].strip())
                if source and (sign != "$$" or "$" not in source):
                    yield opened.start(), found.end(), Formula(source, sign != "\\)")
                opened = None
        elif sign != "\\\\":
            opened = None
