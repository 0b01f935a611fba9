"""What `serve.py` understands, turned into settings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields

from deepseek_ocr import __version__, configuration
from deepseek_ocr.cli.flags import add_config, add_speed
from deepseek_ocr.cli.read_arguments import show_config
from deepseek_ocr.configuration import MEANINGS, ServerSettings, Settings
from deepseek_ocr.errors import OcrError
from deepseek_ocr.server.startup import ServerStart, check_binding, read_keys

_DESCRIPTION = """\
Serve DeepSeek-OCR over HTTP: /v1/chat/completions, /v1/responses and /v1/models for clients of
OpenAI's API, and a page at / to try it.
"""

_EPILOG = """\
Every setting can also stand in the file (--init-config writes one) or in a variable: the flag
--max-pages is DEEPSEEK_OCR_MAX_PAGES, several values are parted by commas, and keys, which others
on this machine can read off a command line, are DEEPSEEK_OCR_API_KEYS.

exit status: 0 told to stop, 1 the model could not be loaded or a device failed (start it again),
2 could not start
"""

_SEVERAL = {"models": "model", "api_keys": "api-key", "cors": "cors", "devices": "devices"}
"""Settings that hold several values → their flags."""


def parse(arguments: Sequence[str] | None = None) -> ServerStart:
    """What `arguments` ask for; leaves the program with status 2 where they are wrong."""
    known = parser()
    found = known.parse_args(arguments)
    if found.model:
        found.model, found.models = found.model[0], tuple(found.model[1:]) or None
    if found.print_config or found.init_config:
        show_config(known, found, vars(found))
    try:
        settings = configuration.load(vars(found), path=found.config)
        server = configuration.load_server(vars(found), path=found.config)
        keys = read_keys(server.api_keys, server.api_key_file)
        check_binding(server.host, bool(keys), server.no_auth)
    except OcrError as error:
        known.error(str(error))
    return ServerStart(settings, server, keys)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line. A flag that is not given is None, so that less comes next."""
    parser = argparse.ArgumentParser(
        prog="serve.py",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"deepseek-ocr {__version__}")
    add_config(parser.add_argument_group("settings"))
    parser.add_argument(
        "--model", action="append", metavar="NAME|FOLDER",
        help=f"{MEANINGS['model']}; again for {MEANINGS['models']}",
    )  # fmt: skip
    for name in ("device", "dtype", "checkpoints", "existing_text", "formulas"):
        _add(parser, name, getattr(Settings, name))
    parser.add_argument("--vision-device", metavar="DEVICE", help=MEANINGS["vision_device"])
    add_speed(parser.add_argument_group("speed"))
    for field in fields(ServerSettings):
        if field.name != "models":
            _add(parser, field.name, field.default)
    return parser


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
