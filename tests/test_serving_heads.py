"""Heads of requests that are too large, too slow, or never end; and those that are neither.

A real server on loopback with the protocol that `deepseek-ocr serve` uses, its bounds drawn close.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from deepseek_ocr.server.security.request_heads import BoundedHeads

SECONDS, BYTES = 1.0, 2000


class Narrow(BoundedHeads):
    seconds = SECONDS
    most_bytes = BYTES


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    """/early answers before it has the body, /slow takes longer than a head may; others tell how
    many bytes the body had."""
    size = 0
    if scope["path"] == "/slow":
        await asyncio.sleep(1.5 * SECONDS)
    while scope["path"] != "/early":
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            break
    body = b"%d" % size
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            answers, http=Narrow, ws="none", log_config=None, access_log=False, lifespan="off",
            timeout_keep_alive=30,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()
        server.should_exit = True
        thread.join()


@pytest.fixture
def client(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=30) as found:
        yield found


def request(path: str = "/", size: int = 100, more: bytes = b"") -> bytes:
    """A request whose head has `size` bytes."""
    begin = b"GET " + path.encode() + b" HTTP/1.1\r\nHost: x\r\n" + more + b"X-Long: "
    return begin.ljust(size - 4, b"a") + b"\r\n\r\n"


def answer(client: socket.socket) -> bytes:
    """The body of the next answer, which must be 200."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += client.recv(1)
    assert head.startswith(b"HTTP/1.1 200")
    size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return client.recv(size, socket.MSG_WAITALL)


def trickle(client: socket.socket, piece: bytes) -> bytes:
    """Send `piece` again and again until the server has enough; what it said last."""
    client.settimeout(SECONDS / 20)
    for _ in range(1000):
        try:
            client.sendall(piece)
            return client.recv(1000)
        except TimeoutError:
            pass
        except ConnectionError:
            return b""
    raise AssertionError("the server listens for ever")


def test_who_says_nothing_is_left(client: socket.socket) -> None:
    assert client.recv(1) == b""


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nX-Long: ", b""])
def test_a_head_that_never_ends_is_given_up(client: socket.socket, begin: bytes) -> None:
    client.sendall(begin)
    assert trickle(client, b"a" if begin else b"\r\n") == b""


def test_the_second_head_of_a_connection_has_no_more_time(client: socket.socket) -> None:
    client.sendall(request())
    assert answer(client) == b"0"
    client.sendall(b"GET /")
    assert trickle(client, b"a") == b""


def test_an_answer_and_the_pause_after_it_may_take_longer(client: socket.socket) -> None:
    client.sendall(request("/slow"))
    assert answer(client) == b"0"
    client.settimeout(1.5 * SECONDS)
    with pytest.raises(TimeoutError):
        client.recv(1)
    client.settimeout(30)
    client.sendall(request())
    assert answer(client) == b"0"


@pytest.mark.parametrize(
    "head",
    [
        request(size=BYTES + 1),
        request("/" + "a" * BYTES),
        request(more=b"X-Many: headers\r\n" * 200),
    ],
    ids=["a long header", "a long address", "many headers"],
)
def test_a_head_that_is_too_large_is_answered_431(client: socket.socket, head: bytes) -> None:
    client.sendall(head)
    said = b""
    while piece := client.recv(65536):
        said += piece
    begin, _, body = said.partition(b"\r\n\r\n")
    assert begin.startswith(b"HTTP/1.1 431 ")
    assert json.loads(body)["error"]["code"] == "head_too_large"


def test_heads_that_fit_may_follow_each_other(client: socket.socket) -> None:
    for _ in range(5):
        client.sendall(request(size=BYTES - 1))
        assert answer(client) == b"0"
    client.sendall(request(size=BYTES - 200) * 5)  # without waiting for an answer
    assert [answer(client) for _ in range(5)] == [b"0"] * 5


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_have_no_such_bounds(client: socket.socket, chunked: bool) -> None:
    size = 300_000
    how = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    body = b"x" * size
    if chunked:
        body = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
        body = body * (size // 0x1000) + b"%x\r\n" % (size % 0x1000)
        body += b"x" * (size % 0x1000) + b"\r\n0\r\n\r\n"
    client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\n" + how + b"\r\n\r\n" + body + request())
    assert [answer(client), answer(client)] == [b"%d" % size, b"0"]


@pytest.mark.parametrize("path", ["/", "/early"])
def test_headers_behind_a_body_are_no_way_around(client: socket.socket, path: str) -> None:
    client.sendall(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n".encode()
    )
    sent = 0
    try:
        while sent < 50_000_000:
            client.sendall(b"X-Trailer: of many\r\n" * 100)
            sent += 2000
    except ConnectionError:
        pass
    assert sent < 20_000_000


def test_a_body_that_nobody_waits_for_does_not_keep_the_connection(client: socket.socket) -> None:
    client.sendall(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
    assert answer(client) == b"0"
    assert trickle(client, b"x") == b""
