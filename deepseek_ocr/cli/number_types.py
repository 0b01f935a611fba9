"""Argparse types of numbers that several sub-commands take."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0.")
    return int(text)


def whole(text: str) -> int:
    """A whole number of up to nine digits, 0 included."""
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of up to nine digits.")
    return int(text)


def between(least: float, most: float) -> Callable[[str], float]:
    """A number from `least` to `most`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            reason = f"{text!r} is not a number from {least:g} to {most:g}."
            raise argparse.ArgumentTypeError(reason)
        return value

    return convert


share = between(0.0, 1.0)
"""A number from 0 to 1."""
