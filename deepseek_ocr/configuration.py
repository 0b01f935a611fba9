"""Settings of the programs: flags before environment, which nothing else reads, before a TOML file
with the names of the fields below, before defaults."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
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
    RenderSettings,
    check_quant,
    one_of,
    parse_switch,
)
from deepseek_ocr.weights.places import default_checkpoints

PREFIX = "DEEPSEEK_OCR_"
"""Of every environment variable: `DEEPSEEK_OCR_DEVICE` sets `device`."""

MOST_THREADS = 4096

MOST_SLOTS = 1024
"""Pages at once that anybody may ask for."""


def _setting(
    default: Any, meaning: str, least: float | None = None, most: float | None = None
) -> Any:
    """A field with its meaning in one line, and the range of a number."""
    return field(default=default, metadata={"meaning": meaning, "range": (least, most)})


@dataclass(frozen=True)
class Settings:
    """What every program needs to know before it loads a model; `MEANINGS` says what each is.

    Where it is written "auto", `slots` is 0 and chosen by free memory; so is `threads`, and chosen
    by `OMP_NUM_THREADS`, else by cores and container limits. Where it is written "same",
    `vision_device` is None: the encoders run on `device`.
    """

    model: str = _setting(
        "deepseek-ocr", "a named checkpoint (see deepseek-ocr weights list) or a folder"
    )
    device: str = _setting("auto", "auto, cpu, cuda, cuda:1, mps, npu …")
    dtype: str = _setting("auto", "auto, bfloat16, float16, float32")
    checkpoints: str = field(
        default_factory=lambda: str(default_checkpoints()),
        metadata={"meaning": "folder that holds the named checkpoints"},
    )
    source: str = _setting("auto", "where named checkpoints are fetched from")
    quant: str = _setting("none", f"how the decoder's weights are held: {', '.join(QUANTS)}")
    kernels: str = _setting(
        "auto", "fast paths: auto (all), plain (none), or names; - before one leaves it out"
    )
    slots: int = _setting(0, "how many pages are read at once, or auto, by free memory")
    vision_device: str | None = _setting(
        None, "where the encoders run, if not where the decoder does; same is with it"
    )
    strict: bool = _setting(False, "an operator that the device would hand to the CPU is an error")
    threads: int = _setting(0, "of the CPU part, or auto, by cores and container limits")
    existing_text: ExistingText = _setting(
        "skip", "searchable PDFs: what becomes of text that pages have: skip, replace, both"
    )
    formulas: FormulaDelimiters = _setting(
        "dollars", "Markdown: what stands around formulas: dollars ($x$), brackets (\\(x\\))"
    )

    def checkpoint_folder(self) -> Path:
        """The folder of the model, which is not fetched. Raises `CheckpointError`."""
        from deepseek_ocr.weights import registry  # imports much that most commands do not need

        return registry.ensure(self.model, Path(self.checkpoints), fetch=False)

    def load_options(self) -> LoadOptions:
        """How the engine is to load the checkpoint: what `OcrEngine.from_options` takes."""
        shared = {one.name for one in fields(LoadOptions)} & vars(self).keys()
        return LoadOptions(**{name: getattr(self, name) for name in shared})


def default_path() -> Path:
    """Where the file is looked for: `~/.config/deepseek-ocr/config.toml` on Linux."""
    return user_config_path("deepseek-ocr", appauthor=False) / "config.toml"


def load(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    path: Path | None = None,
) -> Settings:
    """Settings from `flags` (None is unset), then `environ`, then the file, then the defaults.
    Raises `SettingsError` for an unreadable file and for an unknown name or value."""
    environ = os.environ if environ is None else environ
    table = {name: _as_text(name, value) for name, value in _read_file(path).items()}
    table.pop(SERVER, None)
    kinds: dict[str, type] = {one.name: str for one in fields(Settings)}
    values = _given(kinds, table, "", flags, environ, path)
    if "slots" in values:
        values["slots"] = _parse_count("slots", values["slots"], MOST_SLOTS)
    if "strict" in values:
        values["strict"] = parse_switch("strict", values["strict"])
    if values.get("vision_device", "").strip().lower() == "same":
        values["vision_device"] = None
    threads = values.get("threads") or environ.get("OMP_NUM_THREADS", "").split(",")[0] or "auto"
    values["threads"] = _parse_count("threads", threads, MOST_THREADS)
    for name, kind in (("existing_text", ExistingText), ("formulas", FormulaDelimiters)):
        values[name] = one_of(kind, name, values.get(name, getattr(Settings, name)))
    settings = Settings(**values)
    choice.parse(settings.kernels)
    check_quant(settings.quant)
    return settings


def _as_text(name: str, value: Any) -> Any:
    """A value of the file as flags and the environment give it, if it may be anything but text."""
    if name in ("slots", "threads") and type(value) is int:
        return str(value)
    if name == "strict" and type(value) is bool:
        return "yes" if value else "no"
    return value


def _parse_count(name: str, text: str, most: int) -> int:
    """A whole number from 1 to `most`, or "auto", which is 0. Raises `SettingsError`."""
    if text.strip().lower() == "auto":
        return 0
    if not (text.strip().isdecimal() and text.isascii() and 0 < int(text[:9]) <= most):
        reason = f"{name} must be a whole number from 1 to {most}, or auto; not {text!r}."
        raise SettingsError(reason)
    return int(text)


def _read_file(path: Path | None) -> dict[str, Any]:
    """What the file says, not looked at yet; nothing where there is no file and none was named."""
    chosen = path or default_path()
    if path is None and not os.path.isfile(chosen):  # or in somebody else's home folder
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
    """What only the server needs to know; `MEANINGS` says what each is.

    Raises `SettingsError` for a number outside its range.
    """

    host: str = _setting("127.0.0.1", "address to listen on; others than 127.0.0.1 need a key")
    port: int = _setting(8000, "port to listen on; 0 is one that is free", 0, 65535)
    api_keys: tuple[str, ...] = _setting((), "keys of which clients must show one")
    api_key_file: str = _setting("", "file with such keys, one a line")
    no_auth: bool = _setting(False, "let other machines in without a key")
    models: tuple[str, ...] = _setting((), "further checkpoints to serve")
    devices: tuple[str, ...] = _setting((), "devices to load the models on: cuda:0, cuda:1")
    workers: int = _setting(1, "how many devices, where they are not named", 1, 64)
    max_body_mb: int = _setting(64, "largest request in MiB", 1, 2048)
    max_held_mb: int = _setting(1024, "most MiB of requests that are in memory at once", 1, 2**20)
    max_pixels: int = _setting(
        100_000_000, "most pixels of a picture", 1, RenderSettings.max_picture_pixels
    )
    max_pages: int = _setting(32, "most pictures of one request to the OpenAI routes", 1, 1000)
    page_timeout: float = _setting(600.0, "longest time for a page in seconds", 0.1, 86_400)
    body_timeout: float = _setting(
        60.0, "longest time for a request to arrive in seconds", 0.1, 3600
    )
    max_waiting: int = _setting(256, "most pages that wait for a slot", 0, 100_000)
    allow_urls: bool = _setting(False, "fetch pictures from http(s) addresses that clients name")
    cors: tuple[str, ...] = _setting(
        (), "origins of web pages that may ask from a browser; * is any"
    )
    jobs_folder: str = _setting(
        "", "where documents lie while they are read; empty is the platform's place"
    )
    shutdown_seconds: float = _setting(
        30.0, "how long pages may go on once the server is told to stop", 0, 3600
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            least, most = setting.metadata["range"]
            if least is not None and not least <= getattr(self, setting.name) <= most:
                raise SettingsError(f"{setting.name} must lie between {least} and {most}.")


_EVERY = (*fields(Settings), *fields(ServerSettings))
MEANINGS: dict[str, str] = {setting.name: setting.metadata["meaning"] for setting in _EVERY}
"""Every setting in one line, for the help and for the file that `config init` writes."""


def load_server(
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    path: Path | None = None,
) -> ServerSettings:
    """The server's settings from `flags` (None is unset), then `environ`, then the table `[server]`
    of the file, then the defaults. Raises `SettingsError` as `load`."""
    environ = os.environ if environ is None else environ
    table = _read_file(path).get(SERVER, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{path or default_path()}: [{SERVER}] must be a table.")
    kinds = {one.name: type(one.default) for one in fields(ServerSettings)}
    return ServerSettings(**_given(kinds, table, f"{SERVER}.", flags, environ, path))


def _given(
    kinds: Mapping[str, type],
    table: Mapping[str, Any],
    before: str,
    flags: Mapping[str, Any] | None,
    environ: Mapping[str, str],
    path: Path | None,
) -> dict[str, Any]:
    """What `flags`, then `environ`, then the `table` of the file whose names have `before` in front
    say of the settings in `kinds`. Raises `SettingsError`."""
    values: dict[str, Any] = {}
    file = path or default_path()
    for name, value in table.items():
        if name not in kinds:
            known = ", ".join(sorted(kinds))
            raise SettingsError(f"{file} sets {before + name!r}, which is no setting; use {known}.")
        values[name] = _typed(value, kinds[name], f"{file}: {before}{name}")
    for name, kind in kinds.items():
        variable = PREFIX + name.upper()
        if text := environ.get(variable, "").strip():
            values[name] = _from_text(text, kind, variable)
        if (flag := (flags or {}).get(name)) is not None:
            values[name] = flag
    return values


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


def parts_of(text: str) -> tuple[str, ...]:
    """What stands between the commas of `text`."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _from_text(text: str, kind: type, where: str) -> Any:
    """A value of the environment as `kind`; several are parted by commas."""
    if kind is tuple:
        return parts_of(text)
    if kind is bool:
        return parse_switch(where, text)
    try:
        return kind(text)
    except ValueError as error:
        raise SettingsError(f"{where} must be a number, not {text!r}.") from error


