"""With which keys a server starts, and whether it may; imports neither torch nor FastAPI."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path

from deepseek_ocr.errors import SettingsError

_SHORTEST_KEY = 8


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
