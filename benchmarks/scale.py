"""Cost of a page against its number of tiles, its length, and the pages in flight.

    python -m benchmarks.scale [--device cpu] [--dtype bfloat16] [--tokens 48] [--pages 4]

This project alone, on the random checkpoint of `benchmarks.page_speed`. Seconds are medians; the last
column is what one more tile, token or page costs, which must not grow with their number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial

import torch

from benchmarks import machine, page_stages
from benchmarks.page_speed import parser, provide
from deepseek_ocr.images import views
from deepseek_ocr.kernels import choice
from deepseek_ocr.model import network

TILES = (0, 2, 4, 6, 9)


def main() -> None:
    """Command line."""
    flags = parser(__doc__).parse_args()
    provide(flags.checkpoint)
    chosen = choice.parse(flags.kernels)
    ways = page_stages.load(flags.checkpoint, flags.device, flags.dtype, chosen, flags.quant)
    tables = {
        "tiles": list(by_tiles(ways, flags.repeat)),
        "output tokens": list(by_length(ways, flags.tokens, flags.repeat)),
        "pages in flight": list(by_pages(ways, flags.pages, flags.tokens, flags.repeat)),
    }
    for name, points in tables.items():
        _print(name, points)
    if flags.json:
        figures = {"machine": machine.describe(ways.ours.device), "points": tables}
        flags.json.write_text(json.dumps(figures, indent=1))


Point = tuple[int, float, int]
"""How many, seconds, bytes at most."""


def by_tiles(ways: page_stages.Ways, repeat: int) -> Iterator[Point]:
    """Vision of a global view and so many tiles."""
    for count in TILES:
        yield _point(ways, count, repeat, partial(network.vision_tokens, ways.ours, _views(count)))


def by_length(ways: page_stages.Ways, tokens: int, repeat: int) -> Iterator[Point]:
    """Prefill and so many tokens of one page."""
    embeddings = _embeddings(ways)
    lengths = [tokens, 2 * tokens, 4 * tokens]
    decoder = ways.decoder(1, embeddings.shape[1] + lengths[-1] + 1)
    for length in lengths:
        run = partial(page_stages.our_times, decoder, embeddings, length, 1)
        yield _point(ways, length, repeat, run)


def by_pages(ways: page_stages.Ways, most: int, tokens: int, repeat: int) -> Iterator[Point]:
    """Prefill and `tokens` tokens of so many pages at once."""
    embeddings = _embeddings(ways)
    decoder = ways.decoder(most, embeddings.shape[1] + tokens + 1)
    count = 1
    while count <= most:
        run = partial(page_stages.our_times, decoder, embeddings, tokens, count)
        yield _point(ways, count, repeat, run)
        count *= 2


def _point(ways: page_stages.Ways, count: int, repeat: int, call: Callable[[], object]) -> Point:
    device = ways.ours.device
    seconds = page_stages.in_turn([call], repeat, device)[0]
    return count, seconds, machine.peak_memory(device, call)


def _views(tiles: int) -> views.Views:
    grid = (tiles, 1) if tiles else (1, 1)
    return views.Views(torch.zeros(3, 1024, 1024), torch.zeros(tiles, 3, 640, 640), grid)


def _embeddings(ways: page_stages.Ways) -> torch.Tensor:
    ids = page_stages.prompt(_views(0), ways.ours)
    return network.embed(ways.ours, ids, network.vision_tokens(ways.ours, _views(0)), 1)


def _print(name: str, points: list[Point]) -> None:
    print(f"\n{name:>16}{'s':>10}{'MB at most':>12}{'s for one more':>16}")
    before: Point | None = None
    for point in points:
        count, seconds, peak = point
        more = "–" if before is None else f"{(seconds - before[1]) / (count - before[0]):.4f}"
        print(f"{count:>16}{seconds:>10.3f}{peak / 1e6:>12.0f}{more:>16}")
        before = point


if __name__ == "__main__":
    main()
