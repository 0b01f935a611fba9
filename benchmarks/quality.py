"""What the bundled model reads by each choice of kernels: to a reader they must be the same.

The example pages and their error rate need nothing but the repository. Synthetic pages are read too
if the packages of training and some fonts are installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.command import EXAMPLES, POCKET
from benchmarks.part_rows import Figures, ReportRows
from benchmarks.part_runner import ReportSettings
from deepseek_ocr import presets
from deepseek_ocr.devices import selection
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Failure, Page
from deepseek_ocr.errors import InputError
from deepseek_ocr.settings import DecodeSettings
from examples.make_pages import PAGES

INT8 = "auto, int8"
"""The kernels "auto" with the decoder's weights in 8 bits."""

KERNELS = {
    "cuda": ("plain", "auto", "auto,-graphs", "auto,-flash", "auto,-vision", INT8),
    "cpu": ("plain", "auto", "auto,-compiled", INT8),
}
"""Choices of kernels by the kind of device, the plain class first; of others, those of the CPU."""

MOST_ERRORS = 0.06
"""Character error rate, of the examples (one wrong character is 0.03) and of clean synthetic pages:
`tests/test_pocket.py` holds 100 pages in unknown fonts to 0.035, of 20 pages a few may be hard."""

MOST_APART = 0.01
"""Difference of the character error rate of synthetic pages from that of the plain class."""

SEED = 1_000_003
"""Of the pages that `make evaluate` makes; training draws from other seeds."""

Measure = Callable[[OcrEngine], Figures]


def check(settings: ReportSettings, rows: ReportRows) -> None:
    """The part: rows for every choice of kernels, that of the plain class first: the examples, and
    the synthetic pages, of which another row says how they were made."""
    measure: Measure | None = None
    with tempfile.TemporaryDirectory(prefix="gpu-report-pages-") as folder:

        def made() -> Figures:
            nonlocal measure
            try:
                measure, about = synthetic(Path(folder))
            except (ImportError, InputError) as error:  # a package or fonts are not installed
                return {"left_out": str(error)}
            return about

        rows.add("synthetic pages", made)
        kind = selection.choose_device(settings.device).type
        plain: Figures | None = None
        for kernels in KERNELS.get(kind, KERNELS["cpu"]):
            plain = _read(settings, rows, kernels, measure, plain) or plain


def _read(
    settings: ReportSettings,
    rows: ReportRows,
    kernels: str,
    measure: Measure | None,
    plain: Figures | None,
) -> Figures | None:
    """Rows of the bundled model with one of `KERNELS`; what `measure` finds on synthetic
    pages is judged beside `plain`, and returned."""
    engine: OcrEngine | None = None

    def first() -> Figures:
        nonlocal engine
        name, quant = ("auto", "int8") if kernels == INT8 else (kernels, "none")
        engine = OcrEngine.load(POCKET, settings.device, settings.dtype, kernels=name, quant=quant)
        return _judged(examples(engine), None)

    rows.add(kernels, first, needs=3)
    if engine is None:
        return None
    loaded, found = engine, None
    if measure is not None:
        name = f"{kernels}, synthetic pages"
        found = rows.add(name, lambda: _judged(measure(loaded), plain), needs=3)
    loaded.close()
    return found


def _judged(figures: Figures, plain: Figures | None) -> Figures:
    """`figures`, and `wrong` if they are not as they should be, or not those of the plain class."""
    wrong = []
    if figures.get("exact", len(PAGES)) < len(PAGES):
        wrong.append(f"{figures['exact']} of {len(PAGES)} examples are read as they are")
    errors = figures["cer"]
    if not errors <= MOST_ERRORS:
        wrong.append(f"a character error rate of {errors:.3f} is above {MOST_ERRORS}")
    if plain is not None and not abs(errors - plain["cer"]) <= MOST_APART:
        wrong.append(f"a character error rate of {errors:.3f}, {plain['cer']:.3f} by plain")
    return figures | ({"wrong": "; ".join(wrong)} if wrong else {})


def examples(engine: OcrEngine) -> Figures:
    """How many of the example pages are read exactly, and the character error rate of them all;
    white space counts as one space."""
    pages = [
        Page(EXAMPLES / f"{name}.png", presets.prompt_for("ocr"), presets.crop_for("tiny"))
        for name in PAGES
    ]
    exact = edits = length = 0
    for outcome, (_, _, lines) in zip(engine.read_many(pages), PAGES.values(), strict=True):
        if isinstance(outcome, Failure):
            raise outcome.error
        text, wanted = " ".join(outcome.text.split()), " ".join(lines)
        exact += text == wanted
        edits += edit_distance(text, wanted)
        length += len(wanted)
    return {"exact": exact, "cer": edits / length}


def edit_distance(one: str, other: str) -> int:
    """Levenshtein's distance of short texts; `training.text_metrics` needs a package for it."""
    row = list(range(len(other) + 1))
    for i, mine in enumerate(one, 1):
        before, row = row, [i]
        for j, theirs in enumerate(other, 1):
            row.append(min(row[-1] + 1, before[j] + 1, before[j - 1] + (mine != theirs)))
    return row[-1]


def synthetic(folder: Path, count: int = 20) -> tuple[Measure, Figures]:
    """What measures error rate, boxes and locating on `count` clean pages at Tiny, and how many in
    which fonts there are.

    Raises `ImportError` for a package of training and `InputError` for fonts that are missing.
    """
    from deepseek_ocr.training.data.samples import Example, Sample, examples_of
    from deepseek_ocr.training.evaluation.predictions import read_examples
    from deepseek_ocr.training.evaluation.scoring import score, summarise
    from deepseek_ocr.training.synthetic import fonts, recipes, synthetic_pages

    which: recipes.FontSet = "held-out"
    try:
        fonts.typefaces(which)
    except InputError:
        which = "all"
    recipe = replace(recipes.CLEAN_LINES, font_set=which)
    examples: list[Example] = []
    wanted = ["Free OCR", "Convert to Markdown", "Locate Object by Reference"]
    for number in range(1, count + 1):
        page = synthetic_pages.make_page(recipe, synthetic_pages.page_seed(SEED, number))
        path = folder / f"{number:06d}.png"
        page.image.save(path)
        examples += examples_of(Sample(path, page.annotation, path.stem), wanted)
    families = {face.family for face in fonts.typefaces(which)}

    def measure(engine: OcrEngine) -> Figures:
        decode = DecodeSettings(max_new_tokens=512)
        read = read_examples(engine, examples, presets.crop_for("tiny"), decode)
        found = summarise(list(map(score, examples, read)))
        ocr, markdown, locate = (found[task] for task in wanted)
        return {"cer": ocr["cer"].value, "failed": ocr["failed"].value,
                "iou": markdown["iou"].value, "hit": locate["hit"].value}  # fmt: skip

    return measure, {"pages": count, "fonts": which, "families": len(families)}
