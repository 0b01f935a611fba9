"""Many pages at once: what each says alone, in order, within bounds, whatever the others do."""

from __future__ import annotations

import os
import random
import signal
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepseek_ocr.decoding import sampler
from deepseek_ocr.engine import page_state
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.page_state import PageState
from deepseek_ocr.engine.request import Handle
from deepseek_ocr.engine.results import Delta, Failure, Page, Reading
from deepseek_ocr.engine.scheduler import EngineStatus
from deepseek_ocr.errors import CancelledError, ImageError, PromptError, SettingsError
from deepseek_ocr.images.limits import ImageLimits
from deepseek_ocr.images.views import Views
from deepseek_ocr.model.network import Network
from deepseek_ocr.settings import CropSettings, DecodeSettings
from tests.conftest import POCKET, ROOT
from tests.tiny_engine import (
    SMALL,
    Held,
    alone,
    codec_of,
    engine_of,
    engine_with,
    ids_alone,
    ids_of,
    page,
)

PAGES = [
    page(1, 7),
    page(2, 1),
    page(3, 19, no_repeat_ngram_size=2, no_repeat_window=0),
    page(4, 12, temperature=1.0, seed=5),
    page(5, 3),
    page(6, 15, repetition_penalty=1.5),
    page(7, 9, temperature=0.7, top_k=9, top_p=0.9, no_repeat_ngram_size=1, no_repeat_window=4),
    page(8, 11),
]
"""Pages that end at different times, greedy, guarded and sampled ones among them."""


def idle(engine: OcrEngine) -> bool:
    """True when every slot is free, once the worker has done what was asked of it before."""
    engine.read(page(0, 1).image, "x", SMALL, DecodeSettings(max_new_tokens=1))
    return engine.status() == EngineStatus(engine.slots, 0, 0)


# --- the same as alone ----------------------------------------------------------------------------


@pytest.mark.parametrize("paths", ["plain", "auto"])
@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_each_page_reads_as_it_does_alone(tiny: Network, slots: int, paths: str) -> None:
    readings = list(engine_of(tiny, slots, paths).read_many(PAGES))
    assert len(readings) == len(PAGES)
    for asked, reading in zip(PAGES, readings, strict=True):
        expected = alone(tiny, asked)
        assert ids_of(reading) == [token.id for token in expected]
        assert isinstance(reading, Reading)
        logprobs = [token.logprob for token in reading.tokens]
        assert logprobs == pytest.approx([token.logprob for token in expected], abs=1e-4)
        assert reading.finish_reason == "length"


def test_real_pages_read_as_they_do_alone(pocket: OcrEngine) -> None:
    crop = CropSettings(512, 512, crop_mode=False)
    pages = [Page(ROOT / "examples" / f"{name}.png", "Free OCR.", crop)
             for name in ("fruit", "invoice", "total", "fruit")]  # fmt: skip
    engine = OcrEngine.load(POCKET, "cpu", "float32", slots=3)
    one_by_one = [pocket.read(one.image, one.prompt, one.crop).tokens for one in pages]
    at_once = list(engine.read_many(pages))
    for expected, reading in zip(one_by_one, at_once, strict=True):
        assert ids_of(reading) == [token.id for token in expected]
        assert isinstance(reading, Reading)
        assert reading.finish_reason == "stop"


def test_slots_are_filled_again_as_soon_as_a_page_is_done(tiny: Network) -> None:
    decoder = Held(tiny, 2)
    engine = engine_with(tiny, lambda _: decoder, 2)
    lengths = [2, 12, 3, 3, 3]
    handles = [engine.submit(page(number, tokens)) for number, tokens in enumerate(lengths)]
    decoder.reached()
    while engine.status().waiting > 2:  # until the first two are in slots or about to be
        decoder.let_one()
        decoder.reached()
    decoder.let_go()
    assert [len(handle.result(60).tokens) for handle in handles] == lengths
    assert max(len(slots) for slots in decoder.steps) == 2
    assert set(map(tuple, decoder.steps)) <= {(0,), (1,), (0, 1)}
    # Written in one slot after the other it would have been eighteen steps.
    assert len(decoder.steps) < sum(length - 1 for length in lengths)


