"""`deepseek-ocr devices`: what is here, what would be chosen and why, and what fits."""

from __future__ import annotations

import argparse

from deepseek_ocr.cli.flags import Subparsers, add_settings, load_settings

_DESCRIPTION = """\
List the devices that are here with their memory and types, what would be chosen and why, the fast
paths that would be used, and what each preset takes.
"""


def add_parser(commands: Subparsers) -> None:
    """Add the sub-command."""
    parser = commands.add_parser("devices", description=_DESCRIPTION)
    add_settings(parser)
    parser.set_defaults(run=run)


def run(flags: argparse.Namespace) -> int:
    """Print the report; the exit status. Raises `SettingsError`, and `DeviceError` if the device
    asked for is not here."""
    settings = load_settings(flags)
    from deepseek_ocr.cli import device_report  # imports torch: seconds

    return device_report.show(settings)
