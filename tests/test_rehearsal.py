"""The rehearsal at load: a path that raises or is wrong gives way; running out of memory
does not count against it.

The CPU plays the card: candidates are given by hand, and CUDA's part of a capture is a stand-in.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.unlimited_ocr import modeling_unlimited_ocr as modeling

from deepseek_ocr.decoding.decoder import PlainDecoder
from deepseek_ocr.devices import selection as devices
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.errors import DeviceError
from deepseek_ocr.images.views import Views
from deepseek_ocr.kernels import (
    choice,
    cuda_graphs,
    rehearsal,
    sam_attention,
    slot_decoder,
    torch_steps,
    vision,
)
from deepseek_ocr.kernels.decoder_factory import DecoderFactory
from deepseek_ocr.kernels.rehearsal import OutputRow, PathSelection
from deepseek_ocr.kernels.slot_decoder import GRAPHS, TORCH, SlotDecoder
from deepseek_ocr.model import network as model
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network
from tests.conftest import GOLDEN, POCKET
from tests.recorder import Recorder


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setattr(cuda_graphs, "GraphRecorder", Recorder)
    return Recorder


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def network(request: pytest.FixtureRequest) -> Network:
    return load_network(GOLDEN / "checkpoint", "cpu", request.param)


@pytest.fixture
def single() -> Network:
    return load_network(GOLDEN / "checkpoint", "cpu", "float32")


def selected(network: Network, *attentions: str) -> tuple[str, list[str]]:
    """The attention and the names of the paths that a card with graphs ends with."""
    attention, paths, _ = rehearsal.select_decoder(
        network, attentions or ("sdpa",), (GRAPHS, TORCH)
    )
    return attention, [path.name for path in paths]


BOTH = [GRAPHS.name, TORCH.name]


@pytest.mark.usefixtures("recorder")
def test_what_is_right_is_taken(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    attention, paths, far = rehearsal.select_decoder(network, ("sdpa",), (GRAPHS, TORCH))
    assert (attention, paths) == ("sdpa", (GRAPHS, TORCH))
    assert far is not None
    assert 0 < far <= rehearsal.TOLERANCES[network.dtype] / 2
    assert not caplog.records


def test_a_capture_that_raises_leaves_torch_s_operations(
    single: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refused(Recorder):
        def capture(self, run: cuda_graphs.Run) -> cuda_graphs.Run:
            raise RuntimeError(
                "CUDA error: operation not permitted when stream is capturing\nCUDA kernel …"
            )

    monkeypatch.setattr(cuda_graphs, "GraphRecorder", Refused)
    assert selected(single) == ("sdpa", [TORCH.name])
    (record,) = caplog.records
    assert record.getMessage() == (
        "cpu: going on without CUDA graphs, more slowly: "
        "RuntimeError: CUDA error: operation not permitted when stream is capturing"
    )


def test_a_graph_that_replays_its_first_answer_is_found(
    single: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Stale(Recorder):
        def capture(self, run: cuda_graphs.Run) -> cuda_graphs.Run:
            run()
            return lambda: None

    monkeypatch.setattr(cuda_graphs, "GraphRecorder", Stale)
    assert selected(single) == ("sdpa", [TORCH.name])
    assert "without CUDA graphs, more slowly: differs by " in caplog.text


@pytest.mark.usefixtures("recorder")
@pytest.mark.parametrize("row", [1, 4])
def test_an_attention_wrong_behind_one_row_leaves_the_class(
    network: Network, row: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = torch.nn.functional.scaled_dot_product_attention

    def wrong(query: torch.Tensor, *rest: torch.Tensor, **options: Any) -> torch.Tensor:
        mixed = right(query, *rest, **options)
        if len(mixed) > row:
            mixed[row:] = mixed[:1]
        return mixed

    monkeypatch.setattr(torch_steps.nn.functional, "scaled_dot_product_attention", wrong)
    attention, paths = selected(network)
    assert (attention, paths) == ("sdpa", [])
    assert [record.getMessage().split(":")[1] for record in caplog.records] == [
        f" going on without {name}, more slowly" for name in BOTH
    ]


@pytest.mark.usefixtures("recorder")
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 9])
def test_experts_wrong_for_one_number_of_rows_are_found(
    single: Network, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = torch_steps.way_for

    def way_for(device: torch.device, count: int) -> Any:
        way = right(device, count)
        return (lambda *given: way(*given) * 1.1) if count == rows else way

    monkeypatch.setattr(torch_steps, "way_for", way_for)
    assert selected(single) == ("sdpa", [])


def test_a_slot_that_keeps_its_old_page_is_found(
    single: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = torch_steps.TorchSteps.__call__

    def stale(
        self: torch_steps.TorchSteps, slots: Sequence[int], ids: Sequence[int]
    ) -> torch.Tensor:
        self._cache.lengths = [max(length, 20) for length in self._cache.lengths]
        return right(self, slots, ids)

    monkeypatch.setattr(torch_steps.TorchSteps, "__call__", stale)
    _, paths, _ = rehearsal.select_decoder(single, ("sdpa",), (TORCH,))
    assert paths == ()


# --- flash-attn ----------------------------------------------------------------------------------


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Exception | None], None]]:
    """Makes transformers believe in a flash-attn that raises, or that is torch's own attention."""

    def provide(problem: Exception | None) -> None:
        plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

        def attend(*arguments: Any, **options: Any) -> Any:
            if problem:
                raise problem
            return plain(*arguments, **options)

        ALL_ATTENTION_FUNCTIONS.register("stand_in", attend)

    yield provide
    ALL_ATTENTION_FUNCTIONS._global_mapping.pop("stand_in", None)


