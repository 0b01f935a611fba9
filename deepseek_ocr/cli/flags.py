"""Flags that several sub-commands take. Imports neither torch nor the engine."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepseek_ocr import configuration
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.kernels import choice
from deepseek_ocr.settings import QUANTS
from deepseek_ocr.weights import catalog


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help in few lines: `-o, --output FOLDER`, and `--[no-]crop` for a flag with an opposite."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **({"max_help_position": 28} | options))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return action.option_strings[0].replace("--", "--[no-]", 1)
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class CommandParser(argparse.ArgumentParser):
    """A parser with this help and without abbreviated flags; parsers of sub-commands are alike."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        shared: dict[str, Any] = {"formatter_class": HelpFormatter, "allow_abbrev": False}
        super().__init__(*arguments, **(shared | options))


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add every flag that says which model is loaded, and where."""
    group = parser.add_argument_group("which model and where (also by DEEPSEEK_OCR_MODEL, …)")
    for add in (add_model, add_placement, add_speed, add_config):
        add(group)


def load_settings(flags: argparse.Namespace) -> configuration.Settings:
    """The settings that the flags of `add_settings`, the environment and the file give. Raises
    `SettingsError`."""
    return configuration.load(vars(flags), path=flags.config)


def add_model(group: argparse._ActionsContainer) -> None:
    """Add the model and the device."""
    names = ", ".join(catalog.CHECKPOINTS)
    group.add_argument("--model", metavar="NAME|FOLDER", help=f"{names}, or a checkpoint folder")
    group.add_argument("--device", help="auto, cpu, cuda, cuda:1, mps, npu (default: auto)")


def add_placement(group: argparse._ActionsContainer) -> None:
    """Add where models are kept, the device of the encoders, and the type of numbers."""
    group.add_argument("--checkpoints", metavar="FOLDER", help="where named models are kept")
    text = "device of the encoders (default: --device)"
    group.add_argument("--vision-device", metavar="DEVICE", help=text)
    group.add_argument("--dtype", help="auto, bfloat16, float16, float32 (default: auto)")


def add_speed(group: argparse._ActionsContainer) -> None:
    """Add the flags that change how fast pages are read."""
    text = f"weights quantized: {', '.join(QUANTS)} (default: none)"
    group.add_argument("--quant", metavar="NAME", help=text)
    text = f"fast paths: auto (all, the default), plain (none), {', '.join(choice.NAMES)}"
    text += "; a - leaves one out: auto,-compiled"
    group.add_argument("--kernels", metavar="A,B", help=text)
    text = "pages at once, or auto by memory (default)"
    group.add_argument("--slots", metavar="N", help=text)


def add_config(group: argparse._ActionsContainer) -> None:
    """Add the file with settings."""
    path, home = str(configuration.default_path()), os.path.expanduser("~")
    shown = path.replace(home, "~", 1) if path.startswith(home + os.sep) else path
    text = f"TOML file ({shown.replace('%', '%%')})"
    group.add_argument("--config", type=Path, metavar="FILE", help=text)


def named(find: Callable[[str], str]) -> Callable[[str], str]:
    """An argparse type of the names that `find` knows: its `SettingsError` becomes argparse's own
    complaint."""

    def convert(text: str) -> str:
        try:
            return find(text)
        except SettingsError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert
