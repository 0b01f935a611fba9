"""What the bundled model reads in fonts it never saw; and that a stage of its training runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from deepseek_ocr import presets
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.errors import InputError
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.settings import DecodeSettings
from deepseek_ocr.training.data.samples import Example, Sample, examples_of
from deepseek_ocr.training.evaluation.bootstrap import Estimate
from deepseek_ocr.training.evaluation.predictions import read_examples
from deepseek_ocr.training.evaluation.scoring import score, summarise
from deepseek_ocr.training.pocket import curriculum, train_pocket
from deepseek_ocr.training.synthetic import fonts, recipes, synthetic_pages
from tests.conftest import POCKET

SEED = 1_000_003
"""Of the pages that `make evaluate` makes; training draws from other seeds."""


@pytest.fixture(scope="module")
def engine() -> OcrEngine:
    if len(held_out_fonts()) < 5:
        pytest.skip("needs the held-out fonts that training/README.md names")
    return OcrEngine.load(POCKET, "cpu", "float32")


def held_out_fonts() -> set[str]:
    """Families that the bundled model never saw and that are here."""
    try:
        return {face.family for face in fonts.typefaces("held-out")}
    except InputError:  # there are none
        return set()


BOUNDS = [
    # task, preset, pages, figure, its least and its most: the card's number and a margin
    ("Free OCR", "Tiny", 100, "cer", 0.0, 0.035),
    ("Free OCR", "Small", 40, "cer", 0.0, 0.035),
    ("Free OCR", "Base", 20, "cer", 0.0, 0.04),
    ("Convert to Markdown", "Tiny", 40, "iou", 0.82, 1.0),
    ("Locate Object by Reference", "Tiny", 40, "hit", 0.85, 1.0),
]


@pytest.mark.parametrize(("task", "size", "pages", "figure", "least", "most"), BOUNDS)
def test_clean_pages_in_fonts_it_never_saw_are_read(
    engine: OcrEngine,
    tmp_path: Path,
    task: str,
    size: str,
    pages: int,
    figure: str,
    least: float,
    most: float,
) -> None:
    figures = measured(engine, tmp_path, task, size, range(1, pages + 1))
    assert figures["failed"].value == 0
    assert figures["loop"].value <= 0.02
    assert least <= figures[figure].value <= most


def measured(
    engine: OcrEngine, folder: Path, task: str, size: str, numbers: range
) -> dict[str, Estimate]:
    """Figures over clean pages in the held-out fonts."""
    recipe = replace(recipes.CLEAN_LINES, font_set="held-out")
    examples: list[Example] = []
    for number, path in zip(
        numbers, synthetic_pages.write_pages(folder, recipe, numbers, SEED, 1), strict=True
    ):
        page = synthetic_pages.make_page(recipe, synthetic_pages.page_seed(SEED, number))
        examples += examples_of(Sample(path, page.annotation, path.stem), [task])
    decode = DecodeSettings(max_new_tokens=512)
    read = read_examples(engine, examples, presets.crop_for(size), decode)
    return summarise(list(map(score, examples, read)))[task]


@pytest.mark.usefixtures("own_accelerator")
def test_a_stage_of_its_training_leaves_a_model_that_loads_and_a_log_of_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = curriculum.STAGES[1]
    monkeypatch.setattr(train_pocket, "STAGES", (replace(first, pages=16, batch=2, warmup=1),))
    monkeypatch.setattr(train_pocket, "TELL_EVERY", 1)
    assert train_pocket.main(["--output", str(tmp_path / "out"), "--workers", "0"]) == 0
    log = (tmp_path / "out" / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["text"] for line in log]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    engine = OcrEngine.load(tmp_path / "out" / "model", "cpu", "float32")
    page = synthetic_pages.make_page(first.sources[0].recipe, 1)
    decode = DecodeSettings(max_new_tokens=3)
    onward = [
        "--start",
        str(tmp_path / "out" / "model"),
        "--heads",
        str(tmp_path / "out" / train_pocket.HEADS),
    ]
    assert train_pocket.main(["--output", str(tmp_path / "on"), "--workers", "0", *onward]) == 0
    first_loss = json.loads((tmp_path / "on" / "log.jsonl").read_text().splitlines()[0])["text"]
    assert first_loss < losses[0]
    assert engine.read(page.image, "Free OCR.", presets.crop_for("Tiny"), decode).counts.output >= 0


@pytest.mark.parametrize("text", ["Total 498", "<table><tr><td>é</td></tr></table>", "[[1, 2]]\n"])
def test_its_tokenizer_gives_every_text_back(text: str) -> None:
    tokenizer = Tokenizer.from_file(str(POCKET / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_bundled_model_is_small_and_of_the_architecture() -> None:
    weights = POCKET / "model.safetensors"
    assert weights.stat().st_size <= 16 * 2**20
    assert read_config(POCKET).text_config.bos_token_id == 0
