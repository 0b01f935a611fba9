"""Who asks: keys, compared in constant time, and the name under which a client takes its turns."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable
from pathlib import Path

from fastapi import Request

from deepseek_ocr.errors import SettingsError
from deepseek_ocr.server.api_errors import ApiError

_SHORTEST_KEY = 8


class Keys:
    """The keys that open this server, kept as digests; none at all leaves it open."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name_of(self, key: str) -> str | None:
        """A short name for the holder of `key`, fit for logs; None where it opens nothing.

        All keys are compared, in time that does not depend on what was sent.
        """
        given = _digest(key)
        found = None
        for digest in self._digests:
            if hmac.compare_digest(digest, given):
                found = f"key-{digest.hex()[:8]}"
        return found


def read_keys(given: Iterable[str], file: str) -> tuple[str, ...]:
    """Keys given one by one, and those in `file`, a line each (# begins a comment).

    Raises `SettingsError` for a file that cannot be read or is empty, and for keys too short or
    with characters that a header cannot carry.
    """
    keys = [key.strip() for key in given if key.strip()]
    if file:
        try:
            lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise SettingsError(f"The file of keys {file} cannot be read: {error}.") from error
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise SettingsError(f"The file of keys {file} holds none; write one a line.")
        keys += found
    for key in keys:
        if len(key) < _SHORTEST_KEY or not (key.isascii() and key.isprintable() and " " not in key):
            raise SettingsError(
                f"A key must have {_SHORTEST_KEY} characters or more, of ASCII, without spaces; "
                "make one with: openssl rand -hex 24"
            )
    return tuple(dict.fromkeys(keys))


def is_loopback(host: str) -> bool:
    """True where a server bound to `host` can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_binding(host: str, has_keys: bool, no_auth: bool) -> None:
    """Raise `SettingsError` where `host` would open a server without keys to others."""
    if is_loopback(host) or has_keys or no_auth:
        return
    raise SettingsError(
        f"--host {host} lets other machines in, and there is no key. Give --api-key KEY (or "
        "--api-key-file FILE), or --no-auth if everybody who can reach it may use it."
    )


def identify(keys: Keys, authorization: str, address: str) -> str:
    """The client's name: of its key, else its address.

    Raises `ApiError` 401 where a key is wanted and `authorization` (the header) has none that fits.
    """
    if not keys:
        return address
    scheme, _, key = authorization.partition(" ")
    name = keys.name_of(key.strip()) if scheme.lower() == "bearer" else None
    if name is None:
        raise ApiError(
            401,
            "This server wants a key: send the header Authorization: Bearer KEY.",
            "invalid_api_key",
        )
    return name


async def client_of(request: Request) -> str:
    """Dependency: the client's name, for the queue and the logs. `middleware.Guard` has found it
    out, before anything of the request's body was read."""
    name: str = request.scope["deepseek_ocr.client"]
    return name


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
