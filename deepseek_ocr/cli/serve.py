"""`deepseek-ocr serve`: the flags of the server, turned into settings."""

from __future__ import annotations

import argparse
from dataclasses import fields

from deepseek_ocr import configuration
from deepseek_ocr.cli.flags import Subparsers, add_config, add_speed
from deepseek_ocr.configuration import MEANINGS, ServerSettings, Settings

_DESCRIPTION = """\
Serve DeepSeek-OCR over HTTP: /v1/chat/completions, /v1/responses and /v1/models for clients of
OpenAI's API, and a page at / to try it.
"""

_EPILOG = """\
Every setting can also stand in the file (deepseek-ocr config init writes one) or in a variable:
the flag --max-pages is DEEPSEEK_OCR_MAX_PAGES, several values have commas between them, and keys,
which others on this machine can read off a command line, are DEEPSEEK_OCR_API_KEYS.

exit status: 0 told to stop, 1 the model could not be loaded or a device failed (start it again),
2 could not start
"""

_SEVERAL = {"models": "model", "api_keys": "api-key", "cors": "cors", "devices": "devices"}
"""Settings that hold several values → their flags."""


def add_parser(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("serve", description=_DESCRIPTION, epilog=_EPILOG)
    add_server_flags(parser)
    parser.set_defaults(run=run)


def run(flags: argparse.Namespace) -> int:
    """Serve until told to stop; the exit status is in the help. Raises `OcrError` if the server
    cannot start."""
    settings, server = load_server_settings(flags)
    from deepseek_ocr.server.startup import ServerStart, check_binding, read_keys

    keys = read_keys(server.api_keys, server.api_key_file)
    check_binding(server.host, bool(keys), server.no_auth)
    from deepseek_ocr.server.lifecycle import main  # imports torch: seconds

    return main(ServerStart(settings, server, keys))


def load_server_settings(flags: argparse.Namespace) -> tuple[Settings, ServerSettings]:
    """The settings that the flags of `add_server_flags`, the environment and the file give.

    Raises `SettingsError`.
    """
    given = vars(flags)
    if flags.model:
        given = given | {"model": flags.model[0], "models": tuple(flags.model[1:]) or None}
    return (
        configuration.load(given, path=flags.config),
        configuration.load_server(given, path=flags.config),
    )


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting. One that is not given is None: then the next source counts."""
    add_config(parser.add_argument_group("settings"))
    parser.add_argument(
        "--model", action="append", metavar="NAME|FOLDER",
        help=f"{MEANINGS['model']}; again for {MEANINGS['models']}",
    )  # fmt: skip
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
    text = MEANINGS[name].replace("%", "%%")
    if isinstance(default, bool):
        parser.add_argument(flag, dest=name, action="store_true", default=None, help=text)
    elif isinstance(default, tuple):
        parser.add_argument(
            flag, dest=name, action=_Append, metavar="A,B", help=f"{text} (also several times)"
        )
    else:
        shown = f"{text} (default: {default})" if default != "" else text
        parser.add_argument(
            flag, dest=name, type=type(default), metavar=name.rsplit("_", 1)[-1].upper(), help=shown
        )


class _Append(argparse.Action):
    """Gathers values with commas between them, or one after the other, into a tuple."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        added = tuple(part.strip() for part in str(values).split(",") if part.strip())
        setattr(namespace, self.dest, (getattr(namespace, self.dest) or ()) + added)
