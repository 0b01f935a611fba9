"""Cost of a page against its number of tiles, its length, and the pages in flight.

    python -m benchmarks.scale [--device cpu] [--dtype bfloat16] [--tokens 48] [--pages 4]

This project alone, on the random checkpoint of `benchmarks.page_speed`. Seconds are medians; the
last column is what one more tile, token or page costs, which must not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks import command, machine, page_stages
from benchmarks.page_speed import model_parser
from benchmarks.page_stages import NetworkPair, our_times, views_of
from benchmarks.random_checkpoint import provide
from benchmarks.timing import in_turn
from deepseek_ocr.model.network import vision_tokens

TILES = (0, 2, 4, 6, 9)

Point = tuple[int, float, int]
"""How many, seconds, bytes at most."""


def main() -> None:
    """Command line."""
    flags = model_parser("scale", __doc__).parse_args()
    provide(flags.checkpoint)
    pair = page_stages.load_pair(
        flags.checkpoint, flags.device, flags.dtype, flags.kernels, flags.quant
    )
    tables = {
        "tiles": list(by_tiles(pair, flags.repeat)),
        "output tokens": list(by_length(pair, flags.tokens, flags.repeat)),
        "pages in flight": list(by_pages(pair, flags.pages, flags.tokens, flags.repeat)),
    }
    for name, points in tables.items():
        _print(name, points)
    figures = {"machine": machine.describe(pair.ours.device), "points": tables}
    command.write_json(flags.json, figures)


def by_tiles(pair: NetworkPair, repeat: int) -> Iterator[Point]:
    """Vision of a global view and so many tiles."""
    for count in TILES:
        yield _point(pair, count, repeat, partial(vision_tokens, pair.ours, views_of(1024, count)))


def by_length(pair: NetworkPair, tokens: int, repeat: int) -> Iterator[Point]:
    """Prefill and so many tokens of one page."""
    length = page_stages.prompt_length(pair.ours)
    embeddings = page_stages.prompt_of(pair.ours, length)
    decoder = pair.decoder(1, length + 4 * tokens + 1)
    for count in (tokens, 2 * tokens, 4 * tokens):
        yield _point(pair, count, repeat, partial(our_times, decoder, embeddings, count, 1))


def by_pages(pair: NetworkPair, most: int, tokens: int, repeat: int) -> Iterator[Point]:
    """Prefill and `tokens` tokens of so many pages at once."""
    length = page_stages.prompt_length(pair.ours)
    embeddings = page_stages.prompt_of(pair.ours, length)
    decoder = pair.decoder(most, length + tokens + 1)
    count = 1
    while count <= most:
        yield _point(pair, count, repeat, partial(our_times, decoder, embeddings, tokens, count))
        count *= 2


def _point(pair: NetworkPair, count: int, repeat: int, call: Callable[[], object]) -> Point:
    device = pair.ours.device
    seconds = in_turn({"s": call}, repeat, device)["s"]
    return count, seconds, machine.peak_memory(device, call)


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
