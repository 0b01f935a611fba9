"""Settings of the programs: flags before environment before file before defaults.

This is the only place that reads the environment. The file is TOML with the same names as the
fields below; it is looked for where the platform keeps configuration
(`~/.config/deepseek-ocr/config.toml` on Linux) unless a path is given.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from platformdirs import user_config_path

from deepseek_ocr.engine.load_options import LoadOptions
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.kernels import choice
from deepseek_ocr.settings import (
    QUANTS,
    ExistingText,
    FormulaDelimiters,
    check_quant,
    existing_text,
    formula_delimiters,
)

PREFIX = "DEEPSEEK_OCR_"
"""Of every environment variable: `DEEPSEEK_OCR_DEVICE` sets `device`."""

ROOT = Path(__file__).resolve().parent.parent

FLAGS = (
    "model", "device", "vision_device", "dtype", "checkpoints", "quant", "kernels", "slots",
    "existing_text", "formulas",
)  # fmt: skip
"""Settings that `deepseek-ocr read` also takes as flags."""

MOST_THREADS = 4096

MOST_SLOTS = 1024
"""Pages at once that anybody may ask for."""


@dataclass(frozen=True)
class Settings:
    """What every program needs to know before it loads a model.

    - `model`: a named checkpoint (see `deepseek-ocr weights list`) or a folder
    - `device`: auto, cpu, cuda, cuda:1, mps, npu …; `dtype`: auto, bfloat16, float16, float32
    - `checkpoints`: folder that holds the named checkpoints
    - `source`: where named checkpoints are fetched from
    - `quant`: how the decoder's weights are held: none, int8
    - `kernels`: which fast paths are used: auto, plain, names with commas between
    - `slots`: how many pages are read at once; 0 ("auto" where it is written) is as many as fit
    - `vision_device`: where the encoders run; None ("same" where it is written) is on `device`
    - `strict`: an operator that the device would hand to the CPU is an error ("yes"), or counted in
      a warning ("no")
    - `threads`: of the CPU part; 0 ("auto" where it is written) is by cores and container limits,
      unless `OMP_NUM_THREADS` says
    - `existing_text`: what a searchable PDF does with pages that have text of their own: skip,
      replace, both
    - `formulas`: what stands around formulas in Markdown: dollars, brackets
    """

    model: str = "deepseek-ocr"
    device: str = "auto"
    dtype: str = "auto"
    checkpoints: str = str(ROOT / "checkpoints")
    source: str = "auto"
    quant: str = "none"
    kernels: str = "auto"
    slots: int = 0
    vision_device: str | None = None
    strict: bool = False
    threads: int = 0
    existing_text: ExistingText = "skip"
    formulas: FormulaDelimiters = "dollars"

    def load_options(self) -> LoadOptions:
        """How the engine is to load the checkpoint: what `OcrEngine.from_options` takes."""
        return LoadOptions(
            device=self.device,
            dtype=self.dtype,
            quant=self.quant,
            kernels=self.kernels,
            slots=self.slots,
            vision_device=self.vision_device,
            strict=self.strict,
            threads=self.threads,
        )


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
    values: dict[str, Any] = dict(_from_file(path))
    for field in fields(Settings):
        if text := environ.get(PREFIX + field.name.upper(), "").strip():
            values[field.name] = text
        if (flag := (flags or {}).get(field.name)) is not None:
            values[field.name] = flag
    if "slots" in values:
        values["slots"] = parse_slots(values["slots"])
    if "strict" in values:
        values["strict"] = parse_switch("strict", values["strict"])
    if values.get("vision_device", "").strip().lower() == "same":
        values["vision_device"] = None
    threads = values.get("threads") or environ.get("OMP_NUM_THREADS", "").split(",")[0] or "auto"
    values["threads"] = parse_count("threads", threads, MOST_THREADS)
    values["existing_text"] = existing_text(values.get("existing_text", Settings.existing_text))
    values["formulas"] = formula_delimiters(values.get("formulas", Settings.formulas))
    settings = Settings(**values)
    choice.parse(settings.kernels)
    check_quant(settings.quant)
    return settings


def parse_slots(text: str) -> int:
    """How many pages at once: a whole number from 1, or "auto", which is 0.

    Raises `SettingsError` for anything else.
    """
    return parse_count("slots", text, MOST_SLOTS)


def parse_count(name: str, text: str, most: int) -> int:
    """A whole number from 1 to `most`, or "auto", which is 0.

    Raises `SettingsError` for anything else.
    """
    if text.strip().lower() == "auto":
        return 0
    if not (text.strip().isdecimal() and text.isascii() and 0 < int(text[:9]) <= most):
        raise SettingsError(
            f"{name} must be a whole number from 1 to {most}, or auto; not {text!r}."
        )
    return int(text)


def parse_switch(name: str, text: str) -> bool:
    """True for yes, on, true and 1. Raises `SettingsError` for what is not their opposite."""
    word = text.strip().lower()
    if word not in ("yes", "on", "true", "1", "no", "off", "false", "0"):
        raise SettingsError(f"{name} must be yes or no; not {text!r}.")
    return word in ("yes", "on", "true", "1")


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
        if name in ("slots", "threads") and type(value) is int:
            raw[name] = str(value)
        elif name == "strict" and type(value) is bool:
            raw[name] = "yes" if value else "no"
        elif not isinstance(value, str):
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
    """What only `deepseek-ocr serve` needs to know.

    `MEANINGS` says what each is.

    Raises `SettingsError` for a number outside its range.
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
    max_held_mb: int = 1024
    max_pixels: int = 100_000_000
    max_pages: int = 32
    page_timeout: float = 600.0
    body_timeout: float = 60.0
    max_waiting: int = 256
    allow_urls: bool = False
    cors: tuple[str, ...] = ()
    jobs_folder: str = ""
    shutdown_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise SettingsError(f"{name} must lie between {least} and {most}.")


