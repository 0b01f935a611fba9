"""`deepseek-ocr serve`: the flags of the server, turned into settings."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from deepseek_ocr import configuration
from deepseek_ocr.cli.flags import add_config, add_speed
from deepseek_ocr.configuration import MEANINGS, ServerSettings, Settings

DESCRIPTION = """\
Serve DeepSeek-OCR over HTTP: /v1/chat/completions, /v1/responses and /v1/models for clients of
OpenAI's API, and a page at / to try it.
"""

EPILOG = """\
Every setting can also stand in the file (deepseek-ocr config init writes one) or in a variable:
the flag --max-pages is DEEPSEEK_OCR_MAX_PAGES, several values have commas between them, and keys,
which others on this machine can read off a command line, are DEEPSEEK_OCR_API_KEYS.

exit status: 0 told to stop, 1 the model could not be loaded or a device failed (start it again),
2 could not start
"""

_SEVERAL = {"models": "model", "api_keys": "api-key", "cors": "cors", "devices": "devices"}
"""Settings that hold several values → their flags."""

_METAVARS = {"checkpoints": "FOLDER", "existing_text": "MODE", "formulas": "MARKS"}
"""What stands for the values of settings whose last word says too little."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sub-command."""
    parser.usage = "deepseek-ocr serve [options]"
    add_server_flags(parser)


def run(flags: argparse.Namespace) -> int:
    """Serve until told to stop; the exit status is in the help. Raises `OcrError` if the server
    cannot start."""
    settings, server = load_server_settings(flags)
    from deepseek_ocr.server.startup import check_binding, read_keys

    keys = read_keys(server.api_keys, server.api_key_file)
    check_binding(server.host, bool(keys), server.no_auth)
    from deepseek_ocr.server.lifecycle import main  # imports torch: seconds

    return main(settings, server, keys)


def load_server_settings(flags: argparse.Namespace) -> tuple[Settings, ServerSettings]:
    """The settings that the flags of `add_server_flags`, the environment and the file give. Raises
    `SettingsError`."""
    path = flags.config
    given = {
        name: tuple(one) if isinstance(one, list) else one for name, one in vars(flags).items()
    }
    if flags.model:
        given |= {"model": flags.model[0], "models": given["model"][1:] or None}
    return configuration.load(given, path=path), configuration.load_server(given, path=path)


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting. One that is not given is None: then the next source counts."""
    add_config(parser.add_argument_group("settings"))
    text = f"{MEANINGS['model']}; again for {MEANINGS['models']}"
    parser.add_argument("--model", action="append", metavar="NAME|FOLDER", help=text)
    defaults = Settings()
    for name in ("device", "dtype", "checkpoints", "existing_text", "formulas"):
        _add(parser, name, getattr(defaults, name))
    parser.add_argument("--vision-device", metavar="DEVICE", help=MEANINGS["vision_device"])
    add_speed(parser.add_argument_group("speed"))
    for field in fields(ServerSettings):
        if field.name != "models":
            _add(parser, field.name, field.default)


def _add(parser: argparse.ArgumentParser, name: str, default: object) -> None:
    """The flag of one setting."""
    flag = f"--{_SEVERAL.get(name, name).replace('_', '-')}"
    text, options = MEANINGS[name].replace("%", "%%"), dict[str, Any](dest=name)
    if isinstance(default, bool):
        options |= {"action": "store_true", "default": None}
    elif isinstance(default, tuple):
        text += " (also several times)"
        options |= {"action": "extend", "type": configuration.parts_of, "metavar": "A,B"}
    else:
        text += f" (default: {default})" if default != "" else ""
        words = {int: "N", float: "SECONDS"}
        named = _METAVARS.get(name, name.rsplit("_", 1)[-1].upper())
        options |= {"type": type(default), "metavar": words.get(type(default), named)}
    parser.add_argument(flag, help=text, **options)
