"""Seconds of calls: one by itself, or several in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.utils.benchmark import Timer

from deepseek_ocr.devices import selection

CPU = torch.device("cpu")

WARM_UP, TIMED = 0.3, 0.5
"""Seconds for which a short call is repeated before it is timed, and while it is."""


def in_turn(
    calls: Mapping[str, Callable[[], object]],
    repeat: int,
    device: torch.device = CPU,
    warm_up: int = 1,
) -> dict[str, list[float]]:
    """Seconds of each call in `repeat` turns, after `warm_up` turns that do not count. They take
    turns, so that a machine whose speed drifts favours none."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + repeat):
        for name, call in calls.items():
            selection.synchronize(device)
            began = time.perf_counter()
            call()
            selection.synchronize(device)
            if turn >= warm_up:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def medians(found: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(some) for name, some in found.items()}


@torch.inference_mode()
def seconds_of(device: torch.device, call: Callable[[], object]) -> float:
    """Seconds of one short `call`, by torch's timer for `TIMED` seconds.

    `WARM_UP` seconds do not count, as a card's clock rate rises with work. Of the CPU the least
    time counts, as other programs can only add to it, elsewhere the median.
    """
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    with selection.current(device):
        timer.blocked_autorange(min_run_time=WARM_UP)
        measured = timer.blocked_autorange(min_run_time=TIMED)
    return min(measured.times) if device.type == "cpu" else measured.median