MEANINGS = {
    "model": "a named checkpoint (see deepseek-ocr weights list) or a folder",
    "device": "auto, cpu, cuda, cuda:1, mps, npu …",
    "dtype": "auto, bfloat16, float16, float32",
    "checkpoints": "folder that holds the named checkpoints",
    "source": "where named checkpoints are fetched from",
    "quant": "how the decoder's weights are held: " + ", ".join(QUANTS),
    "kernels": "fast paths: auto (all), plain (none), or names; - before one leaves it out",
    "slots": "how many pages are read at once, or auto, by free memory",
    "vision_device": "where the encoders run, if not where the decoder does; same is with it",
    "strict": "an operator that the device would hand to the CPU is an error",
    "threads": "of the CPU part, or auto, by cores and container limits",
    "existing_text": "searchable PDFs: what becomes of text that pages have: skip, replace, both",
    "formulas": "Markdown: what stands around formulas: dollars ($x$), brackets (\\(x\\))",
    "host": "address to listen on; others than 127.0.0.1 need a key",
    "port": "port to listen on; 0 is one that is free",
    "api_keys": "keys of which clients must show one",
    "api_key_file": "file with such keys, one a line",
    "no_auth": "let other machines in without a key",
    "models": "further checkpoints to serve",
    "devices": "devices to load the models on: cuda:0, cuda:1",
    "workers": "how many devices, where they are not named",
    "max_body_mb": "largest request in MiB",
    "max_held_mb": "most MiB of requests that are in memory at once",
    "max_pixels": "most pixels of a picture",
    "max_pages": "most pictures of one request to the OpenAI routes",
    "page_timeout": "longest time for a page in seconds",
    "body_timeout": "longest time for a request to arrive in seconds",
    "max_waiting": "most pages that wait for a slot",
    "allow_urls": "fetch pictures from http(s) addresses that clients name",
    "cors": "origins of web pages that may ask from a browser; * is any",
    "jobs_folder": "where documents lie while they are read; empty is the platform's place",
    "shutdown_seconds": "how long pages may go on once the server is told to stop",
}
"""Every setting in one line, for the help and for the file that `config init` writes."""

_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "workers": (1, 64),
    "max_body_mb": (1, 2048),
    "max_held_mb": (1, 2**20),
    "max_pixels": (1, 178_956_970),
    "max_pages": (1, 1000),
    "page_timeout": (0.1, 86_400),
    "body_timeout": (0.1, 3600),
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


# --- the file -----------------------------------------------------------------------------------


def as_toml(settings: Settings, server: ServerSettings) -> str:
    """What holds now, as a file that `load` and `load_server` read; keys are not shown."""
    shown = replace(server, api_keys=("hidden",) * len(server.api_keys))
    return _table(settings) + f"\n[{SERVER}]\n" + _table(shown)


def write_template(path: Path | None = None) -> Path:
    """Write a file with every setting, its meaning and its default, all commented out; its path.

    Raises `SettingsError` where a file is there already or none can be written.
    """
    chosen = path or default_path()
    text = (
        "# Settings of deepseek-ocr. Flags and DEEPSEEK_OCR_… variables come before them.\n"
        + _table(Settings(), "# ")
        + f"\n[{SERVER}]\n"
        + _table(ServerSettings(), "# ")
    )
    try:
        chosen.parent.mkdir(parents=True, exist_ok=True)
        with chosen.open("x", encoding="utf-8") as file:
            chosen.chmod(0o600)  # it may come to hold keys
            file.write(text)
    except FileExistsError as error:
        raise SettingsError(
            f"{chosen} is there already; edit it, or move it away first."
        ) from error
    except OSError as error:
        raise SettingsError(f"{chosen} cannot be written: {error.strerror}.") from error
    return chosen


def _table(settings: Settings | ServerSettings, before: str = "") -> str:
    lines = []
    for field in fields(settings):
        meaning = f"# {MEANINGS[field.name]}\n" if before else ""
        value = getattr(settings, field.name)
        if field.name in ("slots", "threads"):
            value = value or "auto"
        if field.name == "vision_device":
            value = value or "same"
        data = list(value) if isinstance(value, tuple) else value
        lines.append(f"{meaning}{before}{field.name} = {json.dumps(data, ensure_ascii=False)}\n")
    return "".join(lines)
