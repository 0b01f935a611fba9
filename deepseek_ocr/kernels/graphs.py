"""Decoding steps replayed as CUDA graphs: one launch a step instead of hundreds.

All graphs of a decoder are captured when it is made, on one stream and into one pool of memory:
what a graph computes with is free for the next one, and the logits leave through a tensor outside
of the pool.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch

from deepseek_ocr.kernels.cache import SlotCache
from deepseek_ocr.kernels.steps import SPAN, TorchSteps
from deepseek_ocr.kernels.weights import Weights

Run = Callable[[], None]

_CAPTURING = threading.Lock()
"""torch allows one capture at a time in a process."""

_WAITS = "called a synchronizing CUDA operation"
"""How torch's warning about an operation that makes the host wait begins."""

_FIXED = "2.12"
"""The first torch whose allocator knows that a failed capture has ended (pytorch#180395)."""


@contextmanager
def _watch_for_waits() -> Iterator[list[str]]:
    """Lists the places, `file:line`, at which this thread waits for the card meanwhile.

    torch's mode and Python's filters count for the whole process, so other threads may be warned
    too; what they do is neither listed nor shown.
    """
    thread, found, before = threading.get_ident(), [], torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Synchronization debug mode is a prototype")
        warnings.filterwarnings("always", _WAITS)
        show = warnings.showwarning

        def note(message, category, filename, lineno, file=None, line=None):  # type: ignore[no-untyped-def]
            if not str(message).startswith(_WAITS):
                show(message, category, filename, lineno, file, line)
            elif threading.get_ident() == thread:
                found.append(f"{filename}:{lineno}")

        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)


class Recorder:
    """Captures graphs on one card, all on one stream and into one pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, run: Run) -> Run:
        """`run`, which works in buffers that stay where they are, as one graph.

        Raises `RuntimeError` if `run` waits for the card (found before the capture begins), and
        what torch raises if a capture fails. The stream and the allocator are usable afterwards.
        """
        with _CAPTURING, torch.cuda.device(self._device):
            current = torch.cuda.current_stream()
            self._stream.wait_stream(current)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.stream(self._stream):
                    self._warm_up(run)
                    self._record(graph, run)
            finally:
                current.wait_stream(self._stream)
        return graph.replay

    def _warm_up(self, run: Run) -> None:
        """Let libraries make their workspaces, and see whether anything waits for the card."""
        with _watch_for_waits() as waits:
            run()
        if waits:
            raise RuntimeError(f"an operation waits for the card at {waits[0]}")
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # so that the pool finds room

    def _record(self, graph: torch.cuda.CUDAGraph, run: Run) -> None:
        # Thread-local: other threads may allocate memory or load a model meanwhile.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            run()
        except BaseException:
            with suppress(RuntimeError):  # the capture is void; the first error says why
                self._end(graph)
            raise
        self._end(graph)

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            if torch.__version__ < _FIXED:
                with suppress(RuntimeError):  # it had left the pool already
                    torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), self._pool)
                    torch._C._cuda_releasePool(torch.cuda.current_device(), self._pool)
            raise


class GraphSteps(TorchSteps):
    """Steps captured for each number of rows (powers of two, and all slots) and each span (powers
    of two from `SPAN`, and the whole capacity), when they are made; the cache must not move."""

    def __init__(self, weights: Weights, cache: SlotCache) -> None:
        super().__init__(weights, cache)
        slots, recorder = len(cache.lengths), Recorder(weights.device)
        self._rows, self._spans = _powers(1, slots), _powers(SPAN, cache.capacity)
        self._logits = torch.empty(slots, weights.head.values.shape[0], device=weights.device)
        with torch.inference_mode():
            self._replays = {
                (rows, span): recorder.capture(partial(self._compute, rows, span))
                for rows in reversed(self._rows)  # the largest first, so that the pool grows once
                for span in reversed(self._spans)
            }

    def rows(self, needed: int) -> int:
        """See `TorchSteps.rows`."""
        return next(rows for rows in self._rows if rows >= needed)

    def span(self, needed: int) -> int:
        """See `TorchSteps.span`."""
        return next(span for span in self._spans if span >= needed)

    def run(self, rows: int, span: int) -> torch.Tensor:
        """See `TorchSteps.run`."""
        self._replays[rows, span]()
        return self._logits[:rows]

    def _compute(self, rows: int, span: int) -> None:
        self._logits[:rows] = super().run(rows, span)


def _powers(first: int, last: int) -> list[int]:
    """`first`, twice that and so on below `last`, and `last`."""
    numbers = []
    while first < last:
        numbers.append(first)
        first *= 2
    return [*numbers, last]
