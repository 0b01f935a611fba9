"""Decoding steps replayed as CUDA graphs: one launch a step instead of hundreds.

All graphs of a decoder are captured when it is made, on one stream and into one pool of memory:
what a graph computes with is free for the next one, and the logits leave through a tensor outside
of the pool.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import torch

from deepseek_ocr.kernels.decoder_weights import DecoderWeights
from deepseek_ocr.kernels.slot_cache import SlotCache
from deepseek_ocr.kernels.torch_steps import SPAN, TorchSteps

Run = Callable[[], None]

_CAPTURING = threading.Lock()
"""torch allows one capture at a time in a process."""

_WAITS = "called a synchronizing CUDA operation"
"""How torch's warning about an operation that makes the host wait begins."""

_KEEPS_POOLS = "2.14"
"""Versions of torch before this one never give the pool of a failed capture back
(pytorch#190308); 2.13 was the last to be looked at."""


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


class GraphRecorder:
    """Captures graphs on one card, all on one stream and into one pool."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._scratch = torch.zeros(1, device=device)

    def capture(self, run: Run) -> Run:
        """`run`, which works in buffers that stay where they are, as one graph. Raises
        `RuntimeError` if `run` waits for the card (found before the capture begins), and what torch
        raises if a capture fails. The stream and the allocator are usable afterwards."""
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
        try:
            # Thread-local: other threads may allocate memory or load a model meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            run()
        except BaseException:  # it says why; that a void capture raises when it ends does not
            with suppress(RuntimeError):
                self._end(graph)
            raise
        self._end(graph)

    def _end(self, graph: torch.cuda.CUDAGraph) -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            self._clean_up()
            raise

    def _clean_up(self) -> None:
        """Undo what a failed capture leaves behind, as far as this torch has not done it."""
        index = torch.cuda.current_device()
        with suppress(RuntimeError):  # from 2.12 or 2.13 on it has ended (pytorch#180395)
            torch._C._cuda_endAllocateToPool(index, self._pool)
        if torch.__version__ < _KEEPS_POOLS:
            with suppress(RuntimeError):
                torch._C._cuda_releasePool(index, self._pool)
        # Random numbers count as being captured until a capture ends well (pytorch#172390).
        with suppress(RuntimeError):
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(capture_error_mode="thread_local")
            self._scratch.zero_()
            graph.capture_end()


class GraphSteps(TorchSteps):
    """Steps captured for each number of rows (powers of two, and all slots) and each span (powers
    of two from `SPAN`, and the whole capacity), when they are made; the cache must not move."""

    def __init__(self, weights: DecoderWeights, cache: SlotCache) -> None:
        super().__init__(weights, cache)
        slots, recorder = len(cache.lengths), GraphRecorder(weights.device)
        self._rows, self._spans = _powers(1, slots), _powers(SPAN, cache.capacity)
        self._logits = torch.empty(slots, weights.head.values.shape[0], device=weights.device)
        with _without_collections():
            self._replays = {
                (rows, span): recorder.capture(partial(self._compute, rows, span))
                for rows in reversed(self._rows)  # the largest first, so that the pool grows once
                for span in reversed(self._spans)
            }

    def shapes(self) -> list[tuple[int, int]]:
        """Numbers of rows and spans that were captured."""
        return list(self._replays)

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

    @torch.inference_mode()
    def first_tokens(self, ids: torch.Tensor, span: int) -> torch.Tensor:
        """Logits `[rows, V]` if `ids [rows]` are the first tokens of as many pages, by the graph of
        that shape; no slot may hold a page."""
        self._given[0, : len(ids)] = ids
        self._given[1] = 0
        return self.run(len(ids), span)

    @torch.inference_mode()
    def _compute(self, rows: int, span: int) -> None:
        self._logits[:rows] = super().run(rows, span)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Collects garbage before and not meanwhile: a graph that is destroyed during a capture voids
    it."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _powers(first: int, last: int) -> list[int]:
    """`first`, twice that and so on below `last`, and `last`."""
    numbers = []
    while first < last:
        numbers.append(first)
        first *= 2
    return [*numbers, last]
