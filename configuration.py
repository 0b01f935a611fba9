"""Settings of the programs: flags before environment before file before defaults.

This is the only place that reads the environment. The file is TOML with the same names as the
fields below; it is looked for where the platform keeps configuration
(`~/.config/deepseek-ocr/config.toml` on Linux) unless a path is given.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from platformdirs import user_config_path

from deepseek_ocr.errors import SettingsError

PREFIX = "DEEPSEEK_OCR_"
"""Of every environment variable: `DEEPSEEK_OCR_DEVICE` sets `device`."""

ROOT = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Settings:
    """What every program needs to know before it loads a model.

    - `model`: a named checkpoint (see `weights.py`) or a folder
    - `device`: auto, cpu, cuda, cuda:1, mps, npu …; `dtype`: auto, bfloat16, float16, float32
    - `checkpoints`: folder that holds the named checkpoints
    - `source`: where named checkpoints are fetched from
    """

    model: str = "deepseek-ocr"
    device: str = "auto"
    dtype: str = "auto"
    checkpoints: str = str(ROOT / "checkpoints")
    source: str = "auto"


def default_path() -> Path:
    """Where the configuration file is looked for."""
    return user_config_path("deepseek-ocr", appauthor=False) / "config.toml"


def load(
    flags: Mapping[str, str | None] | None = None,
    environ: Mapping[str, str] | None = None,
    path: Path | None = None,
) -> Settings:
    """Settings from `flags` (None is unset), then `environ`, then the file, then the defaults.

    Raises `SettingsError` for an unreadable file and for a name or a value nobody knows.
    """
    environ = os.environ if environ is None else environ
    values = _from_file(path)
    for field in fields(Settings):
        if text := environ.get(PREFIX + field.name.upper(), "").strip():
            values[field.name] = text
        if (flag := (flags or {}).get(field.name)) is not None:
            values[field.name] = flag
    return Settings(**values)


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a home folder that is somebody else's
        return False


def _from_file(path: Path | None) -> dict[str, str]:
    chosen = path or default_path()
    known = {field.name for field in fields(Settings)}
    raw = {name: value for name, value in _read_file(path).items() if name != SERVER}
    for name, value in raw.items():
        if name not in known:
            raise SettingsError(
                f"{chosen} sets {name!r}, which is no setting; use {', '.join(sorted(known))}."
            )
        if not isinstance(value, str):
            raise SettingsError(f"{chosen}: {name} must be a string in quotes.")
    return raw


def _read_file(path: Path | None) -> dict[str, Any]:
    """What the file says, not looked at yet; nothing where there is no file and none was named."""
    chosen = path or default_path()
    if path is None and not _is_there(chosen):
        return {}
    try:
        return tomllib.loads(chosen.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{chosen} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{chosen} is not valid TOML: {error}.") from error


# --- the server's own ---------------------------------------------------------------------------

SERVER = "server"
"""The table of the file that holds the fields of `ServerSettings`."""


@dataclass(frozen=True)
class ServerSettings:
    """What only `serve.py` needs to know.

    - `host`, `port`: where it listens (port 0: one that is free)
    - `api_keys`, `api_key_file`: what clients must show; `no_auth`: that they need not, though
      other machines can reach the server
    - `models`: further checkpoints to serve; `devices`, `workers`: where, and on how many devices
    - `max_body_mb` (MiB of a request), `max_pixels` (of a picture), `max_pages` (pictures of a
      request), `page_timeout` (seconds for a page), `max_waiting` (pages in the queue)
    - `allow_urls`: fetch pictures from http(s) addresses; `cors_origins`: web pages of other
      origins that may ask from a browser (`*`: all)
    - `jobs_folder`: where documents lie while they are read and until they are forgotten; empty for
      where the platform keeps such things
    - `shutdown_seconds`: how long pages being read may go on once the server is told to stop
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    api_key_file: str = ""
    no_auth: bool = False
    models: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    workers: int = 1
    max_body_mb: int = 64
    max_pixels: int = 100_000_000
    max_pages: int = 32
    page_timeout: float = 600.0
    max_waiting: int = 256
    allow_urls: bool = False
    cors_origins: tuple[str, ...] = ()
    jobs_folder: str = ""
    shutdown_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise SettingsError(f"{name} must lie between {least} and {most}.")


_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "workers": (1, 64),
    "max_body_mb": (1, 2048),
    "max_pixels": (1, 178_956_970),
    "max_pages": (1, 1000),
    "page_timeout": (0.1, 86_400),
    "max_waiting": (0, 100_000),
    "shutdown_seconds": (0, 3600),
}


def load_server(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    path: Path | None = None,
) -> ServerSettings:
    """The server's settings from `flags` (None is unset), then `environ`, then the table `[server]`
    of the file, then the defaults.

    Raises `SettingsError` as `load`.
    """
    environ = os.environ if environ is None else environ
    table = _read_file(path).get(SERVER, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{path or default_path()}: [{SERVER}] must be a table.")
    known = {field.name: type(field.default) for field in fields(ServerSettings)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in known:
            raise SettingsError(
                f"{path or default_path()} sets {SERVER}.{name}, which is no setting; use "
                f"{', '.join(known)}."
            )
        values[name] = _typed(value, known[name], f"{path or default_path()}: {SERVER}.{name}")
    for name, kind in known.items():
        if text := environ.get(PREFIX + name.upper(), "").strip():
            values[name] = _from_text(text, kind, PREFIX + name.upper())
        if (flag := (flags or {}).get(name)) is not None:
            values[name] = flag
    return ServerSettings(**values)


def _typed(value: Any, kind: type, where: str) -> Any:
    """A value of TOML as `kind`."""
    if kind is tuple and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        wanted = {tuple: "a list of strings", str: "a string in quotes", bool: "true or false"}
        raise SettingsError(f"{where} must be {wanted.get(kind, 'a number')}.")
    return value


def _from_text(text: str, kind: type, where: str) -> Any:
    """A value of the environment as `kind`; several are parted by commas."""
    if kind is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind is bool:
        if text.lower() not in _WORDS:
            raise SettingsError(f"{where} must be one of {', '.join(_WORDS)}.")
        return _WORDS[text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        raise SettingsError(f"{where} must be a number, not {text!r}.") from error


_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
