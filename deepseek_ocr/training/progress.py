"""What a person sees of long work: a bar on a terminal, now and then a plain line in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def track(
    items: Iterable[Item],
    total: int,
    what: str,
    stream: TextIO | None = None,
    every_s: float = 30.0,
) -> Iterator[Item]:
    """Yield `items` and say on `stream` (default: standard error) how many of `total` are done.

    Where nobody watches, a line at most every `every_s` seconds, and one at the end.
    """
    out = stream or sys.stderr
    if out.isatty():
        yield from tqdm(items, total=total, desc=what, file=out, unit="page")
        return
    start = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= every_s:
            last = now
            _line(out, what, done, total, now - start)
    if done:
        _line(out, what, done, total, time.monotonic() - start)


def _line(out: TextIO, what: str, done: int, total: int, seconds: float) -> None:
    out.write(f"{what}: {done} of {total} in {seconds:.0f} s ({done / max(seconds, 1e-3):.2f}/s)\n")
    out.flush()
