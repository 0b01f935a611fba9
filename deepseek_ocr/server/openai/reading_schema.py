"""The JSON Schema of readings, as this server gives it and recognises it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from deepseek_ocr import formats

_PATH = Path(formats.__file__).with_name("document.schema.json")
_ANNOTATIONS = {"$id", "$schema", "title", "description"}


@cache
def document_schema() -> dict[str, Any]:
    """The published schema of a document that was read."""
    schema: dict[str, Any] = json.loads(_PATH.read_text(encoding="utf-8"))
    return schema


def is_ours(schema: object) -> bool:
    """True where `schema` says the same as the published one, whatever it is called."""
    try:
        return _bare(schema) == _bare(document_schema())
    except RecursionError:  # ours is not that deep
        return False


def _bare(schema: object) -> object:
    """`schema` without what only people read."""
    if isinstance(schema, list):
        return [_bare(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: _bare(part)
        for name, part in schema.items()
        if name not in _ANNOTATIONS or not isinstance(part, str)
    }
