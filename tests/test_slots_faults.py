"""When the device runs out of memory or a step fails: fewer pages at once, and no page suffers for
another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import pytest
import torch

from deepseek_ocr.decoding.decoder import PlainDecoder
from deepseek_ocr.devices import memory
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Delta, Failure, Page, Reading
from deepseek_ocr.engine.scheduler import EngineStatus
from deepseek_ocr.errors import GenerationError
from deepseek_ocr.model import footprint
from deepseek_ocr.model.network import Network
from tests.tiny_engine import engine_with, ids_alone, ids_of, page

PAGES = [page(number, 5 + 3 * number) for number in range(1, 7)]

GIB = 2**30


class Broken(PlainDecoder):
    """Raises what `fault` says of a step (its slots) or a prefill (the slots in use with it)."""

    def __init__(
        self,
        network: Network,
        slots: int,
        step: Callable[[Sequence[int]], Exception | None] = lambda _: None,
        prefill: Callable[[Sequence[int]], Exception | None] = lambda _: None,
    ) -> None:
        super().__init__(network, slots)
        self._step_fault, self._prefill_fault = step, prefill
        self.in_use: set[int] = set()

    def prefill(self, slot: int, embeddings: torch.Tensor) -> torch.Tensor:
        if error := self._prefill_fault(sorted(self.in_use | {slot})):
            raise error
        self.in_use.add(slot)
        return super().prefill(slot, embeddings)

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        # What comes before the fault has been done: a failed step leaves caches half written.
        for at in range(len(slots)):
            if error := self._step_fault(slots[: at + 1]):
                raise error
            super().step(slots[at : at + 1], ids[at : at + 1])
        for slot in slots:  # the same again, from one cache less one token, for the logits
            self._caches[slot].crop(-1)
        return super().step(slots, ids)

    def free(self, slot: int) -> None:
        self.in_use.discard(slot)
        super().free(slot)


def full(most: int) -> Callable[[Sequence[int]], Exception | None]:
    """No memory for more than so many pages at once."""

    def fault(slots: Sequence[int]) -> Exception | None:
        return torch.OutOfMemoryError("CUDA out of memory.") if len(slots) > most else None

    return fault


def all_as_alone(network: Network, engine: OcrEngine) -> None:
    """Every page reads as it does alone, and says nothing twice."""
    deltas: list[list[Delta]] = [[] for _ in PAGES]

    def listener(number: int) -> Callable[[Delta | Reading | Failure], None]:
        return lambda event: deltas[number].append(event) if isinstance(event, Delta) else None

    handles = [engine.submit(asked, listener(number)) for number, asked in enumerate(PAGES)]
    for asked, handle, told in zip(PAGES, handles, deltas, strict=True):
        reading = handle.result(120)
        assert ids_of(reading) == ids_alone(network, asked)
        assert "".join(delta.text for delta in told) == reading.text
        assert tuple(token for delta in told for token in delta.tokens) == reading.tokens


@pytest.mark.parametrize("where", ["step", "prefill"])
@pytest.mark.parametrize(("most", "left"), [(5, 4), (3, 2), (2, 2), (1, 1)])
def test_out_of_memory_is_answered_by_fewer_slots(
    tiny: Network, where: str, most: int, left: int, caplog: pytest.LogCaptureFixture
) -> None:
    engine = engine_with(tiny, lambda slots: Broken(tiny, slots, **{where: full(most)}), 8)
    with caplog.at_level(logging.WARNING):
        all_as_alone(tiny, engine)
    assert engine.slots in (left, 8)  # eight where so many pages never met
    assert len(caplog.records) == {8: 0, 4: 1, 2: 2, 1: 3}[engine.slots]
    assert engine.status() == EngineStatus(engine.slots, 0, 0)


def test_a_page_for_which_one_slot_is_too_much_says_what_to_do(tiny: Network) -> None:
    large = page(1, 400)

    class Small(PlainDecoder):
        def prefill(self, slot: int, embeddings: torch.Tensor) -> torch.Tensor:
            if embeddings.shape[1] > 100:
                raise MemoryError
            return super().prefill(slot, embeddings)

    engine = engine_with(tiny, lambda slots: Small(tiny, slots), 4)
    asked = [PAGES[0], Page(large.image, "x" * 120, large.crop, large.decode), PAGES[1]]
    first, second, third = engine.read_many(asked)
    assert ids_of(first) == ids_alone(tiny, PAGES[0])
    assert ids_of(third) == ids_alone(tiny, PAGES[1])
    assert isinstance(second, Failure)
    assert isinstance(second.error, GenerationError)
    assert "no memory left for this page" in str(second)
    assert engine.slots == 4  # one page that is too large does not make the others wait for ever


def test_a_decoder_that_cannot_be_made_so_large_is_made_smaller(tiny: Network) -> None:
    def make(slots: int) -> PlainDecoder:
        if slots > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return PlainDecoder(tiny, slots)

    engine = engine_with(tiny, make, 16)
    assert engine.slots == 2
    assert ids_of(engine.submit(PAGES[0]).result(60)) == ids_alone(tiny, PAGES[0])


def test_no_memory_for_one_slot_says_so(tiny: Network) -> None:
    def make(slots: int) -> PlainDecoder:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(GenerationError, match="even one page"):
        engine_with(tiny, make, 16)


def test_a_step_that_one_page_breaks_fails_that_page_alone(tiny: Network) -> None:
    def fault(slots: Sequence[int]) -> Exception | None:
        return ValueError("slot 1 is bad") if 1 in slots else None

    engine = engine_with(tiny, lambda slots: Broken(tiny, slots, step=fault), 3)
    outcomes = list(engine.read_many(PAGES))
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert failed
    for asked, outcome in zip(PAGES, outcomes, strict=True):
        if isinstance(outcome, Failure):
            assert str(outcome) == "slot 1 is bad"
        else:
            assert ids_of(outcome) == ids_alone(tiny, asked)
    assert engine.slots == 3


def test_steps_that_fail_only_together_are_made_with_fewer(tiny: Network) -> None:
    def fault(slots: Sequence[int]) -> Exception | None:
        return ValueError("too many") if len(slots) > 2 else None

    engine = engine_with(tiny, lambda slots: Broken(tiny, slots, step=fault), 6)
    all_as_alone(tiny, engine)
    assert engine.slots < 6


def test_logits_that_mean_nothing_fail_their_page_alone(tiny: Network) -> None:
    class Nan(PlainDecoder):
        def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
            logits = super().step(slots, ids)
            bad = torch.tensor([[slot == 1] for slot in slots])
            return logits.masked_fill(bad, torch.nan)

    engine = engine_with(tiny, lambda slots: Nan(tiny, slots), 3)
    outcomes = list(engine.read_many(PAGES))
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert failed
    assert all(isinstance(outcome.error, GenerationError) for outcome in failed)
    for asked, outcome in zip(PAGES, outcomes, strict=True):
        if isinstance(outcome, Reading):
            assert ids_of(outcome) == ids_alone(tiny, asked)


def test_an_error_that_is_not_ours_still_says_where_it_came_from(tiny: Network) -> None:
    def fault(_: Sequence[int]) -> Exception | None:
        return KeyError("a bug")

    engine = engine_with(tiny, lambda slots: Broken(tiny, slots, step=fault), 1)
    outcome = engine.submit(PAGES[0]).outcome()
    assert isinstance(outcome, Failure)
    assert outcome.error.__traceback__ is None  # which would hold the page and its cache
    assert "in step\n    raise error" in "".join(outcome.error.__notes__)


# --- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "free_gib", "slots"),
    [
        ("cuda", 130, 64), ("cuda", 44, 64), ("cuda", 14, 16), ("cuda", 5, 1), ("cuda", 1, 1),
        ("cpu", 64, 4), ("cpu", 8, 4), ("cpu", 5, 2), ("cpu", 0.5, 1), ("mps", 64, 4),
        ("npu", 60, 16), ("cpu", None, 1),
    ],
)  # fmt: skip
def test_slots_follow_from_free_memory(kind: str, free_gib: float | None, slots: int) -> None:
    free = None if free_gib is None else int(free_gib * GIB)
    assert footprint.slots_for(kind, free, GIB // 2) == slots


def test_the_cache_of_a_page_is_counted_in_full(tiny: Network) -> None:
    cache = PlainDecoder(tiny)
    cache.prefill(0, torch.zeros(1, 10, tiny.config.text_config.hidden_size))
    held = sum(
        layer.keys.nbytes + layer.values.nbytes  # type: ignore[union-attr]
        for layer in cache._caches[0].layers
    )
    context = tiny.config.text_config.max_position_embeddings
    assert footprint.cache_bytes(tiny.config, tiny.dtype.itemsize) == held * context // 10


def test_this_machine_has_memory_and_says_how_much() -> None:
    free = memory.free_bytes(torch.device("cpu"))
    assert free is not None
    assert 2**20 < free < 2**50
