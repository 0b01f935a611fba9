"""Memory for weights that are read once for every token, in the largest pages there are."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch

HUGE_PAGE = 2 * 2**20
"""Bytes of the pages of memory that `empty` asks for."""


def empty(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    """A tensor that is not filled, on the processor in pages of 2 MiB where the system has them:
    weights are read a third faster so (benchmarks/README.md). It takes whole pages; one smaller
    than a page, or on another device, is made as usual.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    elsewhere = device is not None and device.type != "cpu"
    if elsewhere or size < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(shape, dtype=dtype, device=device)
    whole = -(-size // HUGE_PAGE) * HUGE_PAGE
    # One page more than needed, so that there is a place in it where one begins.
    held = mmap.mmap(-1, whole + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = -torch.frombuffer(held, dtype=torch.uint8).data_ptr() % HUGE_PAGE
    with suppress(OSError):  # a system built without them: ordinary pages do
        held.madvise(mmap.MADV_HUGEPAGE, start, whole)
    return torch.frombuffer(held, dtype=dtype, count=count, offset=start).view(shape)
