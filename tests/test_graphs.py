"""How graphs are captured: one stream and one pool a decoder, on its card, and a way back.

`Cuda` stands in for the part of `torch.cuda` that a capture uses, with its rules: what waits for
the card is warned of in the mode "warn" and voids a capture; a void capture raises when it ends.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from deepseek_ocr.decoding.decoder import PlainDecoder
from deepseek_ocr.kernels import cuda_graphs
from deepseek_ocr.kernels.cuda_graphs import GraphRecorder
from deepseek_ocr.kernels.rehearsal import CONTEXT, LENGTHS, difference, play
from deepseek_ocr.kernels.slot_decoder import GRAPHS, SlotDecoder
from deepseek_ocr.model.loader import load_network
from tests.conftest import GOLDEN
from tests.recorder import Recorder


class Stream:
    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: Stream) -> None:
        self.waited_for.append(other)


class Cuda:
    """Two cards, whose current stream and device count per thread."""

    def __init__(self) -> None:
        self.here = threading.local()
        self.main = {index: Stream(torch.device("cuda", index)) for index in (0, 1)}
        self.pools = 0
        self.mode = 0
        self.capturing: Graph | None = None
        self.began: list[Graph] = []
        self.allocator: list[object] = []
        self.fails_at = ""
        self.generator_captures = False  # until a capture ends well

    def device_index(self) -> int:
        return getattr(self.here, "index", 0)

    def current_stream(self) -> Stream:
        return getattr(self.here, "stream", None) or self.main[self.device_index()]

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before = self.device_index()
        self.here.index = device.index
        try:
            yield
        finally:
            self.here.index = before

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = getattr(self.here, "stream", None)
        self.here.stream = stream
        try:
            yield
        finally:
            self.here.stream = before

    def pool(self) -> tuple[int, int]:
        self.pools += 1
        return (0, self.pools)

    def set_mode(self, mode: int | str) -> None:
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
        self.mode = {"default": 0, "warn": 1, "error": 2}.get(mode, mode)  # type: ignore[arg-type,assignment]

    def wait(self) -> None:
        """What an operation does that makes the host wait for the card."""
        if self.capturing is not None:
            self.capturing.is_void = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if self.mode == 1:
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)


class Graph:
    """One graph; `cuda` is set by the fixture."""

    cuda: Cuda

    def __init__(self) -> None:
        self.is_void = False
        self.replayed = 0

    def fail_at(self, where: str) -> None:
        if self.cuda.fails_at == where:
            self.cuda.fails_at = ""
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    def capture_begin(self, pool: object = None, capture_error_mode: str = "global") -> None:
        assert self.cuda.capturing is None, "one capture at a time"
        self.fail_at("begin")
        self.cuda.generator_captures = True
        self.pool, self.mode, self.begun_on = pool, capture_error_mode, self.cuda.current_stream()
        assert self.begun_on not in self.cuda.main.values()
        assert self.begun_on.device.index == self.cuda.device_index()
        self.cuda.capturing = self
        self.cuda.began.append(self)

    def capture_end(self) -> None:
        if self.cuda.capturing is not self:
            raise RuntimeError("capture_end without a capture")
        assert self.cuda.current_stream() is self.begun_on
        self.cuda.capturing = None
        self.fail_at("end")
        if self.is_void:
            raise RuntimeError("CUDA error: operation failed due to a previous error in capture")
        self.cuda.generator_captures = False

    def replay(self) -> None:
        self.replayed += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    fake = Cuda()
    graph = type("Graph", (Graph,), {"cuda": fake})
    for name, stand_in in {
        "Stream": Stream, "CUDAGraph": graph, "stream": fake.stream, "device": fake.device,
        "current_stream": fake.current_stream, "current_device": fake.device_index,
        "graph_pool_handle": fake.pool, "get_sync_debug_mode": lambda: fake.mode,
        "set_sync_debug_mode": fake.set_mode, "synchronize": lambda: None,
        "empty_cache": lambda: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device: zeros(*shape))
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(
            torch._C, name, lambda index, pool, name=name: fake.allocator.append((name, index)),
            raising=False,
        )  # fmt: skip
    return fake


def card(index: int) -> torch.device:
    return torch.device("cuda", index)


def test_graphs_of_a_decoder_share_a_stream_and_a_pool_on_its_card(cuda: Cuda) -> None:
    devices: list[int] = []
    for index in (0, 1):
        recorder = GraphRecorder(card(index))
        for _ in range(3):
            recorder.capture(lambda: devices.append(cuda.device_index()))
    assert devices == [0] * 6 + [1] * 6  # a warm-up and the capture, each
    first, second = cuda.began[:3], cuda.began[3:]
    for own in (first, second):
        assert len({id(graph.begun_on) for graph in own}) == len({graph.pool for graph in own}) == 1
    assert first[0].pool != second[0].pool
    assert first[0].begun_on is not second[0].begun_on
    assert {graph.mode for graph in cuda.began} == {"thread_local"}
    assert cuda.device_index() == 0


def test_what_is_captured_is_in_order_with_what_the_caller_does(cuda: Cuda) -> None:
    GraphRecorder(card(1)).capture(lambda: None)
    (graph,) = cuda.began
    assert graph.begun_on.waited_for == [cuda.main[1]]
    assert cuda.main[1].waited_for == [graph.begun_on]
    assert cuda.current_stream() is cuda.main[0]


def test_a_graph_is_replayed(cuda: Cuda) -> None:
    replay = GraphRecorder(card(0)).capture(lambda: None)
    replay()
    replay()
    assert cuda.began[0].replayed == 2


def test_what_waits_for_the_card_is_found_before_a_capture(cuda: Cuda) -> None:
    with pytest.raises(RuntimeError, match=rf"waits for the card at {__file__}:\d+"):
        GraphRecorder(card(0)).capture(cuda.wait)
    assert not cuda.began
    assert cuda.mode == 0


def test_what_waits_in_another_thread_does_not_count_and_is_not_shown(cuda: Cuda) -> None:
    problems: list[BaseException] = []

    def wait() -> None:
        try:
            cuda.wait()
        except BaseException as error:
            problems.append(error)

    def run() -> None:
        if cuda.capturing is None:
            other = threading.Thread(target=wait)
            other.start()
            other.join()

    GraphRecorder(card(0)).capture(run)
    assert len(cuda.began) == 1
    assert not problems


def test_other_warnings_meanwhile_are_shown(cuda: Cuda) -> None:
    def run() -> None:
        if cuda.capturing is None:
            warnings.warn("something else", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="something else"):
        GraphRecorder(card(0)).capture(run)


@pytest.mark.parametrize(("version", "keeps"), [("2.8.0+cu128", True), ("2.14.0+cu130", False)])
@pytest.mark.parametrize("where", ["operation", "begin", "end"])
def test_a_capture_that_fails_leaves_stream_and_allocator_usable(
    cuda: Cuda, where: str, version: str, keeps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    cuda.fails_at = where

    def run() -> None:
        if cuda.capturing is not None and where == "operation":
            cuda.wait()

    recorder = GraphRecorder(card(1))
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        recorder.capture(run)
    names = ["_cuda_endAllocateToPool", "_cuda_releasePool"]
    assert cuda.allocator == [(name, 1) for name in names[: 1 + keeps]]
    assert not cuda.generator_captures
    assert cuda.current_stream() is cuda.main[0]
    assert cuda.device_index() == 0
    recorder.capture(lambda: None)  # and the next one works


def test_an_error_that_leaves_the_capture_whole_gives_nothing_back_twice(cuda: Cuda) -> None:
    def run() -> None:
        if cuda.capturing is not None:
            raise ValueError("of Python alone")

    with pytest.raises(ValueError, match="of Python alone"):
        GraphRecorder(card(0)).capture(run)
    assert cuda.capturing is None
    assert not cuda.allocator


def test_captures_of_two_threads_do_not_overlap(cuda: Cuda) -> None:
    both = threading.Barrier(2)
    problems: list[BaseException] = []

    def run() -> None:
        if cuda.capturing is not None:
            threading.Event().wait(0.001)  # the other thread has its turn

    def work(index: int) -> None:
        try:
            both.wait()
            recorder = GraphRecorder(card(index))
            for _ in range(20):
                recorder.capture(run)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert len(cuda.began) == 40


class Counted(Recorder):
    """Counts what it captures."""

    captured = 0

    def capture(self, run: cuda_graphs.Run) -> cuda_graphs.Run:
        type(self).captured += 1
        return super().capture(run)


@pytest.mark.parametrize(
    ("slots", "context", "count"), [(1, 64, 1), (5, 64, 4), (5, 1500, 12), (9, 1024, 10)]
)
def test_all_graphs_are_captured_before_the_first_page(
    slots: int, context: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows: powers of two, and all slots; spans: 512, 1024, … and the context."""
    recorder: Any = type("Own", (Counted,), {"captured": 0})
    monkeypatch.setattr(cuda_graphs, "GraphRecorder", recorder)
    network = load_network(GOLDEN / "checkpoint", "cpu", "float32")
    ours = SlotDecoder(network, slots, context, GRAPHS)
    assert recorder.captured == count
    plain = PlainDecoder(network, slots)
    if slots >= len(LENGTHS) and context >= CONTEXT:
        assert difference(play(ours, network), play(plain, network))[0] < 1e-5
    lengths = [context - 2] + [1] * (slots - 1)
    hidden = network.config.text_config.hidden_size
    for slot, length in enumerate(lengths):
        prompt = torch.randn(1, length, hidden, generator=torch.Generator().manual_seed(slot))
        ours.prefill(slot, prompt)
        plain.prefill(slot, prompt)
    for slots_of_step in ([0], list(range(slots))):
        ids = [5 + slot for slot in slots_of_step]
        torch.testing.assert_close(
            ours.step(slots_of_step, ids), plain.step(slots_of_step, ids), rtol=1e-4, atol=1e-4
        )
    assert recorder.captured == count
