"""The one place that fetches addresses, for servers started with `--allow-urls`.

A name is resolved once, all its addresses are checked, and the connection goes to one of those
very addresses: a name that changes its answer gains nothing. A redirect is a new address and
passes the same gate. Whatever was sent, compressed or without end, no more than the allowed bytes
are read, in the allowed time, and all that one request names shares both.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import httpx

from deepseek_ocr.server.api_errors import ApiError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LONGEST_URL = 2000
"""Characters."""

_LOOKUPS = ThreadPoolExecutor(8, "names")
"""Threads that ask for names, which may take long: nothing else waits behind them."""

_REDIRECTS = (301, 302, 303, 307, 308)

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NOT_FOR_US = (
    ipaddress.ip_network("168.63.129.16/32"),  # a cloud's own services, at a public address
    ipaddress.ip_network("192.0.0.0/24"),  # for protocols; another cloud's services
    ipaddress.ip_network("64:ff9b:1::/48"),  # translated to IPv4 by local rules
    ipaddress.ip_network("fec0::/10"),  # site-local, from before there were private addresses
    ipaddress.ip_network("::/96"),  # IPv4 in an old disguise
)


def is_public(address: Address) -> bool:
    """True for an address of the open internet, whatever disguise of IPv4 in IPv6 it wears."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address.teredo:
            inner = address.teredo[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    if any(address in network for network in _NOT_FOR_US):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def resolve(host: str, port: int) -> Sequence[Address]:
    """The addresses of `host`, as the system resolves names and the odder forms of numbers."""
    loop = asyncio.get_running_loop()
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await loop.run_in_executor(_LOOKUPS, ask)
    return [ipaddress.ip_address(str(entry[4][0]).split("%")[0]) for entry in found]


@dataclass
class Allowance:
    """What the fetches of one request may still take, all together.

    - `left`: bytes; `until`: when it ends, by the event loop's clock
    - `hold`: told of the size of each piece that comes; what it raises ends the fetch
    """

    left: int
    until: float
    hold: Callable[[int], None]


@dataclass(frozen=True)
class Fetcher:
    """Fetches from public http(s) addresses.

    - `most_bytes`, `seconds`: bounds of one request's fetches; `redirects`: of one fetch
    - `resolve`, `allowed`: where names lead, and which addresses may be asked at which port
    """

    most_bytes: int
    seconds: float = 20.0
    redirects: int = 3
    resolve: Callable[[str, int], Awaitable[Sequence[Address]]] = resolve
    allowed: Callable[[Address], bool] = is_public

    def allowance(self, hold: Callable[[int], None]) -> Allowance:
        """What the fetches of a request that begins now may take."""
        until = asyncio.get_running_loop().time() + self.seconds
        return Allowance(self.most_bytes, until, hold)

    async def fetch(self, url: str, param: str, allowance: Allowance) -> bytes:
        """What is at `url`. Raises `ApiError` 400 naming `param`, 413 where it is too large, and
        what `allowance.hold` raises."""
        try:
            async with asyncio.timeout_at(allowance.until):
                return await self._follow(url, allowance)
        except TimeoutError as error:
            why = f"All addresses of the request took longer than {self.seconds:.0f} s."
            raise _refused(why, param) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError, UnicodeError, ValueError) as error:
            raise _refused("It cannot be reached.", param) from error
        except RefusedError as refused:
            raise _refused(str(refused), param) from refused

    async def _follow(self, url: str, allowance: Allowance) -> bytes:
        target = _parsed(url)
        for _ in range(self.redirects + 1):
            found = await self._get(target, allowance)
            if isinstance(found, bytes):
                return found
            target = _parsed(str(target.join(found)))
        raise RefusedError(f"It redirects more than {self.redirects} times.")

    async def _get(self, url: httpx.URL, allowance: Allowance) -> bytes | str:
        """The body, or where it redirects to."""
        addresses = await self._addresses(url)
        headers = {
            "host": url.netloc.decode("ascii"), "accept": "image/*",
            "accept-encoding": "identity", "user-agent": "deepseek-ocr",
        }  # fmt: skip
        target, extensions = url.copy_with(host=str(addresses[0])), {"sni_hostname": url.host}
        async with (
            httpx.AsyncClient(
                trust_env=False, follow_redirects=False, timeout=self.seconds
            ) as client,
            client.stream("GET", target, headers=headers, extensions=extensions) as answer,
        ):
            return await self._body(answer, allowance)

    async def _addresses(self, url: httpx.URL) -> Sequence[Address]:
        """Where `url` leads; all of it must be allowed."""
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = await self.resolve(url.host, port)
        if not addresses or not all(self.allowed(address) for address in addresses):
            raise RefusedError("It is not on the open internet.")
        return sorted(addresses, key=lambda address: address.version)  # IPv4 works everywhere

    async def _body(self, answer: httpx.Response, allowance: Allowance) -> bytes | str:
        if answer.status_code in _REDIRECTS and "location" in answer.headers:
            return str(answer.headers["location"])
        if answer.status_code != 200:
            raise RefusedError(f"It answers with status {answer.status_code}.")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise RefusedError("It is compressed though that was not asked for.")
        body = bytearray()
        async for piece in answer.aiter_raw():
            allowance.left -= len(piece)
            if allowance.left < 0:
                raise ApiError(
                    413, f"What is at the addresses is larger than {self.most_bytes // 2**20} MiB; "
                    "send fewer or smaller pictures.", "image_too_large",
                )  # fmt: skip
            allowance.hold(len(piece))
            body += piece
        return bytes(body)


class RefusedError(Exception):
    """Why an address is not fetched, in a sentence for the client."""


def _refused(why: str, param: str) -> ApiError:
    return ApiError(
        400, f"The picture's address was not fetched. {why} Send the picture itself as a data URI.",
        "url_refused", param,
    )  # fmt: skip


def _parsed(url: str) -> httpx.URL:
    """`url`, if it is a plain http(s) address."""
    if len(url) > LONGEST_URL or not url.isprintable() or " " in url:
        raise RefusedError("It is too long, or has characters that addresses do not have.")
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise RefusedError("It is no http(s) address.")
    if parsed.port is not None and not 0 < parsed.port < 2**16:
        raise RefusedError("It has no such port.")
    if parsed.userinfo:
        raise RefusedError("It holds a name or a password.")
    return parsed
