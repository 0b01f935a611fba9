"""How far a figure might be off: bootstrap confidence intervals over pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000
LEVEL = 0.95
SEED = 20_251_020

Share = tuple[float, float]
"""What one page adds to a figure, above and below the line: (edits, characters), (score, 1)."""


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval.

    - `value`: the sum above the line over the sum below; `pages`: how many had a part in it
    - `low`, `high`: bounds of the 95 % interval; None if there are fewer than two pages
    """

    value: float
    low: float | None
    high: float | None
    pages: int


def by_page(
    parts: Sequence[tuple[str, Mapping[str, Share]]], names: Iterable[str]
) -> dict[str, list[Share]]:
    """For each figure of `names` one share a page: what the `parts` (a page, and what it adds to
    some figures) have of it, added up; (0, 0) if they have nothing."""
    pages = {page: at for at, page in enumerate(dict.fromkeys(page for page, _ in parts))}
    table: dict[str, list[Share]] = {name: [(0.0, 0.0)] * len(pages) for name in names}
    for page, shares in parts:
        for name, (above, below) in shares.items():
            before = table[name][pages[page]]
            table[name][pages[page]] = (before[0] + above, before[1] + below)
    return table


def figures(shares: Mapping[str, Sequence[Share]], seed: int = SEED) -> dict[str, Estimate]:
    """Every figure of `shares`, which give one share a page, all in the same order of pages.

    Pages are drawn with replacement `RESAMPLES` times, the same pages for all figures, and the
    figure is computed anew from each draw; its interval is what the middle 95 % of them span. A
    page with (0, 0) has no part in a figure; a figure in which no page has one is left out.
    """
    tables = {name: np.array(values, dtype=np.float64) for name, values in shares.items()}
    tables = {name: table for name, table in tables.items() if table.size and table[:, 1].any()}
    draws = _draws(tables, seed)
    return {name: _figure(table, draws[name]) for name, table in tables.items()}


def _draws(tables: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Per figure `[RESAMPLES, 2]`: the sums above and below the line of each draw."""
    sums = {name: np.empty((RESAMPLES, 2)) for name in tables}
    if not tables:
        return sums
    generator = np.random.default_rng(seed)
    pages = len(next(iter(tables.values())))
    for at in range(RESAMPLES):
        times = np.bincount(generator.integers(0, pages, pages), minlength=pages)
        for name, table in tables.items():
            sums[name][at] = times @ table
    return sums


def _figure(table: np.ndarray, draws: np.ndarray) -> Estimate:
    above, below = table.sum(0)
    pages = int((table[:, 1] > 0).sum())
    if pages < 2:
        return Estimate(float(above / below), None, None, pages)
    usable = draws[draws[:, 1] > 0]
    rest = (1 - LEVEL) / 2 * 100
    low, high = np.percentile(usable[:, 0] / usable[:, 1], [rest, 100 - rest])
    return Estimate(float(above / below), float(low), float(high), pages)
