"""What the bundled model reads by each choice of kernels: to a reader they must be the same.

The example pages need nothing but the repository. Synthetic pages are read too if the packages of
training and some fonts are installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import tasks
from benchmarks.parts import Figures, Rows, Settings
from deepseek_ocr.engine import Failure, OcrEngine, Page
from deepseek_ocr.errors import InputError, SettingsError
from deepseek_ocr.kernels import choice
from deepseek_ocr.settings import DecodeSettings
from examples.make_pages import PAGES

ROOT = Path(__file__).resolve().parent.parent
POCKET = ROOT / "checkpoints" / "pocket"

KERNELS = ("plain", "auto", "auto,-compiled", "auto,-graphs")

MOST_ERRORS = 0.06
"""Character error rate of clean synthetic pages; `tests/test_pocket.py` holds 100 pages in unknown
fonts to 0.035, of 20 pages a few may be hard ones."""

MOST_APART = 0.01
"""Difference of the character error rate from that of the plain class."""

SEED = 1_000_003
"""Of the pages that `make evaluate` makes; training draws from other seeds."""

Measure = Callable[[OcrEngine], Figures]


def check(settings: Settings, rows: Rows) -> None:
    """The part: a row for every choice of kernels, that of the plain class first."""
    with tempfile.TemporaryDirectory(prefix="gpu-report-pages-") as folder:
        measures: list[Measure] = [_examples]
        try:
            measures.append(_synthetic(Path(folder), rows))
        except (ImportError, InputError) as error:  # a package or fonts are not installed
            rows.note(f"no synthetic pages: {error}")
        plain: Figures | None = None
        for name in KERNELS:
            try:
                choice.parse(name)
            except SettingsError as error:
                rows.note(f"{name} is left out: {error}")
                continue
            found = rows.add(name, partial(_read, settings, name, measures, plain), needs=3)
            plain = plain or found


def _read(
    settings: Settings, name: str, measures: Sequence[Measure], plain: Figures | None
) -> Figures:
    """All figures of the bundled model with the kernels called `name`."""
    engine = OcrEngine.load(POCKET, settings.device, settings.dtype, kernels=name)
    figures: Figures = {}
    try:
        for measure in measures:
            figures |= measure(engine)
    finally:
        engine.close()
    wrong = list(_complaints(figures, plain))
    return figures | ({"wrong": "; ".join(wrong)} if wrong else {})


def _complaints(figures: Figures, plain: Figures | None) -> list[str]:
    wrong = []
    if figures["examples"] < len(PAGES):
        wrong.append(f"{figures['examples']} of {len(PAGES)} examples are read as they are")
    errors = figures.get("cer")
    if errors is None:
        return wrong
    if not errors <= MOST_ERRORS:
        wrong.append(f"a character error rate of {errors:.3f} is above {MOST_ERRORS}")
    if plain is not None and not abs(errors - plain["cer"]) <= MOST_APART:
        wrong.append(f"a character error rate of {errors:.3f}, {plain['cer']:.3f} by {KERNELS[0]}")
    return wrong


def _examples(engine: OcrEngine) -> Figures:
    """How many of the example pages are read exactly."""
    pages = [
        Page(ROOT / "examples" / f"{name}.png", tasks.prompt_for("ocr"), tasks.crop_for("tiny"))
        for name in PAGES
    ]
    read = 0
    for outcome, (_, _, lines) in zip(engine.read_many(pages), PAGES.values(), strict=True):
        if isinstance(outcome, Failure):
            raise outcome.error
        read += outcome.text.split() == " ".join(lines).split()
    return {"examples": read}


def _synthetic(folder: Path, rows: Rows, count: int = 20) -> Measure:
    """What measures error rate, boxes and locating on `count` clean pages at Tiny.

    Raises `ImportError` for a package of training and `InputError` for fonts that are missing.
    """
    from training import fonts, synth
    from training.readers import model_reader
    from training.samples import Example, Sample, examples_of
    from training.scoring import evaluate, summarise

    which: fonts.FontSet = "held-out"
    try:
        fonts.typefaces(which)
    except InputError:
        which = "all"
    recipe = replace(synth.CLEAN_LINES, font_set=which)
    numbers = range(1, count + 1)
    examples: list[Example] = []
    wanted = ["Free OCR", "Convert to Markdown", "Locate Object by Reference"]
    for number, path in zip(
        numbers, synth.write_pages(folder, recipe, numbers, SEED, 1), strict=True
    ):
        page = synth.make_page(recipe, synth.page_seed(SEED, number))
        examples += examples_of(Sample(path, page.annotation, path.stem), wanted)
    families = {face.family for face in fonts.typefaces(which)}
    rows.note(f"{count} synthetic pages in fonts called {which!r}: {len(families)} families")

    def measure(engine: OcrEngine) -> Figures:
        read = model_reader(engine, tasks.crop_for("tiny"), DecodeSettings(max_new_tokens=512))
        found = summarise(evaluate(examples, read))
        ocr, markdown, locate = (found[task] for task in wanted)
        return {
            "cer": ocr["cer"].value,
            "failed": ocr["failed"].value,
            "iou": markdown["iou"].value,
            "hit": locate["hit"].value,
        }

    return measure
