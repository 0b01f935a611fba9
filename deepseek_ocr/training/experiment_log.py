"""The log of one run: what was asked, with which versions, what came of it."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from deepseek_ocr import __version__
from deepseek_ocr.console import one_line
from deepseek_ocr.files import explain_write_errors

NAME = "experiment_logs.txt"

LIBRARIES = (
    "torch", "transformers", "tokenizers", "accelerate", "peft", "numpy", "pillow", "rapidfuzz",
    "scipy", "apted", "lxml",
)  # fmt: skip


class ExperimentLog:
    """Appends lines with the time to `experiment_logs.txt` in a folder. Every line is on its way to
    the disk when the call returns. Raises `FileWriteError`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME

    def line(self, text: str) -> None:
        """Add one line; line breaks and control characters in it become spaces."""
        stamp = time.strftime("%Y-%m-%d %H:%M:%S%z")
        with explain_write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        append_line(self.path, f"{stamp} {one_line(text, most=2000)}")

    def start(self, program: str, settings: Mapping[str, object]) -> None:
        """Begin a run: the program, every setting, every version that matters."""
        self.line(f"start {program}")
        for name, value in settings.items():
            self.line(f"setting {name} = {value}")
        for name, value in versions().items():
            self.line(f"version {name} = {value}")


def append_line(path: Path, text: str) -> None:
    """Add a line to a file, with the system on return. Raises `FileWriteError`."""
    with explain_write_errors(path), path.open("a", encoding="utf-8", errors="replace") as file:
        file.write(f"{text}\n")


def versions() -> dict[str, str]:
    """Versions of this project, of Python, and of the libraries that figures depend on."""
    known = {"deepseek-ocr": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            known[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            known[name] = "not installed"
    return known
