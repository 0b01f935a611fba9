"""The one gate to the network, attacked: addresses in disguise, names that change their answer,
redirects, and servers that send too much, too slowly, or for ever. Servers are real, on loopback;
where loopback must count as the open internet, 127.0.0.2 does and 127.0.0.1 does not."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from deepseek_ocr.configuration import ServerSettings, Settings
from deepseek_ocr.server.api_errors import ApiError
from deepseek_ocr.server.app import create_app
from deepseek_ocr.server.security.api_keys import Keys
from deepseek_ocr.server.security.url_fetcher import Address, Allowance, Fetcher, is_public, resolve
from deepseek_ocr.server.server_state import ServerState
from tests.conftest import need
from tests.serving_world import FRUIT, chat

GOOD, BAD = ipaddress.ip_address("127.0.0.2"), ipaddress.ip_address("127.0.0.1")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Site:
    """A web server: its port, and the heads of the requests it got."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def site(
    answer: Answer, address: Address = GOOD, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Site]:
    found = Site()
    tasks: set[asyncio.Task[None]] = set()
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        writers.append(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            found.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await answer(writer)
            await writer.drain()
        writer.close()
        with suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, str(address), 0, ssl=tls)
    found.port = server.sockets[0].getsockname()[1]
    try:
        yield found
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:  # what a client did not take would keep it open
            writer.transport.abort()
        await asyncio.sleep(0)


def plain(body: bytes, head: bytes = HEAD) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    return answer


def redirect(to: str) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n".encode())

    return answer


def names(*answers: Sequence[Address]) -> Callable[[str, int], Awaitable[Sequence[Address]]]:
    """A resolver whose answer changes each time it is asked."""
    left = list(answers)

    async def found(host: str, port: int) -> Sequence[Address]:
        return left.pop(0)

    return found


def fetcher(
    *answers: Sequence[Address], most_bytes: int = 100_000, seconds: float = 5.0
) -> Fetcher:
    return Fetcher(
        most_bytes,
        seconds,
        resolve=names(*answers) if answers else resolve,
        allowed=lambda address: address == GOOD,
    )


def nothing(_: int) -> None:
    """Nobody counts what is held."""


async def fetched(gate: Fetcher, url: str) -> bytes:
    """What the only fetch of a request gives."""
    return await gate.fetch(url, "image_url", gate.allowance(nothing))