def as_toml(settings: Settings, server: ServerSettings) -> str:
    """What holds now, as a file that `load` and `load_server` read; keys are not shown."""
    shown = replace(server, api_keys=("hidden",) * len(server.api_keys))
    return _table(settings) + f"\n[{SERVER}]\n" + _table(shown)


def write_template(path: Path | None = None) -> Path:
    """Write a file with every setting, its meaning and its default, all commented out; its path.
    Raises `SettingsError` where a file is there already or none can be written."""
    chosen = path or default_path()
    text = "# Settings of deepseek-ocr. Flags and DEEPSEEK_OCR_… variables come before them.\n"
    text += f"{_table(Settings(), '# ')}\n[{SERVER}]\n{_table(ServerSettings(), '# ')}"
    try:
        chosen.parent.mkdir(parents=True, exist_ok=True)
        with chosen.open("x", encoding="utf-8") as file:
            chosen.chmod(0o600)  # it may come to hold keys
            file.write(text)
    except FileExistsError as error:
        reason = f"{chosen} is there already; edit it, or move it away first."
        raise SettingsError(reason) from error
    except OSError as error:
        raise SettingsError(f"{chosen} cannot be written: {error.strerror}.") from error
    return chosen


def _table(settings: Settings | ServerSettings, before: str = "") -> str:
    lines = []
    for setting in fields(settings):
        name, value = setting.name, getattr(settings, setting.name)
        meaning = f"# {MEANINGS[name]}\n" if before else ""
        if name in ("slots", "threads"):
            value = value or "auto"
        if name == "vision_device":
            value = value or "same"
        # JSON writes strings, numbers, booleans and lists of strings as TOML does
        lines.append(f"{meaning}{before}{name} = {json.dumps(value, ensure_ascii=False)}\n")
    return "".join(lines)
