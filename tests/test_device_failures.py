"""A device that fails for good ends its engine at once: every page with one clear error, and
nothing waits for ever."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from deepseek_ocr import presets
from deepseek_ocr.devices import selection
from deepseek_ocr.documents.inputs import find
from deepseek_ocr.documents.pipeline import read_documents
from deepseek_ocr.documents.plan import Plan
from deepseek_ocr.documents.renderer import Renderer
from deepseek_ocr.documents.run_store import Store, read_manifests
from deepseek_ocr.documents.shared_reader import DocumentReader
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Failure, Page, Reading
from deepseek_ocr.engine.scheduler import EngineStatus
from deepseek_ocr.errors import DeviceError, OcrError
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.model.network import Network
from deepseek_ocr.settings import Attempt, DecodeSettings, RenderSettings
from tests import papers
from tests.conftest import ROOT
from tests.failing_device import FAILED, ILLEGAL, Card, OnCard, error
from tests.scripted import ScriptedEngine
from tests.tiny_engine import SMALL, Held, engine_with, ids_alone, ids_of, page


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    return Card(monkeypatch)


def engine_on(card: Card, network: Network, slots: int) -> tuple[OcrEngine, OnCard]:
    decoder = OnCard(network, slots, card)
    return engine_with(network, lambda _: decoder, slots), decoder


def fails_when(card: Card, slots: int) -> object:
    """To be called before a step: the device fails once so many pages are read together."""

    def before(active: Sequence[int]) -> None:
        if len(active) == slots:
            card.fail()

    return before


def workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ocr-")}


def test_every_page_ends_with_the_same_error_and_nothing_is_tried_again(
    tiny: Network, card: Card, caplog: pytest.LogCaptureFixture
) -> None:
    before = workers()
    engine, decoder = engine_on(card, tiny, 3)
    decoder.before = fails_when(card, 3)  # type: ignore[assignment]
    handles = [engine.submit(page(number, 200)) for number in range(9)]
    for handle in handles:
        with pytest.raises(DeviceError) as caught:
            handle.result(60)
        assert str(caught.value) == FAILED
    assert not engine.is_running
    for thread in workers() - before:
        thread.join(60)
        assert not thread.is_alive()
    assert [len(slots) for slots in decoder.steps].count(3) == 1
    assert decoder.prefills == [0, 1, 2]
    assert engine.status() == EngineStatus(3, 0, 0)
    assert [record.getMessage() for record in caplog.records] == [FAILED]
    for _ in range(2):
        with pytest.raises(DeviceError, match="restart the program"):
            engine.submit(page(1))
    engine.close()


def test_the_cause_is_kept_for_whoever_looks_for_it(tiny: Network, card: Card) -> None:
    engine, decoder = engine_on(card, tiny, 1)
    decoder.before = fails_when(card, 1)  # type: ignore[assignment]
    with pytest.raises(DeviceError) as caught:
        engine.read(page(1).image, "Free OCR.", page(1).crop)
    cause = caught.value.__cause__
    assert str(cause) == ILLEGAL
    assert cause is not None
    assert "card.fail()" in "".join(cause.__notes__)


@pytest.mark.parametrize("where", ["prefill", "free", "make"])
def test_it_may_fail_anywhere(tiny: Network, card: Card, where: str) -> None:
    """While a page is begun, when a slot is given back, when the decoder is made anew."""
    asked = page(1, 3)

    class Fails(OnCard):
        def prefill(self, slot: int, embeddings: torch.Tensor) -> torch.Tensor:
            if where == "prefill" and self.prefills:
                card.fail()
            return super().prefill(slot, embeddings)

        def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
            if where == "make":
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().step(slots, ids)

        def free(self, slot: int) -> None:
            if where == "free":
                card.fail()
            super().free(slot)

    made: list[Fails] = []

    def make(slots: int) -> Fails:
        if made:
            card.fail()
        made.append(Fails(tiny, slots, card))
        return made[-1]

    engine = engine_with(tiny, make, 2)
    first, *others = [engine.submit(one) for one in (asked, page(2, 60), page(3, 60))]
    if where != "free":
        others.append(first)
    else:  # what was read is not lost with the device
        assert ids_of(first.result(60)) == ids_alone(tiny, asked)
    for handle in others:
        with pytest.raises(DeviceError, match="illegal memory access"):
            handle.result(60)
    assert not engine.is_running


def test_the_encoders_may_have_a_device_of_their_own(
    tiny: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = copy.deepcopy(tiny)
    network.elsewhere = nn.Parameter(torch.empty(1, device="meta"))

    def synchronize(device: torch.device) -> None:
        if device.type == "meta":
            raise error()

    decoder = Held(network, 1, free=True)

    def step(_: object) -> None:
        monkeypatch.setattr(selection, "synchronize", synchronize)
        raise error()

    decoder.before = step
    engine = engine_with(network, lambda _: decoder, 1)
    with pytest.raises(DeviceError, match="Device 'meta' failed"):
        engine.submit(page(1)).result(60)
    assert not engine.is_running


PASSING = [
    "",
    "CUDA out of memory. Tried to allocate 2.00 GiB.",
    "CUDA error: operation not permitted when stream is capturing",
    "CUDA error: operation failed due to a previous error during capture\n"
    "Search for `cudaErrorStreamCaptureInvalidated' in the documentation.",
]


@pytest.mark.parametrize("text", PASSING)
def test_what_passes_fails_its_page_alone(
    tiny: Network, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """The device has the last word: it still answers, or refuses for a reason that passes."""
    decoder = Held(tiny, 1, free=True)
    engine = engine_with(tiny, lambda _: decoder, 1)

    def synchronize(_: object) -> None:
        if text:
            raise error(text)

    def step(_: object) -> None:
        monkeypatch.setattr(selection, "synchronize", synchronize)
        raise error()

    decoder.before = step
    with pytest.raises(RuntimeError, match="an illegal memory access"):
        engine.submit(page(1)).result(60)
    decoder.before = lambda _: None
    monkeypatch.setattr(selection, "synchronize", lambda _: None)
    assert engine.is_running
    assert ids_of(engine.submit(page(2)).result(60)) == ids_alone(tiny, page(2))


def test_many_pages_all_come_out(tiny: Network, card: Card) -> None:
    engine, decoder = engine_on(card, tiny, 2)
    taken: list[int] = []

    def pages() -> Iterator[Page]:
        for number in range(20):
            taken.append(number)
            if number == 8:
                decoder.before = fails_when(card, 2)  # type: ignore[assignment]
            yield page(number, 4 + number % 3)

    outcomes = list(engine.read_many(pages()))
    assert taken == list(range(20))
    assert len(outcomes) == 20
    failed = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert {str(failure) for failure in failed} == {FAILED}
    assert 0 < len(failed) < 20
    for number, outcome in enumerate(outcomes):
        if isinstance(outcome, Reading):
            assert ids_of(outcome) == ids_alone(tiny, page(number, 4 + number % 3))
    with pytest.raises(DeviceError):
        engine.submit(page(1))


def test_the_program_ends_by_itself() -> None:
    code = (
        "import pytest\n"
        "from tests.tiny_engine import *\n"
        "from tests.failing_device import Card, OnCard\n"
        "from tests.conftest import GOLDEN, load_network\n"
        "tiny = load_network(GOLDEN / 'checkpoint', 'cpu', 'float32')\n"
        "card = Card(pytest.MonkeyPatch())\n"
        "decoder = OnCard(tiny, 2, card)\n"
        "engine = engine_with(tiny, lambda _: decoder, 2)\n"
        "decoder.before = lambda _: card.fail()\n"
        "for outcome in engine.read_many(page(n) for n in range(9)):\n"
        "    print(outcome)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0
    assert done.stdout.splitlines() == [FAILED] * 9
    assert done.stderr.splitlines() == [FAILED]


# --- documents ------------------------------------------------------------------------------------


class Mortal(ScriptedEngine):
    """An engine whose device fails after so many pages."""

    def __init__(self, most: int, delay: float = 0.0) -> None:
        super().__init__(delay)
        self._most = most
        self.is_running = True

    def read_many(self, pages: Iterable[Page]) -> Iterator[Reading | Failure]:
        for asked in pages:
            self.is_running = self.is_running and self._most > 0
            self._most -= 1
            yield self._read(asked) if self.is_running else Failure(DeviceError(FAILED))


@pytest.mark.parametrize(
    ("engines", "failed"),
    [
        ([Mortal(2), ScriptedEngine(0.05)], 1),
        ([Mortal(3)], 27),
        ([Mortal(4), Mortal(5), Mortal(0)], 21),
    ],
)
def test_a_run_loses_no_page(tmp_path: Path, engines: list[ScriptedEngine], failed: int) -> None:
    """What an engine does not read another does; if there is none, the pages are listed."""
    path = papers.pdf(tmp_path / "a.pdf", range(1, 31))
    plan = Plan("Free OCR.", presets.attempts(SMALL, DecodeSettings()), formats=("json",))
    inputs = find([str(path)]).inputs
    with (
        Store(tmp_path / "out") as store,
        Renderer(RenderSettings(dpi=36)) as renderer,
    ):
        tally = read_documents(inputs, engines, plan, store, renderer)
    assert (tally.read, tally.failed) == (30 - failed, failed)
    told = [line for line in read_manifests(tmp_path / "out") if line["outcome"] == "failed"]
    assert [line["reason"] for line in told] == [FAILED] * failed


def test_predictions_in_flight_fail_with_the_reason(
    tiny: Network, card: Card, tmp_path: Path
) -> None:
    """And the platform learns that the container must be started again."""
    from predict import Predictor, metrics  # needs Cog

    engine, decoder = engine_on(card, tiny, 2)
    decoder.before = fails_when(card, 2)  # type: ignore[assignment]
    path = tmp_path / "pages.tiff"
    picture = Image.new("RGB", (64, 64), "white")
    picture.save(path, save_all=True, append_images=[picture] * 5)
    attempt = Attempt("first", SMALL, DecodeSettings(max_new_tokens=300, stop_on_loop=False))
    predictor = Predictor()
    with closing(DocumentReader(engine)) as reader:
        predictor.reader = reader
        assert predictor.healthcheck()
        document, numbers = reader.open(path, "pages")

        async def predictions() -> list[list[PageRecord]]:
            readings = (
                reader.read(document, numbers, "Free OCR.", (attempt,), lambda _: None)
                for _ in range(2)
            )
            return await asyncio.gather(*readings)

        for records in asyncio.run(predictions()):
            with pytest.raises(OcrError) as caught:
                metrics(records)
            assert str(caught.value) == FAILED
            assert {record.error for record in records} == {FAILED}
        assert not predictor.healthcheck()
        (record,) = reader.stream(document, [1], "Free OCR.", attempt)
        assert record.error == FAILED  # type: ignore[union-attr]