def test_a_page_stops_where_the_context_ends_and_others_go_on(tiny: Network) -> None:
    asked, other = page(1, 500), page(2, 40)

    def make(slots: int) -> Held:
        decoder = Held(tiny, slots, free=True)
        decoder.context = 60
        return decoder

    engine = engine_with(tiny, make, 2)
    first, second, third = engine.read_many([asked, other, Page(asked.image, "x" * 60, SMALL)])
    assert isinstance(first, Reading)
    assert first.counts.prompt + first.counts.output == 60
    assert first.finish_reason == "length"
    assert ids_of(first) == ids_alone(tiny, page(1, len(first.tokens)))
    assert ids_of(second) == ids_alone(tiny, page(2, 60 - second.counts.prompt))  # type: ignore[union-attr]
    assert isinstance(third, Failure)
    assert isinstance(third.error, PromptError)


def test_what_the_worker_is_within_counts_for_every_page(tiny: Network) -> None:
    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    asked = page(3, 9)
    with autocast():
        expected = alone(tiny, asked)
    engine = OcrEngine(tiny, codec_of(tiny), slots=1, within=autocast)
    reading = engine.submit(asked).result(60)
    assert [(token.id, token.logprob) for token in reading.tokens] == [
        (token.id, token.logprob) for token in expected
    ]
    assert expected != alone(tiny, asked)


# --- order and bounds -----------------------------------------------------------------------------


