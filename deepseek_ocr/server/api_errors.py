"""Errors as clients of OpenAI's API know them: a status, and
`{"error": {"message": …, "type": …, "param": …, "code": …}}`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from deepseek_ocr.errors import CancelledError, ImageTooLargeError, InputError, OcrError
from deepseek_ocr.server.observability import logs

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}

RETRY_AFTER = 2
"""Seconds after which a client that met a full queue may ask again."""

_HEADERS = {status: {"retry-after": str(RETRY_AFTER)} for status in (429, 503)}
_HEADERS[401] = {"www-authenticate": "Bearer"}


class ApiError(HTTPException):
    """An answer that is not the one that was hoped for.

    - `status_code`: of HTTP; `code`: one word for programs; `param`: the field that is to blame
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(status, message, _HEADERS.get(status))
        self.code = code
        self.param = param

    def __str__(self) -> str:
        return self.detail

    def body(self) -> dict[str, Any]:
        """The body of the answer, as JSON data."""
        other = "server_error" if self.status_code >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status_code, other)
        said = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": said}


class _FixedError(ApiError):
    """One that is always the same: `says` is its status, message and code."""

    says: tuple[int, str, str]

    def __init__(self) -> None:
        super().__init__(*self.says)


class QueueFullError(_FixedError):
    """More pages wait already than may wait."""

    says = 429, "The queue is full. Try again after the seconds in Retry-After.", "queue_full"


class ClosingError(_FixedError):
    """The server is shutting down."""

    says = 503, "The server is shutting down. Try again when it is back.", "shutting_down"


class EngineFailedError(ClosingError):
    """An engine reads no more pages, so the server ends and has to be started again."""

    says = (
        503, "The server can read no more pages and ends; its log says why. Try again when it is "
        "back.", "engine_failed",
    )  # fmt: skip


class NotReadyError(_FixedError):
    """The model is not loaded yet."""

    says = 503, "The model is still being loaded. Ask /ready when it is there.", "not_ready"


class HungUpError(_FixedError):
    """The client left before its answer was there; nobody sees this but the log."""

    says = 499, "The client closed the connection.", "hung_up"


_OURS = (
    (ImageTooLargeError, 413, "image_too_large"),
    (InputError, 400, "invalid_input"),
    (OcrError, 500, "engine_error"),
)
"""Errors of the engine and of documents, the first that fits."""


def api_error(error: BaseException) -> ApiError:
    """`error` as clients may see it: what they can mend is said, anything else is not shown."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):  # of the framework: no such path, no such method
        found = ApiError(error.status_code, str(error.detail))
        found.headers = error.headers
        return found
    if isinstance(error, RequestValidationError):  # the first field that is wrong is named
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        where = f"{param}: " if param else ""
        return ApiError(400, f"{where}{first['msg']}.", "invalid_request", param)
    if isinstance(error, CancelledError):  # only the end of the server takes a page from a client
        return ClosingError()
    for kind, status, code in _OURS:
        if isinstance(error, kind):
            return ApiError(status, str(error), code)
    advice = "Its log says what, under this answer's x-request-id."
    return ApiError(500, f"Something went wrong in the server. {advice}", "internal_error")


def json_answer(
    data: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """`data` as JSON in ASCII, which any text survives, halves of surrogate pairs too."""
    return Response(json.dumps(data), status, headers, media_type="application/json")


def json_response(error: ApiError) -> Response:
    """`error` as an answer."""
    return json_answer(error.body(), error.status_code, error.headers)


async def _answer(request: Request, error: Exception) -> Response:
    found = api_error(error)
    if found.status_code == 500 and error is not found:  # the engine's own, and nobody's fault
        request_id = request.scope.get("deepseek_ocr.request_id")
        logs.failure("request failed", error, request_id=request_id)
    return json_response(found)


HANDLERS: dict[Any, Any] = dict.fromkeys((OcrError, HTTPException, RequestValidationError), _answer)
"""What has an application answer every error in OpenAI's shape."""
