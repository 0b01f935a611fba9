"""Answers on their way to a client that may hang up: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from deepseek_ocr.server.api_errors import ApiError, HungUpError, api_error
from deepseek_ocr.server.observability import logs

Given = TypeVar("Given")


async def unless_hung_up(receive: Receive, work: Coroutine[Any, Any, Given]) -> Given:
    """What `work` gives; it is cancelled when the client hangs up. Raises `HungUpError` then. The
    request's body must have been read from `receive`."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise HungUpError
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def as_event(data: object, name: str | None = None) -> bytes:
    """`data` as a server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


class EventStream(Response):
    """Server-sent events; `on_error` makes the last of them where something goes wrong midway. What
    goes wrong before the first is there is answered with its proper status."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], on_error: Callable[[ApiError], bytes]
    ) -> None:
        self._events = events
        self._on_error = on_error
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(HungUpError):  # nobody is left to be told
            await unless_hung_up(receive, self._send_all(scope, send))

    async def _send_all(self, scope: Scope, send: Send) -> None:
        async with aclosing(self._events) as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await send({"type": "http.response.body", "body": first, "more_body": True})
            try:
                async for event in events:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            except Exception as error:  # the status is sent; what is left is an event
                if not isinstance(error, ApiError):
                    request_id = scope.get("deepseek_ocr.request_id")
                    logs.failure("stream failed", error, request_id=request_id)
                last = self._on_error(api_error(error))
                await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),  # asks proxies not to hold events back
]
