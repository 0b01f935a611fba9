"""From predictions to scores: one page at a time, then all of them with intervals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_ocr import presets
from deepseek_ocr.decoding.loop_detector import is_loop
from deepseek_ocr.grounding import parser
from deepseek_ocr.training.data.samples import Example
from deepseek_ocr.training.evaluation import text_metrics
from deepseek_ocr.training.evaluation.bootstrap import Estimate, Share, by_page, figures
from deepseek_ocr.training.evaluation.teds import html_tables, table_scores

RATIO_BANDS = (0.0, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 15.0, 20.0)
"""Lower bounds of the bands of text tokens per vision token; the last has no upper one."""

_PICTURE = re.compile(r"!\[[^\]\n]{0,200}\]\([^)\n]{0,500}\)")
"""A picture in Markdown, as `to_markdown` puts one for every figure."""


@dataclass(frozen=True)
class Prediction:
    """What was read of one example, or why nothing was (`error`).

    - `finish_reason`: stop, length or loop; None if the text was made elsewhere, which is then
      searched for loops
    - `text_tokens`, `vision_tokens`: of the reference by the model's tokenizer, and of the page
      less its padding; None if there is no model
    - `seconds`: from when the page was begun until it was read, other pages at the same time
    """

    text: str
    error: str | None = None
    finish_reason: str | None = None
    text_tokens: int | None = None
    vision_tokens: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Score:
    """An example, what was read of it, and its part in every figure that applies to it. `notes`
    says what could not be compared."""

    example: Example
    prediction: Prediction
    shares: dict[str, Share]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Band:
    """Pages of one band of compression: text tokens per vision token in [low, high). `precision` is
    1 less the normalised edit distance, on average, and `interval` its 95 % interval (None of fewer
    than two pages); `ratio` is the mean ratio."""

    low: float
    high: float | None
    pages: int
    precision: float
    ratio: float
    text_tokens: tuple[int, int] = (0, 0)
    interval: tuple[float, float] | None = None


def score(example: Example, prediction: Prediction) -> Score:
    """Compare one prediction with the example's answer; an error counts as an empty text."""
    text = "" if prediction.error else prediction.text
    short = presets.task_name(example.task)
    shares: dict[str, Share] = {"failed": (float(prediction.error is not None), 1.0)}
    looped = is_loop(text) if prediction.finish_reason is None else None
    shares["loop"] = (float(looped or prediction.finish_reason == "loop"), 1.0)
    notes: list[str] = []
    if short in ("markdown", "locate"):
        shares |= _boxes(example.answer, text, locate=short == "locate")
    if short != "locate":
        shares |= _texts(comparable(example.answer, short), comparable(text, short))
        shares |= _tables(example.answer, text, notes)
        if prediction.text_tokens and prediction.vision_tokens:
            shares["compression"] = (prediction.text_tokens, prediction.vision_tokens)
    return Score(example, prediction, shares, tuple(notes))


def comparable(text: str, short: str) -> str:
    """What of `text` is compared as text: Markdown without tags and without pictures, anything
    else as it is. Whether a picture was found is what boxes measure."""
    if short != "markdown":
        return text
    without = _PICTURE.sub("", parser.to_markdown(text))
    return re.sub(r"\n{3,}", "\n\n", without).strip("\n")


def summarise(scores: Sequence[Score]) -> dict[str, dict[str, Estimate]]:
    """For each task (its title) the figures that apply, pages drawn anew for the intervals."""
    summary: dict[str, dict[str, Estimate]] = {}
    for task in (task.title for task in presets.TASKS.values()):
        chosen = [score for score in scores if score.example.task == task]
        if chosen:
            names = sorted({name for score in chosen for name in score.shares})
            parts = [(score.example.page, score.shares) for score in chosen]
            summary[task] = figures(by_page(parts, names))
    return summary


def precision_by_ratio(scores: Sequence[Score]) -> list[Band]:
    """Precision by compression, after the table in the model's paper: empty bands are left out.
    Pages that failed are in none: nobody knows their vision tokens."""
    bands: list[Band] = []
    known = [score for score in scores if "compression" in score.shares]
    for low, high in zip(RATIO_BANDS, (*RATIO_BANDS[1:], None), strict=True):
        inside = [one for one in known if low <= _ratio(one) < (high or float("inf"))]
        if inside:
            bands.append(_band(low, high, inside))
    return bands


def _band(low: float, high: float | None, scores: Sequence[Score]) -> Band:
    precisions: list[Share] = [(1 - score.shares["ned"][0], 1.0) for score in scores]
    precision = figures({"precision": precisions})["precision"]
    low_end, high_end = precision.low, precision.high
    interval = None if low_end is None or high_end is None else (low_end, high_end)
    tokens = [int(score.shares["compression"][0]) for score in scores]
    ratio = sum(_ratio(score) for score in scores) / len(scores)
    ends = min(tokens), max(tokens)
    return Band(low, high, len(scores), precision.value, ratio, ends, interval)


def _ratio(score: Score) -> float:
    text, vision = score.shares["compression"]
    return text / vision


def _texts(reference: str, text: str) -> dict[str, Share]:
    return {
        "cer": text_metrics.character_errors(reference, text),
        "wer": text_metrics.word_errors(reference, text),
        "ned": (text_metrics.normalised_edit_distance(reference, text), 1.0),
        "exact": (float(text_metrics.exact_match(reference, text)), 1.0),
    }


def _boxes(answer: str, text: str, locate: bool) -> dict[str, Share]:
    """Box figures: every box of every region counts by itself."""
    truth, predicted = (
        [box for region in parser.parse(source) for box in region.boxes]
        for source in (answer, text)
    )
    if not truth:
        return {}
    ious = text_metrics.matched_ious(truth, predicted)
    shares: dict[str, Share] = {"iou": (sum(ious), len(ious))}
    if locate:
        shares["hit"] = (float(sum(ious) / len(ious) >= text_metrics.HIT), 1.0)
    return shares


def _tables(answer: str, text: str, notes: list[str]) -> dict[str, Share]:
    truth = html_tables(answer)
    scores = table_scores(truth, html_tables(text))
    known = [score for score in scores if score is not None]
    if len(known) < len(scores):
        notes.append(f"{len(scores) - len(known)} tables are too large to be compared")
    return {"teds": (sum(known), len(known))} if known else {}
