"""Pages that go wrong are tried again, and the best try is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import pytest
from PIL import Image

from deepseek_ocr import presets
from deepseek_ocr.documents.page_retries import ReadPage, read_pages
from deepseek_ocr.documents.renderer import Rendered
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Failure, Page, Reading
from deepseek_ocr.errors import GenerationError, SettingsError
from deepseek_ocr.settings import Attempt, CropSettings, DecodeSettings
from tests.conftest import ROOT
from tests.papers import picture
from tests.scripted import ScriptedEngine, reading, text_of

GUNDAM = CropSettings()
LADDER = presets.attempts(GUNDAM, DecodeSettings())


def page(number: int, fault: str = "none") -> Rendered:
    return Rendered(picture(number, fault), None, 0)


def read(
    *pages: Rendered, engine: object = None, attempts: tuple[Attempt, ...] = LADDER
) -> list[ReadPage[int]]:
    chosen: ScriptedEngine = engine or ScriptedEngine()  # type: ignore[assignment]
    return list(read_pages(chosen, enumerate(pages), "Free OCR.", attempts))


def outcomes(page: ReadPage[int]) -> list[str]:
    return [tried.outcome for tried in page.tries]


@pytest.mark.parametrize(
    ("fault", "tried"),
    [
        ("none", ["stop"]),
        ("loops until the guard is closer", ["loop", "stop"]),
        ("is cut at every preset but another", ["length", "length", "stop"]),
        ("is empty unless sampled", ["empty", "empty", "stop"]),
    ],
)
def test_the_ladder_is_climbed_until_a_try_ends_by_itself(fault: str, tried: list[str]) -> None:
    (result,) = read(page(300, fault))
    assert outcomes(result) == tried
    assert result.kept == len(tried) - 1
    assert result.reading is not None
    assert result.reading.text == text_of(300)


def test_each_try_says_what_was_asked() -> None:
    (result,) = read(page(1, "is cut at every preset but another"))
    asked, guard, preset = (tried.settings for tried in result.tries)
    assert [tried["name"] for tried in (asked, guard, preset)] == [
        "as asked", "closer guard", "another preset",
    ]  # fmt: skip
    assert guard["decode"]["no_repeat_ngram_size"] == 20
    assert asked["crop"]["crop_mode"]
    assert not preset["crop"]["crop_mode"]


def test_of_tries_that_all_loop_the_one_with_most_that_is_new_is_kept() -> None:
    texts = iter(["la " * 300, "one two three four five six " * 9, "la la"])
    engine = Saying(lambda _: reading(next(texts), "loop"))
    (result,) = read(page(1), engine=engine, attempts=LADDER[:3])
    assert result.kept == 1
    assert outcomes(result) == ["loop", "loop", "loop"]


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        (("a b c d e", "loop"), ("x", "length"), 1),
        (("a b c d e", "length"), ("x", "stop"), 1),
        (("x", "length"), ("a b c d e f", "loop"), 0),
        (("x", "loop"), ("", "stop"), 0),
    ],
)
def test_how_a_try_ends_weighs_more_than_its_length(
    first: tuple[str, str], second: tuple[str, str], kept: int
) -> None:
    said = iter([first, second])
    engine = Saying(lambda _: reading(*next(said)))
    assert read(page(1), engine=engine, attempts=LADDER[:2])[0].kept == kept


def test_a_try_that_fails_does_not_cost_the_one_before() -> None:
    said: Iterator[Reading | Failure] = iter(
        [reading("la la la", "loop"), Failure(GenerationError("not a number"))]
    )
    (result,) = read(page(1), engine=Saying(lambda _: next(said)))
    assert outcomes(result) == ["loop", "failed"]
    assert result.reading is not None
    assert result.reading.text == "la la la"


def test_a_page_that_fails_is_not_tried_again_and_says_why() -> None:
    (result,) = read(page(1, "fails"))
    assert (outcomes(result), result.reading) == (["failed"], None)
    assert "not a finite number" in str(result.error)


def test_a_blank_page_is_rightly_empty() -> None:
    blank = Rendered(Image.new("RGB", (500, 700), (250, 250, 248)), None, 0)
    assert outcomes(read(blank, engine=Saying(lambda _: reading("", "stop")))[0]) == ["empty"]
    (written,) = read(page(1, "is empty"))
    assert outcomes(written) == ["empty", "empty", "empty"]


def test_a_page_that_took_all_its_time_is_not_tried_again() -> None:
    timed = presets.attempts(GUNDAM, DecodeSettings(timeout=10))
    given: list[float] = []

    def say(asked: Page) -> Reading:
        given.append(asked.decode.timeout)
        return reading("la la", "loop", seconds=6)

    (result,) = read(page(1), engine=Saying(say), attempts=timed)
    assert given == [10, 4]
    assert outcomes(result) == ["loop", "loop"]
    (late,) = read(page(1, "takes too long"), attempts=timed)
    assert (outcomes(late), late.reading is not None) == (["timeout"], True)


class Saying:
    """An engine that answers with what a function says."""

    def __init__(self, say: Callable[[Page], Reading | Failure]) -> None:
        self._say = say

    def read_many(self, pages: Iterable[Page]) -> Iterator[Reading | Failure]:
        for asked in pages:
            yield self._say(asked)


class Batched:
    """An engine that holds up to eight pages and takes the next when one is given back."""

    def __init__(self) -> None:
        self.most = 0

    def read_many(self, pages: Iterable[Page]) -> Iterator[Reading | Failure]:
        waiting: list[Page] = []
        for asked in pages:
            waiting.append(asked)
            self.most = max(self.most, len(waiting))
            if len(waiting) == 8:
                yield from ScriptedEngine().read_many([waiting.pop(0)])
        yield from ScriptedEngine().read_many(waiting)


def test_an_engine_may_hold_several_pages_and_every_page_comes_out_once() -> None:
    faults = ["none", "loops until the guard is closer", "fails", "loops always", "is empty"]
    pages = [page(number, faults[number % 5]) for number in range(1, 51)]
    engine = Batched()
    results = read(*pages, engine=engine)
    assert sorted(result.wanted for result in results) == list(range(50))
    assert engine.most == 8
    for result in results:
        number = result.wanted + 1
        expected = {0: "none", 1: "stop", 2: "failed", 3: "loop", 4: "empty"}[number % 5]
        if number % 5:
            assert result.tries[result.kept].outcome == expected
        else:
            assert result.tries[-1].outcome == "stop"


def test_pages_are_taken_from_the_source_only_when_the_engine_asks() -> None:
    taken: list[int] = []

    def source() -> Iterator[tuple[int, Rendered]]:
        for number in range(1, 6):
            taken.append(number)
            yield number, page(number)

    results = read_pages(ScriptedEngine(), source(), "Free OCR.", LADDER)
    next(results)
    assert taken == [1]


def test_the_ladder_changes_what_was_asked_and_nothing_else() -> None:
    decode = DecodeSettings(max_new_tokens=77, temperature=0.0)
    for attempt in presets.attempts(GUNDAM, decode)[1:]:
        assert attempt.decode.max_new_tokens == 77
        assert (attempt.crop, attempt.decode) != (GUNDAM, decode)
    base = presets.crop_for("base")
    assert presets.attempts(base, decode)[2].crop == presets.crop_for("large")
    assert len(presets.attempts(base, decode, retries=0)) == 1
    with pytest.raises(SettingsError, match="retries"):
        presets.attempts(base, decode, retries=9)


def test_a_page_ends_at_its_deadline_with_what_was_written(pocket: OcrEngine) -> None:
    decode = DecodeSettings(timeout=1e-6)
    result = pocket.read(
        ROOT / "examples" / "fruit.png", "Free OCR.", presets.crop_for("tiny"), decode
    )
    assert result.finish_reason == "timeout"
    assert len(result.tokens) == 1
