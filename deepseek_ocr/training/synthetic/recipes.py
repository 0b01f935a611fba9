"""What synthetic pages are made of. Imports neither numpy nor Pillow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from deepseek_ocr.errors import SettingsError

FontSet = Literal["train", "held-out", "all"]
"""Fonts that models are trained on, those that none is trained on, or both."""

KINDS = ("lines", "full", "article", "table", "chart", "blank")

DRAWN_KINDS = tuple(kind for kind in KINDS if kind != "blank")
"""Kinds that a data set may hold: an empty page has an empty annotation."""


@dataclass(frozen=True)
class Recipe:
    """What pages are made of.

    - `size`: width and height, px; `kinds`: how often each of `KINDS` (weights)
    - `smallest`, `largest`: font sizes, px to the em; `longest`: characters in a line
    - `most_lines`: lines on a page of kind "lines"; `random_share`: lines of random characters
    - `effects`: share of pages that are noisy, blurred, turned by up to two degrees, compressed
      (each on its own)
    - `dark`: share of pages with light text on a dark ground
    """

    size: tuple[int, int] = (512, 512)
    kinds: dict[str, float] = field(default_factory=lambda: {"lines": 1.0})
    smallest: int = 24
    largest: int = 48
    longest: int = 22
    most_lines: int = 6
    random_share: float = 0.2
    effects: float = 0.15
    dark: float = 0.05
    font_set: FontSet = "train"

    def __post_init__(self) -> None:
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise SettingsError(f"Page kinds are {', '.join(KINDS)}; not {', '.join(self.kinds)}.")
        if not 4 <= self.smallest <= self.largest <= min(self.size):
            raise SettingsError(
                f"Font sizes {self.smallest} to {self.largest} px do not fit a page of "
                f"{self.size[0]} x {self.size[1]} px; choose smaller ones."
            )


MIXED = Recipe(kinds={"lines": 0.5, "article": 0.25, "table": 0.15, "chart": 0.1})
"""Pages of every kind."""

CLEAN_LINES = Recipe(random_share=0.0, effects=0.0, dark=0.0)
"""Clean printed English, up to six lines of up to 22 characters at 24 to 48 px."""
