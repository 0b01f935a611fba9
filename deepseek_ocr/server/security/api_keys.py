"""Who asks: keys, compared in constant time, and the name under which a client takes its turns."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from deepseek_ocr.server.api_errors import ApiError


class Keys:
    """The keys that open this server, kept as digests; none at all leaves it open."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def name_of(self, key: str) -> str | None:
        """A short name for the holder of `key`, fit for logs; None where it opens nothing. All keys
        are compared, in time that does not depend on what was sent."""
        given = _digest(key)
        equal = [hmac.compare_digest(digest, given) for digest in self._digests]
        return f"key-{given.hex()[:8]}" if any(equal) else None


def identify(keys: Keys, authorization: str, address: str) -> str:
    """The client's name: of its key, else its address. Raises `ApiError` 401 where a key is wanted
    and `authorization` (the header) has none that fits."""
    if not keys:
        return address
    scheme, _, key = authorization.partition(" ")
    name = keys.name_of(key.strip()) if scheme.lower() == "bearer" else None
    if name is None:
        message = "This server wants a key: send the header Authorization: Bearer KEY."
        raise ApiError(401, message, "invalid_api_key")
    return name


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