@pytest.mark.usefixtures("recorder")
@pytest.mark.parametrize(
    "problem",
    [
        ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c104cuda9SetDeviceEa"),
        RuntimeError("FlashAttention only supports Ampere GPUs or newer."),
    ],
    ids=["does not load", "does not know the card"],
)
def test_a_flash_attn_that_does_not_work_leaves_the_built_in_attention(
    single: Network, problem: Exception, flash_attn: Callable[[Exception | None], None],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    flash_attn(problem)
    assert selected(single, "stand_in", "sdpa") == ("sdpa", BOTH)
    assert single.model.language_model.config._attn_implementation == "sdpa"
    (record,) = caplog.records
    assert str(problem) in record.getMessage()


def test_a_flash_attn_that_is_not_installed_leaves_the_built_in_attention(
    single: Network, caplog: pytest.LogCaptureFixture
) -> None:
    attention, _, _ = rehearsal.select_decoder(single, ("flash_attention_2", "sdpa"), ())
    assert attention == "sdpa"
    assert "without flash_attention_2, more slowly: ImportError" in caplog.text


@pytest.mark.usefixtures("recorder")
def test_a_flash_attn_that_works_reads_the_prompts(
    single: Network, flash_attn: Callable[[Exception | None], None]
) -> None:
    flash_attn(None)
    assert selected(single, "stand_in", "sdpa") == ("stand_in", BOTH)
    assert single.model.language_model.config._attn_implementation == "stand_in"


def test_without_any_right_attention_the_simplest_is_left(
    single: Network, flash_attn: Callable[[Exception | None], None]
) -> None:
    flash_attn(RuntimeError("no kernel image is available for execution on the device"))
    attention, paths, _ = rehearsal.select_decoder(single, ("stand_in",), (TORCH,))
    assert (attention, paths) == ("eager", (TORCH,))


# --- encoders ------------------------------------------------------------------------------------


def select_vision(network: Network, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(rehearsal, "VIEWS", ((640, 0), (512, 0)))
    monkeypatch.setattr(vision, "torch_attention", lambda *given: sam_attention.fused)
    return rehearsal.select_vision(network, frozenset(["vision"]))[0]


def test_the_folded_attention_is_taken_if_it_is_right(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert select_vision(network, monkeypatch) == "folded"
    assert "forward" in vars(network.model.vision_tower.sam_encoder.layers[0].attn)


@pytest.mark.parametrize("global_alone", [False, True], ids=["every layer", "no windows"])
def test_a_folded_attention_that_is_wrong_is_taken_out_again(
    single: Network, global_alone: bool, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    right = sam_attention.fused

    def wrong(heads: sam_attention.Heads, positions: sam_attention.Positions) -> torch.Tensor:
        mixed = right(heads, positions)
        is_global = heads.size[0] > 14
        return mixed * 1.5 if is_global or not global_alone else mixed

    monkeypatch.setattr(sam_attention, "fused", wrong)
    plain = load_network(GOLDEN / "checkpoint", "cpu", "float32")
    assert select_vision(single, monkeypatch) == "plain"
    assert "without the folded attention of the encoders" in caplog.text
    views = rehearsal.views_of(320)
    assert torch.equal(model.vision_tokens(single, views), model.vision_tokens(plain, views))


def test_views_become_smaller_if_the_plain_class_has_no_memory_for_them(
    single: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, sides = model.vision_tokens, []

    def encode(network: Network, views: Views) -> torch.Tensor:
        sides.append((views.global_view.shape[-1], len(views.tiles)))
        if sides[-1][0] > 512:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 768.00 MiB.")
        return plain(network, views)

    monkeypatch.setattr(model, "vision_tokens", encode)
    assert rehearsal.select_vision(single, frozenset(["vision"]))[0] == "folded"
    assert sides == [(1024, 2), (640, 0), (512, 0), (512, 0)]


# --- what does not count against a path -----------------------------------------------------------


def test_running_out_of_memory_does_not_count_against_a_path(
    single: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(Recorder):
        def capture(self, run: cuda_graphs.Run) -> cuda_graphs.Run:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(cuda_graphs, "GraphRecorder", Full)
    with pytest.raises(torch.OutOfMemoryError):
        selected(single)
    with pytest.raises(torch.OutOfMemoryError):
        DecoderFactory(single, (GRAPHS, TORCH), 64).make(2)
    assert not caplog.records


def test_a_device_that_fails_for_good_is_an_error(
    single: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fatal(Recorder):
        def capture(self, run: cuda_graphs.Run) -> cuda_graphs.Run:
            monkeypatch.setattr(devices, "synchronize", fails)
            fails(self.device)
            return run

    def fails(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(cuda_graphs, "GraphRecorder", Fatal)
    with pytest.raises(DeviceError, match="failed when CUDA graphs was tried"):
        selected(single)


def test_a_device_that_cannot_run_the_class_is_an_error(
    single: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*given: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(PlainDecoder, "prefill", refuses)
    with pytest.raises(DeviceError, match="cpu cannot run this model"):
        selected(single)


def test_a_device_that_lacks_the_simplest_attention_is_held_against_the_class_s_own(
    single: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lacks(*given: object, **options: object) -> torch.Tensor:
        raise NotImplementedError("aten::softmax is not implemented for this device")

    monkeypatch.setattr(modeling, "eager_attention_forward", lacks)
    attention, paths, far = rehearsal.select_decoder(single, ("sdpa",), (TORCH,))
    assert (attention, paths) == ("sdpa", (TORCH,))
    assert far is not None
    assert not caplog.records


def test_nothing_is_given_up_if_the_class_itself_overflows(
    single: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    single.lm_head.weight.data[0] = torch.inf
    assert rehearsal.select_decoder(single, ("sdpa",), (TORCH,)) == ("sdpa", (TORCH,), None)
    assert "fast paths cannot be compared" in caplog.text


# --- at load -------------------------------------------------------------------------------------


def test_a_capture_that_fails_later_leaves_torch_s_operations_for_good(
    single: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Recorder] = []

    class Refused(Recorder):
        def __init__(self, device: torch.device) -> None:
            super().__init__(device)
            made.append(self)

        def capture(self, run: cuda_graphs.Run) -> cuda_graphs.Run:
            raise RuntimeError("capture failed")

    monkeypatch.setattr(cuda_graphs, "GraphRecorder", Refused)
    decoders = DecoderFactory(single, (GRAPHS, TORCH), 64)
    assert decoders.path is GRAPHS
    assert isinstance(decoders.make(3), SlotDecoder)
    assert decoders.path is TORCH
    decoders.make(2)
    assert len(made) == 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize("wrong", [torch.nan, 100.0, 1.2], ids=["nan", "once", "a shape"])
def test_graphs_of_shapes_that_the_rehearsal_does_not_have_are_checked(
    single: Network, wrong: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One row of one graph is not finite, or far off; or all rows are a little off."""
    right = torch_steps.TorchSteps.run

    def run(self: torch_steps.TorchSteps, rows: int, span: int) -> torch.Tensor:
        logits = right(self, rows, span)
        if (rows, span) == (4, 1024):
            logits[0 if wrong == 1.2 else 3 :] *= wrong
        return logits

    monkeypatch.setattr(cuda_graphs, "GraphRecorder", Recorder)
    monkeypatch.setattr(torch_steps.TorchSteps, "run", run)
    decoders = DecoderFactory(single, (GRAPHS, TORCH), 2048)
    decoders.make(8)
    assert decoders.path is TORCH
    assert "the graph of 4 rows and 1024 tokens differs by" in caplog.text


@pytest.mark.usefixtures("recorder")
def test_the_checked_graphs_leave_room_for_pages(single: Network) -> None:
    decoders = DecoderFactory(single, (GRAPHS,), 1024)
    made = decoders.make(3)
    assert decoders.path is GRAPHS
    plain = PlainDecoder(single, 3)
    prompt = torch.randn(1, 9, single.config.text_config.hidden_size)
    for one in (plain, made):
        one.prefill(1, prompt)
    torch.testing.assert_close(made.step([1], [5]), plain.step([1], [5]), rtol=1e-4, atol=1e-4)


def test_a_device_that_fails_while_a_decoder_is_made_is_an_error(
    single: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fatal(Recorder):
        def capture(self, run: cuda_graphs.Run) -> cuda_graphs.Run:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    failure = DeviceError("Device 'cuda' failed (an illegal memory access); restart the program.")
    monkeypatch.setattr(cuda_graphs, "GraphRecorder", Fatal)
    monkeypatch.setattr(devices, "failure", lambda device: failure)
    with pytest.raises(DeviceError, match="restart the program"):
        DecoderFactory(single, (GRAPHS, TORCH), 64).make(2)


def test_decoders_are_made_with_their_card_current(
    single: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[torch.device] = []

    @contextmanager
    def entered(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    class Asking(Recorder):
        def capture(self, run: cuda_graphs.Run) -> cuda_graphs.Run:
            assert current == [single.device]
            return super().capture(run)

    monkeypatch.setattr(cuda_graphs, "GraphRecorder", Asking)
    monkeypatch.setattr(devices, "current", entered)
    decoders = DecoderFactory(single, (GRAPHS,), 64)
    decoders.make(1)
    assert decoders.path is GRAPHS


def test_one_row_far_off_is_found_among_many_that_are_right() -> None:
    right = [OutputRow(slot, 4, torch.tensor([1.0, 2.0])) for slot in range(4)] * 3
    assert rehearsal.difference(right, right)[0] == 0
    for wrong in (torch.tensor([9.0, 2.0]), torch.tensor([torch.nan, 2.0])):
        rows = [*right[:-1], OutputRow(3, 4, wrong)]
        far, where = rehearsal.difference(rows, right)
        assert rehearsal.disagreement(far, torch.bfloat16)
        assert where.startswith("once in ")


def test_graphs_are_kept_if_the_class_overflows_on_first_tokens(
    single: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda_graphs, "GraphRecorder", Recorder)
    single.lm_head.weight.data[0] = torch.inf
    decoders = DecoderFactory(single, (GRAPHS, TORCH), 64)
    decoders.make(2)
    assert decoders.path is GRAPHS
    assert not caplog.records


def test_the_outcome_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "deepseek_ocr"):
        engine = OcrEngine.load(POCKET, "cpu", "float32", kernels="plain", slots=3)
    engine.close()
    assert engine.rehearsal is not None
    assert str(engine.rehearsal) in [record.getMessage() for record in caplog.records]
    assert str(engine.rehearsal) == (
        "cpu in float32: decoding by the plain class, 3 pages at once, experts of the class, "
        "prompts by sdpa, encoders plain"
    )
    for path, experts in ((slot_decoder.NATIVE, "in it too"), (TORCH, "looped")):
        selection = PathSelection("fast", "sdpa", (path,))
        assert rehearsal.outcome_of(engine.network, selection, path, 3).experts == experts
    seen = replace(engine.rehearsal, device="cuda:0", difference=0.0123)
    assert str(seen).endswith("; within 0.01 of the plain class")


@pytest.mark.parametrize("name", ["graphs", "flash", "vision", "decoder"])
def test_every_fast_path_of_a_card_has_a_name(
    name: str, single: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the name nothing tries the path."""
    card = types.SimpleNamespace(type="cuda")
    monkeypatch.setattr(slot_decoder.decoder_weights, "missing", lambda network: None)
    chosen = choice.parse(f"auto,-{name}")
    paths = slot_decoder._paths_on(card, torch.bfloat16, chosen)  # type: ignore[arg-type]
    assert (GRAPHS in paths) is (name not in ("graphs", "decoder"))
    assert (TORCH in paths) is (name != "decoder")
    monkeypatch.setattr(vision, "prepare", lambda network, chosen: pytest.fail("not asked for"))
    if name == "vision":
        assert rehearsal.prepare(single, chosen).vision == "plain"
