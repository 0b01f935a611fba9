"""The bundled model reads as well by every path of its kernels as by the fastest one.

`test_pocket.py` measures that one; numbers that agree with the plain class within a tolerance say
little about characters and boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.kernels import slot_decoder
from tests.conftest import POCKET
from tests.recorder import compute_as_a_card
from tests.test_pocket import held_out_fonts, measured

PATHS = {
    # kernels, quant, type
    "plain": ("plain", "none", "float32"),
    "torch": ("auto,-compiled", "none", "float32"),
    "int8": ("auto", "int8", "float32"),
    "card, bfloat16": ("auto,-compiled", "none", "bfloat16"),
    "card, float16": ("auto,-compiled", "none", "float16"),
    "card, int8": ("auto,-compiled", "int8", "float16"),
}


@pytest.fixture(scope="module", params=PATHS)
def engine(request: pytest.FixtureRequest) -> Iterator[OcrEngine]:
    if len(held_out_fonts()) < 5:
        pytest.skip("needs the held-out fonts that training/README.md names")
    kernels, quant, dtype = PATHS[request.param]
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.param.startswith("card"):
            compute_as_a_card(monkeypatch)
            monkeypatch.setattr(slot_decoder, "_paths_on", lambda *given: (slot_decoder.GRAPHS,))
        loaded = OcrEngine.load(POCKET, "cpu", dtype, kernels=kernels, quant=quant)
        assert loaded.rehearsal is not None
        assert (loaded.rehearsal.decoder == "CUDA graphs") == request.param.startswith("card")
        yield loaded
        loaded.close()


@pytest.mark.parametrize(
    ("task", "pages", "figure", "least", "most"),
    [
        ("Free OCR", 20, "cer", 0.0, 0.035),
        ("Convert to Markdown", 10, "iou", 0.82, 1.0),
        ("Locate Object by Reference", 10, "hit", 0.85, 1.0),
    ],
)
def test_clean_pages_are_read_by_every_path(
    engine: OcrEngine,
    tmp_path: Path,
    task: str,
    pages: int,
    figure: str,
    least: float,
    most: float,
) -> None:
    figures = measured(engine, tmp_path, task, "Tiny", range(1, pages + 1))
    assert figures["failed"].value == 0
    assert figures["loop"].value <= 0.02
    assert least <= figures[figure].value <= most
