"""The curriculum of the pocket model: five stages of drawn pages.

The encoders alone learn letters, on pages full of them; then all of it reads short lines, then
lines as long and small as a page holds; then pages of every kind, for every task and preset; at
last clean ones, and empty ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from deepseek_ocr.training.synthetic.recipes import CLEAN_LINES, MIXED, Recipe


@dataclass(frozen=True)
class PageSource:
    """Pages of a recipe seen through a square view of `view` px; `weight` is how often; if not
    `reads`, they are for the encoders alone."""

    recipe: Recipe
    view: int
    weight: float = 1.0
    reads: bool = True


@dataclass(frozen=True)
class Stage:
    """Pages of some recipes, once each.

    - `sources`: what pages are made of
    - `pages`: how many there are, at 512 px (larger views make smaller batches)
    - `batch`: pages a step, at 512 px
    - `tasks`: short names of tasks with weights
    - `lr`: highest learning rate, reached after `warmup` optimiser steps, falling to a twentieth
      if `decays`
    """

    name: str
    sources: tuple[PageSource, ...]
    pages: int
    batch: int = 28
    tasks: dict[str, float] = field(default_factory=lambda: {"ocr": 1.0})
    lr: float = 3e-3
    warmup: int = 30
    decays: bool = False


_LINES = Recipe(smallest=22, largest=52, longest=24, most_lines=9, random_share=0.25, effects=0.05)
"""Pages full of text: what is empty teaches nothing."""

_FEW = replace(_LINES, most_lines=4)

_KINDS = replace(MIXED, smallest=20, largest=48, kinds={"article": 0.5, "table": 0.3, "chart": 0.2})

_SHORT = replace(_LINES, size=(256, 256), longest=9, most_lines=5)

_LARGE = replace(_LINES, smallest=44, largest=104, longest=12, most_lines=4)
"""As large views show the same pages, and as headings are."""

_CLEAN = replace(CLEAN_LINES, random_share=0.1, kinds={"lines": 0.95, "blank": 0.05})
"""What it is measured on, strings that cannot be guessed, and empty pages."""

_SMALL = replace(_CLEAN, smallest=22, largest=32)
"""Where its errors are: as much print in a vision token as there can be."""

_TALL = replace(_CLEAN, smallest=36, largest=68, longest=14)
"""Through large views: print there as it is on a page of few words."""

_FULL = replace(_LINES, kinds={"full": 1.0})

_FULL_LARGE = replace(_FULL, smallest=44, largest=104)


def _seen(view: int, *shares: tuple[Recipe, float], reads: bool = True) -> tuple[PageSource, ...]:
    return tuple(PageSource(recipe, view, weight, reads) for recipe, weight in shares)


STAGES = (
    Stage("glyphs", _seen(512, (_FULL, 0.8), (_FULL_LARGE, 0.2), reads=False), 40_000, batch=24),
    Stage(
        "short lines",
        _seen(256, (_SHORT, 0.8)) + _seen(512, (_FEW, 0.2)),
        50_000,
        tasks={"ocr": 0.95, "locate": 0.05},
    ),
    Stage(
        "lines",
        _seen(512, (_LINES, 0.45), (_FEW, 0.25), (_LARGE, 0.15)) + _seen(256, (_SHORT, 0.15)),
        60_000,
        tasks={"ocr": 0.88, "markdown": 0.05, "locate": 0.07},
    ),
    Stage(
        "pages",
        _seen(512, (_LINES, 0.38), (_FEW, 0.12), (_LARGE, 0.08), (_KINDS, 0.1))
        + _seen(640, (_LINES, 0.12))
        + _seen(1024, (_LINES, 0.2)),
        45_000,
        tasks={"ocr": 0.45, "markdown": 0.3, "locate": 0.23, "figure": 0.02},
    ),
    Stage(
        "clean pages",
        _seen(512, (_SMALL, 0.28), (_CLEAN, 0.16))
        + _seen(512, (replace(_FULL, largest=36), 0.25), reads=False)
        + _seen(512, (_LINES, 0.02), (_LARGE, 0.02), (_KINDS, 0.04))
        + _seen(640, (_CLEAN, 0.06))
        + _seen(1024, (_CLEAN, 0.12), (_TALL, 0.05)),
        108_000,
        tasks={"ocr": 0.62, "markdown": 0.2, "locate": 0.16, "figure": 0.02},
        lr=2e-3,
        decays=True,
    ),
)
"""Each is meant for less than two hours on two cores."""
