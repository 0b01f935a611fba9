"""What happens to every request before a route sees it, and to every answer after.

A request gets an id, must come from where it may, and may be so large and no larger; an answer gets
headers that keep browsers careful, and a line in the log. Errors that nobody expected end here.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from contextlib import closing
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deepseek_ocr.server import api_errors
from deepseek_ocr.server.api_errors import ApiError, ClosingError, QueueFullError
from deepseek_ocr.server.observability import logs
from deepseek_ocr.server.security.api_keys import identify
from deepseek_ocr.server.server_state import ServerState
from deepseek_ocr.server.startup import is_loopback

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OPEN = ("/", "/health", "/ready", "/openapi.json", "/document.schema.json", "/favicon.ico")
_OPEN_BELOW = "/page/"
"""What needs no key: nothing that reads, and nothing that tells what was read."""

_WHILE_CLOSING = ("/health", "/ready", "/metrics")

_SECURITY = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
"""On every answer that does not say otherwise itself (the page at / has a policy of its own)."""


class Guard:
    """Stands around everything that answers."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        try:
            headers = Headers(scope=scope)
            check_origin(headers, scope, self._state)
            scope["deepseek_ocr.client"] = self._client(scope, headers)
            if self._state.closing and scope["path"] not in _WHILE_CLOSING:
                raise self._state.failed or ClosingError()
            with closing(_Body(receive, headers, self._state, exchange)) as body:
                scope["deepseek_ocr.hold"] = body.hold
                await self._app(scope, body.receive, exchange.send)
        except asyncio.CancelledError:
            exchange.status = exchange.status or 499
            raise
        except ClientDisconnect:
            exchange.left = True
        except Exception as error:  # whatever it was, the client gets a sentence and no trace
            if not isinstance(error, ApiError):
                logs.failure("request failed", error, request_id=exchange.id)
            if not exchange.status:  # no answer has begun
                answer = api_errors.json_response(api_errors.api_error(error))
                await answer(scope, receive, exchange.send)
        finally:
            exchange.done(self._state)

    def _client(self, scope: Scope, headers: Headers) -> str:
        """Who asks. Raises `ApiError` 401."""
        address = scope["client"][0] if scope.get("client") else "unknown"
        asks_first = scope["method"] == "OPTIONS"  # browsers do, without the key; nothing is read
        if asks_first or scope["path"] in _OPEN or scope["path"].startswith(_OPEN_BELOW):
            return str(address)
        return identify(self._state.keys, headers.get("authorization", ""), address)


class _Exchange:
    """One request and its answer: what is logged and counted of them.

    - `status`: of the answer, 0 before there is one
    - `left`: true where the client did not stay to the end of its request or of the answer
    """

    def __init__(self, scope: Scope, send: Send) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        self.status = 0
        self.left = False
        self._scope = scope
        self._send = send
        self._began = time.perf_counter()
        scope["deepseek_ocr.request_id"] = self.id

    async def send(self, message: Message) -> None:
        """Pass the answer on; its head gets the headers that all answers have."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.id
            for name, value in _SECURITY.items():
                headers.setdefault(name, value)
        await self._send(message)

    def done(self, state: ServerState) -> None:
        """Count and log it."""
        route = getattr(self._scope.get("route"), "path", "unknown")
        seconds = time.perf_counter() - self._began
        if self.left or not self.status:
            self.status = 499  # as nginx has it: the client left before there was an answer
        state.metrics.request(route, self.status, seconds)
        logs.event(
            "request", request_id=self.id, method=self._scope["method"], route=route,
            status=self.status, seconds=round(seconds, 4),
            client=self._scope.get("deepseek_ocr.client"),
            **self._scope.get("deepseek_ocr.log", {}),
        )  # fmt: skip


class _Body:
    """A request's body, cut off where it is too large or too slow, or where all bodies together
    are too much; it counts for as long as the request lives."""

    def __init__(
        self, receive: Receive, headers: Headers, state: ServerState, exchange: _Exchange
    ) -> None:
        self._receive = receive
        self._state = state
        self._exchange = exchange
        self._most = state.server.max_body_mb * 2**20
        self._size = 0
        self._held = 0
        self._whole = False
        self._deadline = time.monotonic() + state.server.body_timeout
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared[:20]) > self._most:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next piece. Raises `ApiError` 408, 413 and 429."""
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.0, self._deadline - time.monotonic())):
                message = await self._receive()
        except TimeoutError as error:
            seconds = self._state.server.body_timeout
            reason = f"The request took longer than {seconds:g} s to arrive."
            raise ApiError(408, reason, "too_slow") from error
        if message["type"] == "http.disconnect":  # whatever is answered now, nobody gets it
            self._exchange.left = True
        size = len(message.get("body", b""))
        self._size += size
        self._whole = not message.get("more_body", False)
        if self._size > self._most:
            raise self._too_large()
        self.hold(size)
        return message

    def hold(self, size: int) -> None:
        """Count `size` bytes that the request keeps in memory, its body or what it had fetched.
        Raises `QueueFullError` where all requests together keep too much."""
        self._held += size
        self._state.held += size
        if self._state.held > self._state.server.max_held_mb * 2**20:
            raise QueueFullError

    def close(self) -> None:
        """The request is over."""
        self._state.held -= self._held

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"The request is larger than the {self._most // 2**20} MiB allowed; send fewer or "
            "smaller pictures.", "request_too_large",
        )  # fmt: skip


def check_origin(headers: Headers, scope: Scope, state: ServerState) -> None:
    """Keep web pages of other origins out, which a browser on this machine may have open.

    A request whose `Origin` is neither this server nor allowed is refused, and a server without
    keys answers only to the names of this machine, so that a name somebody else points at it
    (DNS rebinding) leads nowhere. Raises `ApiError` 403.
    """
    host = headers.get("host", "")
    origin = headers.get("origin")
    allowed = state.server.cors
    if origin and "*" not in allowed and origin not in allowed and _parts(origin).netloc != host:
        raise ApiError(
            403, "Web pages of other origins may not ask here; start the server with --cors ORIGIN "
            "to let one in.", "origin_not_allowed",
        )  # fmt: skip
    name = _parts(f"//{host}").hostname or ""
    if not state.keys and not state.server.no_auth and not is_loopback(name):
        raise ApiError(
            403, "This server has no key and answers to localhost alone; ask it by that name, or "
            "start it with --api-key.", "host_not_allowed",
        )  # fmt: skip


def _parts(address: str) -> SplitResult:
    """The parts of `address`; all are empty if it is none."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")