async def refusal(gate: Fetcher, url: str, allowance: Allowance | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await gate.fetch(url, "image_url", allowance or gate.allowance(nothing))
    return caught.value


async def test_what_is_allowed_is_fetched() -> None:
    async with site(plain(b"picture")) as found:
        url = f"http://pictures.example:{found.port}/a%20b.png?x=1"
        assert await fetched(fetcher([GOOD]), url) == b"picture"
    request = found.requests[0].decode()
    assert request.startswith("GET /a%20b.png?x=1 HTTP/1.1\r\n")
    assert f"host: pictures.example:{found.port}\r\n" in request.lower()
    assert "accept-encoding: identity" in request.lower()


async def test_a_name_is_resolved_once_and_that_address_is_asked() -> None:
    """The second answer leads elsewhere; nobody ever asks for it."""
    async with site(plain(b"good")) as good:
        gate = fetcher([GOOD], [BAD])
        assert await fetched(gate, f"http://rebinding.example:{good.port}/") == b"good"
        async with site(plain(b"secret"), BAD) as bad:
            error = await refusal(gate, f"http://rebinding.example:{bad.port}/")
    assert (error.status_code, error.code) == (400, "url_refused")
    assert bad.requests == []


async def test_one_bad_address_among_good_ones_is_enough_to_refuse() -> None:
    async with site(plain(b"good")) as good:
        await refusal(fetcher([GOOD, BAD]), f"http://both.example:{good.port}/")
    assert good.requests == []


async def test_redirects_pass_the_same_gate() -> None:
    async with site(plain(b"secret"), BAD) as bad:
        for target in (f"http://127.0.0.1:{bad.port}/", f"//127.0.0.1:{bad.port}/", "file:///etc"):
            async with site(redirect(target)) as good:
                await refusal(fetcher(), f"http://127.0.0.2:{good.port}/")
                assert len(good.requests) == 1
    assert bad.requests == []


async def test_good_redirects_are_followed_but_not_for_ever() -> None:
    async with (
        site(plain(b"picture")) as last,
        site(redirect(f"http://127.0.0.2:{last.port}/x")) as first,
    ):
        assert await fetched(fetcher(), f"http://127.0.0.2:{first.port}/") == b"picture"
    async with site(redirect("/again")) as loop:
        error = await refusal(fetcher(), f"http://127.0.0.2:{loop.port}/")
    assert "redirects" in str(error)
    assert len(loop.requests) == 4


async def test_the_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site(plain(b"secret"), BAD) as proxy, site(plain(b"picture")) as good:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert await fetched(fetcher(), f"http://127.0.0.2:{good.port}/") == b"picture"
    assert proxy.requests == []


async def test_an_endless_body_is_cut_off() -> None:
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(HEAD + b"\r\n")
        while True:
            writer.write(b"x" * 10_000)
            await writer.drain()
            sent += 10_000

    async with site(endless) as found:
        error = await refusal(fetcher(), f"http://127.0.0.2:{found.port}/")
    assert error.status_code == 413
    assert sent < 10_000_000  # what buffers on the way hold, and no more


async def test_a_slow_trickle_is_given_up() -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + b"\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with site(slow) as found:
        error = await refusal(fetcher(seconds=0.5), f"http://127.0.0.2:{found.port}/")
    assert "longer than" in str(error)


async def test_a_slow_head_is_given_up() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    async with site(silent) as found:
        await refusal(fetcher(seconds=0.3), f"http://127.0.0.2:{found.port}/")


async def test_all_addresses_of_a_request_share_its_bytes() -> None:
    held: list[int] = []
    gate = fetcher(most_bytes=100_000)
    allowance = gate.allowance(held.append)
    async with site(plain(b"x" * 60_000)) as found:
        url = f"http://127.0.0.2:{found.port}/"
        assert len(await gate.fetch(url, "x", allowance)) == sum(held) == 60_000
        assert (await refusal(gate, url, allowance)).status_code == 413
    assert sum(held) <= 100_000


async def test_all_addresses_of_a_request_share_its_time() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    gate = fetcher(seconds=0.3)
    allowance = gate.allowance(nothing)
    async with site(silent) as slow, site(plain(b"picture")) as quick:
        await refusal(gate, f"http://127.0.0.2:{slow.port}/", allowance)
        error = await refusal(gate, f"http://127.0.0.2:{quick.port}/", allowance)
    assert "longer than" in str(error)
    assert quick.requests == []


async def test_what_is_fetched_counts_with_the_requests_in_memory() -> None:
    """Two pictures of 0.6 MiB, where 1 MiB may be held: the second is too much, and then nothing is
    held any more."""

    class Idle:
        slots, is_running = 1, True

    state = ServerState(
        Settings(), ServerSettings(max_held_mb=1), Keys(()), {"pocket": "pocket"}, dict,
        fetcher(most_bytes=2**24),
    )  # fmt: skip
    state.open_pools({"pocket": (Idle(),)})  # type: ignore[dict-item]
    padded = FRUIT.read_bytes().ljust(600 * 1024)
    transport = httpx.ASGITransport(create_app(state))
    async with (
        site(plain(padded)) as found,
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
    ):
        body = chat("ocr", *[f"http://127.0.0.2:{found.port}/"] * 2)
        answer = await client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert len(found.requests) == 2
    assert state.held == 0


async def test_names_that_nobody_answers_for_hold_nothing_else_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = threading.Event()

    def slow(*_: object, **__: object) -> list[object]:
        answered.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    async with asyncio.TaskGroup() as group:
        for _ in range(40):  # more than asyncio has threads for all that blocks
            group.create_task(resolve("slow.example", 80))
        await asyncio.sleep(0)
        try:
            assert await asyncio.wait_for(asyncio.to_thread(str, 1), 10) == "1"
        finally:
            answered.set()


async def test_compressed_bodies_are_never_inflated() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    head = HEAD + b"Content-Encoding: gzip\r\n"
    async with site(plain(bomb, head)) as found:
        error = await refusal(fetcher(), f"http://127.0.0.2:{found.port}/")
    assert "compressed" in str(error)


@pytest.mark.parametrize("head", [b"HTTP/1.1 404 Not Found\r\n", b"nonsense\r\n"])
async def test_what_is_no_picture_is_said_so(head: bytes) -> None:
    async with site(plain(b"", head)) as found:
        assert (await refusal(fetcher(), f"http://127.0.0.2:{found.port}/")).status_code == 400


async def test_certificates_are_checked_for_the_name_that_was_asked(tmp_path: Path) -> None:
    need("openssl")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=pictures.example", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    asked: list[str | None] = []
    tls.sni_callback = lambda _socket, name, _context: asked.append(name)
    async with site(plain(b"x"), tls=tls) as found:
        await refusal(fetcher([GOOD]), f"https://pictures.example:{found.port}/")
    assert asked == ["pictures.example"]  # the name, though the connection went to an address
    assert found.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.2/",
        "file:///etc/passwd",
        "http:///x",
        "http://",
        "http://user:word@127.0.0.2/",
        "http://127.0.0.2/\r\nX-Injected: 1",
        "http://127.0.0.2/\nHost: x",
        "http://127.0.0.2/a b",
        "http://127.0.0.2:99999/",
        "http://[::1",
        "http://\ud800/",
        "http://" + "a" * 70 + ".example/",
        "http://127.0.0.2/" + "a" * 3000,
    ],
)
async def test_odd_addresses_are_refused(url: str) -> None:
    assert (await refusal(fetcher(), url)).status_code == 400


PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.8.8.8",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "224.0.1.1",
    "239.1.1.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "2001:db8::1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_of_the_open_internet(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1"]
)
def test_addresses_of_the_open_internet(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))
