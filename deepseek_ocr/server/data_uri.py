"""Files in JSON: base64, by itself or in a data URI."""

from __future__ import annotations

import base64
import re

_HEAD = re.compile(r"data:[^,]{0,1000},", re.IGNORECASE)

_BASE64_HEAD = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


def is_base64_uri(text: str) -> bool:
    """Whether `text` begins as a data URI that says it is base64."""
    return _BASE64_HEAD.match(text) is not None


def decode_base64(text: str) -> bytes:
    """The bytes of `text`: base64, in a data URI or not; white space in it is left out. Raises
    `ValueError` for anything else."""
    head = _HEAD.match(text)
    data = text[head.end() :] if head else text
    # Without copies of every piece: a body of blanks would take many times its size.
    return base64.b64decode(data.encode("ascii").translate(None, b" \t\n\r\v\f"), validate=True)
