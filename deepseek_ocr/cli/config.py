"""`deepseek-ocr config`: show the settings that apply, or write a file with all defaults."""

from __future__ import annotations

import argparse

from deepseek_ocr import configuration
from deepseek_ocr.cli.flags import add_config
from deepseek_ocr.cli.serve import add_server_flags, load_server_settings
from deepseek_ocr.cli.terminal import write

DESCRIPTION = "The settings of every command."


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sub-command."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    text = "print the settings that apply, as TOML: flags, variables, the file, defaults"
    usage = "deepseek-ocr config show [options]"
    show = actions.add_parser("show", usage=usage, help=text, description=f"P{text[1:]}.")
    add_server_flags(show)
    show.set_defaults(run=run_show)
    text = "write a file with every setting, its meaning and its default"
    init = actions.add_parser("init", help=text, description=text)
    add_config(init)
    init.set_defaults(run=run_init)


def run_show(flags: argparse.Namespace) -> int:
    """Print the settings; keys are hidden. Raises `SettingsError`."""
    write(configuration.as_toml(*load_server_settings(flags)))
    return 0


def run_init(flags: argparse.Namespace) -> int:
    """Write the file. Raises `SettingsError` if there is one already."""
    write(f"{configuration.write_template(flags.config)}\n")
    return 0
