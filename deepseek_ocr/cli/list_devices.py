"""`deepseek-ocr devices`: what is here, what would be chosen and why, and what fits."""

from __future__ import annotations

import argparse

from deepseek_ocr.cli.flags import add_settings, load_settings

DESCRIPTION = """\
List the devices that are here with their memory and types, what would be chosen and why, the fast
paths that would be used, and what each preset takes.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sub-command."""
    add_settings(parser)


def run(flags: argparse.Namespace) -> int:
    """Print the report; the exit status. Raises `SettingsError`, and `DeviceError` if the device
    asked for is not here."""
    settings = load_settings(flags)
    from deepseek_ocr.cli import device_report  # imports torch: seconds

    return device_report.show(settings)
