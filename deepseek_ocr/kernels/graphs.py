"""Decoding steps replayed as CUDA graphs: one launch a step instead of hundreds."""

from __future__ import annotations

from collections.abc import Callable

import torch

from deepseek_ocr.kernels.cache import SlotCache
from deepseek_ocr.kernels.steps import TorchSteps
from deepseek_ocr.kernels.weights import Weights

Run = Callable[[], torch.Tensor]

_WARM_UP = 2
"""Runs before a capture, in which libraries make their workspaces."""


def capture(run: Run) -> Run:
    """`run`, which works in buffers that stay where they are, as one CUDA graph."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return output

    return replay


class GraphSteps(TorchSteps):
    """Steps captured once per number of rows (powers of two) and span; the cache must not move.

    `capturing` is `capture`, except where there is no GPU.
    """

    def __init__(
        self, weights: Weights, cache: SlotCache, capturing: Callable[[Run], Run] = capture
    ) -> None:
        super().__init__(weights, cache)
        self._capturing = capturing
        self._captured: dict[tuple[int, int], Run] = {}

    def rows(self, needed: int) -> int:
        """The next power of two, or all slots."""
        return min(1 << (needed - 1).bit_length(), len(self._cache.lengths))

    def run(self, rows: int, span: int) -> torch.Tensor:
        """See `TorchSteps.run`; captured at its first call with these numbers."""
        if (rows, span) not in self._captured:
            plain = super().run
            self._captured[rows, span] = self._capturing(lambda: plain(rows, span))
        return self._captured[rows, span]()
