"""Distances between what was read and what stands on the page. Pure functions, no model.

Distances are Levenshtein's (one for each insertion, deletion or substitution), by `rapidfuzz`.
Before texts are compared, Unicode is composed (NFC) and every run of white space becomes one
space, as line breaks are a matter of taste; only `exact_match` looks at lines.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein
from scipy.optimize import linear_sum_assignment

from deepseek_ocr.grounding.parser import Box

MOST_BOXES = 2_000
"""Boxes of one page that are compared at most, on either side: the table of all pairs is held."""

HIT = 0.5
"""Intersection over union from which on something counts as found."""

MOST_MARKS = 30
"""Combining marks in a row that are composed together: more than any writing system has."""


class Errors(NamedTuple):
    """Edits between a prediction and its reference, and how long the reference is."""

    edits: int
    length: int


def composed(text: str) -> str:
    """`text` in composed Unicode (NFC), in time linear in its length.

    Composing sorts the marks on a letter, in time with the square of their number. So a run of
    more than `MOST_MARKS` is cut, as in Unicode's stream-safe text format, and its pieces are
    composed by themselves; any other text is exactly NFC.
    """
    if text.isascii():
        return text
    pieces: list[str] = []
    start = marks = 0
    for at, sign in enumerate(text):
        # The category, as some marks of class 0 come apart into marks that are sorted.
        marks = marks + 1 if unicodedata.category(sign).startswith("M") else 0
        if marks > MOST_MARKS:
            pieces.append(text[start:at])
            start, marks = at, 1
    pieces.append(text[start:])
    return "".join(unicodedata.normalize("NFC", piece) for piece in pieces)


def normalise(text: str) -> str:
    """`text` as `composed` gives it, every run of white space one space, none at the ends."""
    return " ".join(composed(text).split())


def character_errors(reference: str, prediction: str) -> Errors:
    """Edits in characters after `normalise`."""
    reference, prediction = normalise(reference), normalise(prediction)
    return Errors(Levenshtein.distance(reference, prediction), len(reference))


def word_errors(reference: str, prediction: str) -> Errors:
    """Edits in words (what white space separates) after `normalise`."""
    words = normalise(reference).split()
    return Errors(Levenshtein.distance(words, normalise(prediction).split()), len(words))


def character_error_rate(references: Sequence[str], predictions: Sequence[str]) -> float:
    """CER of a corpus: all edits over all characters of the references; 0 is perfect. Raises
    `ValueError` if there are not as many predictions as references, or no text in these."""
    errors = [character_errors(*pair) for pair in zip(references, predictions, strict=True)]
    length = sum(error.length for error in errors)
    if not length:
        raise ValueError("There is no text to compare with; give references that are not empty.")
    return sum(error.edits for error in errors) / length


def normalised_edit_distance(reference: str, prediction: str) -> float:
    """Edits over the length of the longer text, 0 (equal) to 1, as OmniDocBench defines it. Two
    empty texts have distance 0."""
    reference, prediction = normalise(reference), normalise(prediction)
    return float(Levenshtein.normalized_distance(reference, prediction))


def exact_match(reference: str, prediction: str) -> bool:
    """True if the texts agree line by line; spaces within and around lines do not count."""
    return _lines(reference) == _lines(prediction)


def matched_ious(truth: Sequence[Box], predicted: Sequence[Box]) -> list[float]:
    """For each true box the IoU with the predicted box it is paired with, 0 if it has none. Each
    box is in one pair at most; the pairing is the one with the largest sum. Only the first
    `MOST_BOXES` on either side take part, further true boxes count 0."""
    found = [0.0] * len(truth)
    if truth and predicted:
        ious = _all_ious(truth[:MOST_BOXES], predicted[:MOST_BOXES])
        rows, columns = linear_sum_assignment(ious, maximize=True)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            found[row] = float(ious[row, column])
    return found


def _all_ious(truth: Sequence[Box], predicted: Sequence[Box]) -> np.ndarray:
    """`[len(truth), len(predicted)]` intersections over unions."""
    a = np.array(truth, dtype=np.float64)[:, None, :]
    b = np.array(predicted, dtype=np.float64)[None, :, :]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.clip(sides, 0, None).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - common
    flat = union <= 0
    ious: np.ndarray = np.where(flat, (a == b).all(-1), common / np.where(flat, 1.0, union))
    return ious


def _lines(text: str) -> list[str]:
    return [normalise(line) for line in text.strip().splitlines()]
