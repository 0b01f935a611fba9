"""The programs `ocr.py` and `serve.py` of earlier releases: a notice, then the new command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from deepseek_ocr.cli.main import main
from deepseek_ocr.console import complain

_COMMANDS = {
    "--doctor": ["doctor"],
    "--init-config": ["config", "init"],
    "--print-config": ["config", "show"],
    "--version": ["--version"],
}
"""Flags that were commands, and what they are now."""


def run_script(script: str, command: str) -> int:
    """Do what the arguments of this process meant to `script`, whose successor is `command`; the
    exit status."""
    words = translate(sys.argv[1:], command)
    complain(f"{script} is now: deepseek-ocr {command} …; it goes away in the next release.")
    sys.argv = [sys.argv[0], *words]
    return main()


def translate(words: Sequence[str], command: str) -> list[str]:
    """The arguments of `deepseek-ocr` for the old arguments `words`."""
    for at, word in enumerate(words):
        others = [*words[:at], *words[at + 1 :]]
        if word in _COMMANDS:
            return [*_COMMANDS[word], *(others if word != "--version" else ())]
        if command == "read" and word == "--devices" and "".join(words[at + 1 : at + 2])[:1] in "-":
            return ["devices", *others]  # no names follow
    return [command, *words]
