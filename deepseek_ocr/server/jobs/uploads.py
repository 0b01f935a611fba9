"""A document as it is handed in: a form with a file, or JSON with base64 → a file in a folder."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile

from deepseek_ocr.documents.inputs import safe_name
from deepseek_ocr.server.api_errors import ApiError
from deepseek_ocr.server.data_uri import decode_base64
from deepseek_ocr.server.jobs.document_options import KNOWN, as_fields

_TEXTS = {name: {"type": "string"} for name in ("filename", *KNOWN)}
_FILES = {
    "multipart/form-data": {"type": "string", "format": "binary"},
    "application/json": {"type": "string", "description": "base64, or a data URI with it"},
}
_SCHEMA = {"type": "object", "required": ["file"]}
_CONTENT = {
    kind: {"schema": {**_SCHEMA, "properties": {"file": file, **_TEXTS}}}
    for kind, file in _FILES.items()
}
OPENAPI: dict[str, Any] = {"requestBody": {"required": True, "content": _CONTENT}}
"""What the routes that take documents say of their bodies."""


@dataclass(frozen=True)
class Upload:
    """A document that was handed in.

    - `name`: safe as a file's name on any system, whatever the client called it
    - `fields`: what else was said, as text
    - `write`: puts the document into a file; for a thread
    """

    name: str
    fields: dict[str, str]
    write: Callable[[Path], object]


@asynccontextmanager
async def received(request: Request) -> AsyncIterator[Upload]:
    """The document in the body of `request`. Raises `ApiError` and `SettingsError`."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=len(KNOWN) + 2) as form:
            yield _from_form(dict(form.multi_items()))
    elif kind == "application/json":
        yield _from_json(await request.body())
    else:
        raise ApiError(
            415, "Send the document as the field file of a form (multipart/form-data), or as "
            "base64 in the field file of a JSON object.", "unsupported_media_type",
        )  # fmt: skip


def safe_file_name(name: str) -> str:
    """The last part of a path that a client names, safe as a file's name."""
    return safe_name(re.split(r"[/\\]", name)[-1])


def _from_form(form: dict[str, Any]) -> Upload:
    file = form.pop("file", None)
    if not isinstance(file, UploadFile):
        raise _missing()

    def write(path: Path) -> None:
        file.file.seek(0)
        with path.open("wb") as target:
            shutil.copyfileobj(file.file, target)

    name = form.pop("filename", None)
    name = name if isinstance(name, str) and name else file.filename
    return Upload(safe_file_name(name or ""), as_fields(form), write)


def _from_json(body: bytes) -> Upload:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "The body is not valid JSON.", "invalid_json") from error
    if not isinstance(data, dict):
        raise ApiError(400, "The body must be a JSON object.", "invalid_json")
    text, name = data.pop("file", None), data.pop("filename", "")
    if not isinstance(text, str):
        raise _missing()
    if not isinstance(name, str):
        raise ApiError(400, "filename must be text.", "invalid_input", "filename")
    try:
        content = decode_base64(text)
    except ValueError as error:
        message = "file must be base64 (or a data URI with base64)."
        raise ApiError(400, message, "invalid_base64", "file") from error
    return Upload(safe_file_name(name), as_fields(data), lambda path: path.write_bytes(content))


def _missing() -> ApiError:
    return ApiError(400, "There is no document: send it as the field file.", "no_file", "file")
