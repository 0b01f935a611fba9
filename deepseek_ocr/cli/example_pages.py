"""The example pages that come with the program."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def examples_folder() -> Path:
    """Their folder: inside an installed package, or in the checkout."""
    packaged = _HERE / "examples"
    return packaged if packaged.is_dir() else _HERE.parents[1] / "examples"
