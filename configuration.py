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
from deepseek_ocr.kernels import choice

PREFIX = "DEEPSEEK_OCR_"
"""Of every environment variable: `DEEPSEEK_OCR_DEVICE` sets `device`."""

ROOT = Path(__file__).resolve().parent

FLAGS = (
    "model", "device", "vision_device", "dtype", "checkpoints", "quant", "kernels", "slots",
)  # fmt: skip
"""Settings that `ocr.py` also takes as flags."""

MOST_THREADS = 4096

MOST_SLOTS = 1024
"""Pages at once that anybody may ask for."""


@dataclass(frozen=True)
class Settings:
    """What every program needs to know before it loads a model.

    - `model`: a named checkpoint (see `weights.py`) or a folder
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
    settings = Settings(**values)
    choice.parse(settings.kernels)
    choice.check_quant(settings.quant)
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
    if path is None and not _is_there(chosen):
        return {}
    try:
        raw = tomllib.loads(chosen.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{chosen} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{chosen} is not valid TOML: {error}.") from error
    known = {field.name for field in fields(Settings)}
    for name, value in raw.items():
        if name not in known:
            raise SettingsError(
                f"{chosen} sets {name!r}, which is no setting; use {', '.join(sorted(known))}."
            )
        if name == "slots" and type(value) is int:
            raw[name] = str(value)
        elif not isinstance(value, str):
            raise SettingsError(f"{chosen}: {name} must be a string in quotes.")
    return raw
