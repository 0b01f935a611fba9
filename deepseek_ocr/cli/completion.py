"""`deepseek-ocr completion`: print the completions of a shell."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from deepseek_ocr.cli.commands import COMMANDS, build_parser
from deepseek_ocr.cli.terminal import write

DESCRIPTION = """\
Print a script that lets a shell complete commands, flags and paths.

  bash: deepseek-ocr completion bash > ~/.local/share/bash-completion/completions/deepseek-ocr
  zsh:  deepseek-ocr completion zsh > a folder of $fpath, as _deepseek-ocr
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sub-command."""
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(flags: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    parser = build_parser(COMMANDS)
    _complete_paths(parser)
    write(f"{shtab.complete(parser, flags.shell)}\n")
    return 0


def _complete_paths(parser: argparse.ArgumentParser) -> None:
    """Let every argument that is a file or a folder be completed as one, in all sub-commands."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                _complete_paths(inner)
        elif action.type is Path or re.search("FOLDER|FILE|DIR|PATH", str(action.metavar)):
            vars(action)["complete"] = shtab.FILE
