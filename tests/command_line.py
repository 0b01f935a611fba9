"""What a command line means, without running it."""

from __future__ import annotations

import argparse

from deepseek_ocr.cli.commands import build_parser
from deepseek_ocr.cli.read_options import ReadOptions, read_options


def flags_of(command: str, *arguments: str) -> argparse.Namespace:
    """The flags of `deepseek-ocr COMMAND ARGUMENTS`."""
    return build_parser([command]).parse_args([command, *arguments])


def read_options_of(*arguments: str) -> ReadOptions:
    """What `deepseek-ocr read ARGUMENTS` is asked for."""
    return read_options(flags_of("read", *arguments))