def test_an_endless_line_of_pages_is_taken_a_bounded_number_ahead(
    tiny: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: weakref.WeakSet[Any] = weakref.WeakSet()
    most_alive = 0
    make_views = page_state.images.make_views

    def counted(*arguments: Any) -> Views:
        nonlocal most_alive
        views = make_views(*arguments)
        made.add(views.global_view)
        most_alive = max(most_alive, len(made))
        return views

    monkeypatch.setattr(page_state.images, "make_views", counted)
    taken = 0

    def endless() -> Iterator[Page]:
        nonlocal taken
        while True:
            taken += 1
            yield page(taken, 1 + taken * 7 % 5)

    engine = engine_of(tiny, 3)
    outcomes = engine.read_many(endless())
    for number in range(1, 25):
        assert ids_of(next(outcomes)) == ids_alone(tiny, page(number, 1 + number * 7 % 5))
        assert taken - number <= 10  # twice: three slots and two that are prepared
    outcomes.close()  # type: ignore[attr-defined]
    assert idle(engine)
    assert most_alive <= 5  # being made, ready, being looked at


def test_results_come_in_order_though_the_first_page_is_the_longest(tiny: Network) -> None:
    lengths = [40, 1, 2, 3, 1, 2, 3, 1]
    readings = list(engine_of(tiny, 3).read_many(page(n, size) for n, size in enumerate(lengths)))
    assert [len(ids_of(reading)) for reading in readings] == lengths


def test_a_line_that_breaks_gives_what_was_read_and_then_says_so(tiny: Network) -> None:
    def pages() -> Iterator[Page]:
        yield page(1, 5)
        yield page(2, 5)
        raise OSError("the disk is gone")

    outcomes = engine_of(tiny, 2).read_many(pages())
    assert [len(ids_of(next(outcomes))) for _ in range(2)] == [5, 5]
    with pytest.raises(OSError, match="disk"):
        next(outcomes)


def test_no_pages_are_no_outcomes(tiny: Network) -> None:
    assert list(engine_of(tiny, 2).read_many([])) == []


def test_a_failing_page_fails_alone(tiny: Network) -> None:
    good = [page(1, 5), page(2, 5), page(3, 5)]
    bad = [Page(b"no picture", "x", SMALL), Page(good[0].image, "<image><image>", SMALL)]
    outcomes = list(engine_of(tiny, 2).read_many([good[0], bad[0], good[1], bad[1], good[2]]))
    assert [ids_of(outcome) for outcome in outcomes[::2]] == [ids_alone(tiny, one) for one in good]
    errors = [outcome.error for outcome in outcomes if isinstance(outcome, Failure)]
    assert [type(error) for error in errors] == [ImageError, PromptError]


# --- one page in hand -----------------------------------------------------------------------------


def test_deltas_come_while_the_page_is_written_and_join_to_its_text(tiny: Network) -> None:
    decoder = Held(tiny, 1)
    told: list[Delta | Reading | Failure] = []
    handle = engine_with(tiny, lambda _: decoder, 1).submit(page(1, 20), told.append)
    decoder.reached()
    assert not handle.done
    assert len(told) <= 1
    decoder.let_go()
    deltas = list(handle.deltas())
    reading = handle.result(60)
    assert handle.done
    assert [*deltas, reading] == told
    assert "".join(delta.text for delta in deltas) == reading.text
    assert tuple(token for delta in deltas for token in delta.tokens) == reading.tokens
    assert list(handle.deltas()) == []
    assert handle.outcome() is handle.result()


def test_a_result_is_waited_for_no_longer_than_asked(tiny: Network) -> None:
    decoder = Held(tiny, 1)
    handle = engine_with(tiny, lambda _: decoder, 1).submit(page(1))
    with pytest.raises(TimeoutError):
        handle.result(0.01)
    decoder.let_go()
    assert len(handle.result(60).tokens) == 8


def test_a_cancelled_page_frees_its_slot_within_a_step(tiny: Network) -> None:
    decoder = Held(tiny, 1)
    engine = engine_with(tiny, lambda _: decoder, 1)
    told: list[Any] = []
    first = engine.submit(page(1, 500), told.append)
    decoder.reached()  # it is in the slot: of two pages that wait, either may be prepared first
    second = engine.submit(page(2, 4))
    first.cancel()
    first.cancel()
    decoder.let_one()
    with pytest.raises(CancelledError):
        first.result(60)
    decoder.reached()
    assert len(decoder.steps) == 2  # the one that was begun, and the first of the other page
    assert decoder.prefills == [0, 0]
    decoder.let_go()
    assert ids_of(second.result(60)) == ids_alone(tiny, page(2, 4))
    assert isinstance(told[-1].error, CancelledError)
    first.cancel()
    second.cancel()
    assert len(second.result().tokens) == 4  # what is done stays done
    assert idle(engine)


def test_a_page_that_waits_can_be_cancelled(tiny: Network) -> None:
    decoder = Held(tiny, 1)
    engine = engine_with(tiny, lambda _: decoder, 1)
    handles = [engine.submit(page(0, 4))]
    decoder.reached()  # it is in the slot: of two pages that wait, either may be prepared first
    handles += [engine.submit(page(number, 4)) for number in range(1, 9)]
    for handle in handles[1:8]:
        handle.cancel()
    decoder.let_go()
    for handle in handles[1:8]:
        with pytest.raises(CancelledError):
            handle.result(60)
        assert list(handle.deltas()) == []
    for number in (0, 8):
        assert ids_of(handles[number].result(60)) == ids_alone(tiny, page(number, 4))
    assert decoder.prefills == [0, 0]
    assert idle(engine)


def test_closing_a_stream_frees_its_slot(tiny: Network) -> None:
    decoder = Held(tiny, 1, free=True)
    engine = engine_with(tiny, lambda _: decoder, 1)
    asked = page(1, 8000, no_repeat_ngram_size=0)
    stream = engine.stream(asked.image, asked.prompt, asked.crop, asked.decode)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert idle(engine)
    assert len(decoder.steps) < 7000


def test_a_listener_that_raises_costs_its_own_page_only(tiny: Network) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError("in the listener")

    engine = engine_of(tiny, 2)
    good, bad = engine.submit(page(1, 6)), engine.submit(page(2, 6), broken)
    with pytest.raises(ZeroDivisionError):
        bad.result(60)
    assert ids_of(good.result(60)) == ids_alone(tiny, page(1, 6))
    assert idle(engine)


# --- time -----------------------------------------------------------------------------------------


def test_the_timeout_counts_work_and_not_waiting(
    tiny: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(page_state, "time", SimpleNamespace(perf_counter=lambda: now))
    codec = codec_of(tiny)
    page_work = PageState(page(1, 50, timeout=10), codec, ImageLimits(), 8192)
    a, b, c = (sampler.Token(id_, -1.0) for id_ in codec.encode_text("abc"))
    now = 100.0  # it waits for a slot with its views ready
    with page_work.stage("vision", tiny.device):
        page_work.see(tiny)
        now = 104.0
    page_work.take(a)
    now = 109.0
    page_work.take(b)
    assert not page_work.ended
    now = 111.0
    page_work.take(c)
    assert page_work.ended
    reading = page_work.reading()
    assert (reading.text, reading.finish_reason) == ("abc", "timeout")
    timings = reading.timings
    assert (timings.preprocess, timings.vision, timings.decode) == (0.0, 4.0, 7.0)


def test_a_page_that_times_out_keeps_what_it_has_and_others_go_on(tiny: Network) -> None:
    late, other = engine_of(tiny, 2).read_many([page(1, 99, timeout=1e-6), page(2, 9)])
    assert isinstance(late, Reading)
    assert (len(late.tokens), late.finish_reason) == (1, "timeout")
    assert ids_of(other) == ids_alone(tiny, page(2, 9))


# --- threads --------------------------------------------------------------------------------------


def test_several_threads_may_ask_at_once(tiny: Network) -> None:
    engine = engine_of(tiny, 3)

    def many(start: int) -> list[list[int]]:
        pages = [page(start + number, 3 + number) for number in range(4)]
        return [ids_of(outcome) for outcome in engine.read_many(pages)]

    def one_by_one(start: int) -> list[list[int]]:
        found = []
        for number in range(4):
            asked = page(start + number, 3 + number)
            *_, last = engine.stream(asked.image, asked.prompt, asked.crop, asked.decode)
            found.append(ids_of(last))
        return found

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit((many, one_by_one)[n % 2], n * 10) for n in range(4)]
    for number, future in enumerate(futures):
        expected = [ids_alone(tiny, page(number * 10 + n, 3 + n)) for n in range(4)]
        assert future.result() == expected
    assert idle(engine)


@pytest.mark.parametrize("seed", range(3))
def test_every_page_ends_whatever_is_cancelled_when(tiny: Network, seed: int) -> None:
    engine = engine_of(tiny, 3)
    chance = random.Random(seed)

    def submit(number: int) -> tuple[Page, Handle]:
        asked = page(number, chance.randrange(1, 25))
        if chance.random() < 0.15:
            asked = Page(b"no picture", "x", SMALL)
        return asked, engine.submit(asked)

    with ThreadPoolExecutor(3) as pool:
        pages = list(pool.map(submit, range(30)))
        victims = chance.sample(pages, 12)
        list(pool.map(lambda pair: pair[1].cancel(), victims))
    for asked, handle in pages:
        outcome = handle.outcome()
        cancelled = isinstance(outcome, Failure) and isinstance(outcome.error, CancelledError)
        if cancelled:
            assert any(handle is victim for _, victim in victims)
        elif asked.image == b"no picture":
            assert isinstance(outcome, Failure)
            assert isinstance(outcome.error, ImageError)
        else:
            assert ids_of(outcome) == ids_alone(tiny, asked)
    assert idle(engine)


def test_an_interruption_of_the_reader_leaves_the_engine_usable(tiny: Network) -> None:
    decoder = Held(tiny, 2, free=True)
    engine = engine_with(tiny, lambda _: decoder, 2)

    def interrupt(_: object) -> None:
        if len(decoder.steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    decoder.before = interrupt
    asked = page(1, 8000, no_repeat_ngram_size=0)
    with pytest.raises(KeyboardInterrupt):
        engine.read(asked.image, asked.prompt, asked.crop, asked.decode)
    assert idle(engine)
    decoder.steps.clear()
    with pytest.raises(KeyboardInterrupt):
        list(engine.read_many([asked, asked, asked]))
    assert idle(engine)
    assert ids_of(engine.submit(page(2, 9)).result(60)) == ids_alone(tiny, page(2, 9))


def test_a_number_of_slots_below_nought_is_refused(tiny: Network) -> None:
    with pytest.raises(SettingsError, match="slots"):
        OcrEngine(tiny, codec_of(tiny), slots=-1)
