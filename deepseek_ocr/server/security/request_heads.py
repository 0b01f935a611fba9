"""The head of a request, bounded: how large it may be, and how long it may take to arrive.

A head comes before the key in it, so anybody may send one. No setting of uvicorn ends a connection
that sends nothing, or its head a byte at a time, and `h11_max_incomplete_event_size` lets through
what arrives at once. Hypercorn's `keep_alive_timeout` ends slow heads, but is also the pause that
clients may make between requests, and its bound on a head's size is that of h11.
"""

from __future__ import annotations

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deepseek_ocr.server.api_errors import ApiError


class BoundedHeads(HttpToolsProtocol):
    """uvicorn's protocol, which closes a connection whose request's head is too large (after an
    answer 431) or too slow.

    - `seconds`: from the connection, or the first byte after an answer, to the end of the next head
    - `most_bytes`: of a head, and of whatever else a request has that is no body
    """

    seconds = 20.0
    most_bytes = 2**16

    _size = 0
    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there; it has to say something."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, or was left."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, no more of it at once than a head may have."""
        if not self._is_answering:
            self._start_clock()
        while data and not self.transport.is_closing():
            room = self.most_bytes - self._size
            piece, data = data[:room], data[room:]
            self._size += len(piece)
            super().data_received(piece)  # sets the size back where a head ends, or a body goes on
            if self._size >= self.most_bytes:
                self._refuse()

    def on_headers_complete(self) -> None:
        """A head is whole."""
        self._size = 0
        self._stop_clock()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body, whose bounds are `middleware`'s."""
        self._size = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self._size = 0
        super().on_message_complete()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _start_clock(self) -> None:
        if self._clock is None:
            self._clock = self.loop.call_later(self.seconds, self.transport.close)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _refuse(self) -> None:
        if not self._is_answering:  # it would stand in the middle of another answer
            self.transport.write(_too_large(self.most_bytes))
        self.transport.close()


def _too_large(most_bytes: int) -> bytes:
    error = ApiError(
        431, f"The request's head is larger than {most_bytes // 1024} KiB; send fewer or shorter "
        "headers, and what is long in the body.", "head_too_large",
    )  # fmt: skip
    body = json.dumps(error.body()).encode()
    return (
        b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
    )
