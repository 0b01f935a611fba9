"""The programs `ocr.py` and `serve.py` of earlier releases: a notice, then the new command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from deepseek_ocr.cli.commands import COMMANDS, build_parser
from deepseek_ocr.cli.main import main
from deepseek_ocr.console import complain

_COMMANDS = {
    "--init-config": ["config", "init"],
    "--print-config": ["config", "show"],
    "--doctor": ["doctor"],
}
"""Flags that were commands, and what they are now; the first that is there counts."""


def run_script(script: str, command: str) -> int:
    """Do what the arguments of this process meant to `script`, whose successor is `command`; the
    exit status."""
    words = translate(sys.argv[1:], command)
    now = " ".join(words[: 2 if words[0] == "config" else 1]) if words[0] in COMMANDS else command
    complain(f"{script} is now: deepseek-ocr {now} …; it goes away in the next release.")
    sys.argv = [sys.argv[0], *words]
    return main()


def translate(words: Sequence[str], command: str) -> list[str]:
    """The arguments of `deepseek-ocr` for the old arguments `words`."""
    if "--version" in words:
        return ["--version"]
    for flag, successor in _COMMANDS.items():
        if flag in words:
            others = [word for word in words if word not in _COMMANDS]
            return [*successor, *_taken(others, successor, command)]
    for at, word in enumerate(words):
        if command == "read" and word == "--devices" and "".join(words[at + 1 : at + 2])[:1] in "-":
            return ["devices", *words[:at], *words[at + 1 :]]  # no names follow
    return [command, *words]


def _taken(words: Sequence[str], successor: Sequence[str], command: str) -> list[str]:
    """`words` without those that only `command` takes: a flag that was a command let them pass."""
    if _unknown(words, [command]):
        return list(words)  # which the successor refuses
    left = list(words)
    for word in _unknown(words, successor):
        left.remove(word)
    return left


def _unknown(words: Sequence[str], command: Sequence[str]) -> list[str]:
    return build_parser(command).parse_known_args([*command, *words])[1]
