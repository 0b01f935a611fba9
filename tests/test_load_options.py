"""Settings reach the engine as one value, whichever program loads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from deepseek_ocr.cli import doctor
from deepseek_ocr.configuration import Settings
from deepseek_ocr.engine.load_options import LoadOptions
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.errors import OcrError
from deepseek_ocr.training.evaluation.evaluation_run import load_engine

POCKET = Path(__file__).resolve().parent.parent / "checkpoints" / "pocket"

SETTINGS = Settings(
    model="pocket",
    device="cpu",
    dtype="float32",
    quant="int8",
    kernels="plain",
    slots=3,
    vision_device="cpu",
    strict=True,
    threads=1,
)
"""Nothing as it is by default, so that what is left out on the way is seen."""


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[LoadOptions]:
    """The options of every engine that is loaded; none is."""
    seen: list[LoadOptions] = []

    def record(folder: Path, options: LoadOptions) -> OcrEngine:
        seen.append(options)
        raise OcrError("recorded")

    monkeypatch.setattr(OcrEngine, "from_options", record)
    return seen


@pytest.fixture
def threads() -> Iterator[None]:
    """Gives torch back the threads that a test takes."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_every_setting_that_the_engine_knows_reaches_it() -> None:
    options = SETTINGS.load_options()
    known = {field.name for field in fields(LoadOptions)} & {
        field.name for field in fields(Settings)
    }
    assert len(known) == 8
    for name in known:
        assert getattr(options, name) == getattr(SETTINGS, name), name


def test_evaluation_loads_what_the_settings_say(loaded: list[LoadOptions]) -> None:
    with pytest.raises(OcrError, match="recorded"):
        load_engine(POCKET, Path("adapter"), SETTINGS)
    assert loaded == [replace(SETTINGS.load_options(), adapter=Path("adapter"))]


def test_the_doctor_loads_what_the_settings_say(loaded: list[LoadOptions]) -> None:
    doctor.examine(SETTINGS, "tiny")
    assert loaded == [replace(SETTINGS.load_options(), slots=1)]


def test_a_caller_of_the_library_may_name_each_option(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LoadOptions] = []
    monkeypatch.setattr(OcrEngine, "from_options", lambda folder, options: seen.append(options))
    OcrEngine.load(POCKET, "cpu", "float32", quant="int8", slots=2, strict=True)
    OcrEngine.load(POCKET)
    assert seen == [
        LoadOptions("cpu", "float32", quant="int8", slots=2, strict=True),
        LoadOptions(),
    ]


@pytest.mark.usefixtures("threads")
def test_threads_are_set_only_if_asked_for() -> None:
    torch.set_num_threads(2)
    OcrEngine.load(POCKET, "cpu", "float32", kernels="plain", slots=1).close()
    assert torch.get_num_threads() == 2
    options = LoadOptions("cpu", "float32", kernels="plain", slots=1, threads=1)
    OcrEngine.from_options(POCKET, options).close()
    assert torch.get_num_threads() == 1
