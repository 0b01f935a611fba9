"""A run's figures as text, Markdown, JSON and plots."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, cast

from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deepseek_ocr import presets
from deepseek_ocr.console import one_line
from deepseek_ocr.files import json_bytes
from deepseek_ocr.training.data.samples import Rejection
from deepseek_ocr.training.evaluation.bootstrap import LEVEL, RESAMPLES, Estimate
from deepseek_ocr.training.evaluation.scoring import Band, Score, precision_by_ratio, summarise
from deepseek_ocr.training.experiment_log import versions

MOST_LISTED = 100
"""Failures and rejections listed in the report; all are in samples.jsonl and metrics.json."""

WORST = 10
"""Pages with the largest error that are listed."""

FIGURES: dict[str, tuple[str, str]] = {
    "cer": ("CER", "character error rate: edits over characters of all references"),
    "wer": ("WER", "word error rate: edits over words of all references"),
    "ned": ("edit distance", "edits over the longer text's length, mean over pages (OmniDocBench)"),
    "exact": ("exact match", "share of pages that agree line by line"),
    "teds": ("TEDS", "likeness of HTML tables, mean over the true tables"),
    "iou": ("box IoU", "overlap with the paired predicted box, mean over the true boxes"),
    "hit": ("found", "share located with an overlap of at least 0.5"),
    "loop": ("loop rate", "share of pages on which the model went in circles"),
    "failed": ("failed", "share of pages that were not read at all; they count as empty"),
    "compression": ("compression", "text tokens of the references per vision token"),
}
"""Name and meaning of each figure, in the order of the report."""


@dataclass(frozen=True)
class EvaluationRun:
    """What a report is made of. `rejections` are entries of the test file that cannot be used,
    `unsupported` the samples that have no answer for any of the tasks asked for, `extra` texts made
    elsewhere that no page used."""

    settings: Mapping[str, Any]
    scores: Sequence[Score]
    rejections: Sequence[Rejection] = ()
    unsupported: Sequence[str] = ()
    extra: Sequence[str] = ()

    @property
    def failures(self) -> list[Score]:
        """Pages that were not read."""
        return [score for score in self.scores if score.prediction.error is not None]

    @cached_property
    def summary(self) -> dict[str, dict[str, Estimate]]:
        """For each task (its title) the figures that apply."""
        return summarise(self.scores)

    @cached_property
    def bands(self) -> dict[str, list[Band]]:
        """For each task precision by compression."""
        return {task: precision_by_ratio(self.of(task)) for task in self.summary}

    def contents(self) -> dict[str, bytes]:
        """File names and contents of the report: report.md, its plots, metrics.json."""
        plots = _plots(self)
        markdown = _markdown(self, list(plots)).encode("utf-8", "replace")
        return {**plots, "report.md": markdown, "metrics.json": json_bytes(_metrics(self))}

    def lines(self) -> list[str]:
        """The figures as plain lines, for the screen and the log."""
        return [
            f"{task}: {title} {shown(figure)} ({figure.pages} pages)"
            for task, figures in self.summary.items()
            for title, _, figure in _in_order(figures)
        ]

    def counts(self) -> dict[str, int]:
        """How many examples there were, and what became of them."""
        return {
            "examples": len(self.scores),
            "pages": len({score.example.page for score in self.scores}),
            "failed": len(self.failures),
            "rejected": len(self.rejections),
            "unsupported": len(self.unsupported),
            "extra texts": len(self.extra),
        }

    def of(self, task: str) -> list[Score]:
        """The scores of one task."""
        return [score for score in self.scores if score.example.task == task]


def _metrics(run: EvaluationRun) -> dict[str, Any]:
    return {
        "settings": dict(run.settings),
        "versions": versions(),
        "counts": run.counts(),
        "tasks": {
            task: {name: asdict(figure) for name, figure in figures.items()}
            for task, figures in run.summary.items()
        },
        "precision_by_ratio": {
            task: [asdict(band) for band in found] for task, found in run.bands.items() if found
        },
        "failed": [
            {"name": one.example.name, "task": one.example.task, "error": one.prediction.error}
            for one in run.failures
        ],
        "rejected": [asdict(rejection) for rejection in run.rejections],
        "unsupported": list(run.unsupported),
        "extra texts": list(run.extra),
    }


def shown(figure: Estimate) -> str:
    """Value and interval: 0.0123 [0.0101, 0.0150]."""
    if figure.low is None or figure.high is None:
        return f"{figure.value:.4f}"
    return f"{figure.value:.4f} [{figure.low:.4f}, {figure.high:.4f}]"


def escaped(text: str, most: int = 300) -> str:
    """`text` from outside as one line of Markdown that means nothing but itself."""
    safe = html.escape(one_line(text, most))
    return re.sub(r"[\\`*_\[\]()!|#~$]", lambda sign: f"&#{ord(sign[0])};", safe)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; cells are taken as they are."""
    lines_ = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines_) + "\n"


def _in_order(figures: Mapping[str, Estimate]) -> list[tuple[str, str, Estimate]]:
    """Title, meaning and value of each figure, in the order of the report."""
    return [(*FIGURES[name], figures[name]) for name in FIGURES if name in figures]


def _markdown(run: EvaluationRun, plots: Sequence[str]) -> str:
    parts = ["# Evaluation\n", settings_table(run.settings, run.counts())]
    parts.append(
        f"Intervals span the middle {LEVEL:.0%} of {RESAMPLES:,} bootstrap resamples of pages.\n"
    )
    for task, figures in run.summary.items():
        parts.append(f"## {task}\n")
        rows = [
            [title, *_interval(figure), str(figure.pages), meaning]
            for title, meaning, figure in _in_order(figures)
        ]
        parts.append(table(["figure", "value", "95 % interval", "pages", "what it is"], rows))
        short = presets.task_name(task)
        parts += [f"![{name}]({name})\n" for name in plots if name.startswith(short)]
        parts += _band_part(run.bands[task], run.of(task))
        parts += _worst_part(run.of(task))
    parts += _outcome_parts(run)
    return "\n".join(parts)


def settings_table(settings: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    """The settings of a run and what became of its pages, as a Markdown table."""
    return escaped_table(["setting", "value"], [*settings.items(), *counts.items()])


def escaped_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table of texts from outside."""
    return table(head, [[escaped(str(cell)) for cell in row] for row in rows])


def _interval(figure: Estimate) -> tuple[str, str]:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.4f}", "–"
    return f"{figure.value:.4f}", f"{figure.low:.4f} – {figure.high:.4f}"


def _band_part(bands: Sequence[Band], scores: Sequence[Score]) -> list[str]:
    if not bands:
        return []
    rows = [
        [
            f"{band.low:g} – {band.high:g}" if band.high is not None else f"{band.low:g} and more",
            f"{band.text_tokens[0]} – {band.text_tokens[1]}",
            f"{band.precision:.1%}",
            f"{band.interval[0]:.1%} – {band.interval[1]:.1%}" if band.interval else "–",
            f"{band.ratio:.2f}×",
            str(band.pages),
        ]
        for band in bands
    ]
    head = [
        "text per vision token", "text tokens", "precision", "95 % interval", "compression", "pages"
    ]  # fmt: skip
    failed = sum(score.prediction.error is not None for score in scores)
    return [
        "Precision (1 − edit distance) by compression, after the table in the model's paper. Pages "
        f"that failed ({failed}) have no row here; they count as empty in the figures above:\n",
        table(head, rows),
    ]


def _worst_part(scores: Sequence[Score]) -> list[str]:
    wrong = [score for score in scores if _error(score) > 0]
    wrong.sort(key=lambda score: (-_error(score), score.example.name))
    if not wrong:
        return []
    rows = [
        [escaped(one.example.name), f"{_error(one):.3f}", escaped(one.prediction.text, 80)]
        for one in wrong[:WORST]
    ]
    head = ["page", "edit distance, or 1 − IoU", "was read as"]
    return ["Pages with the largest error:\n", table(head, rows)]


def _outcome_parts(run: EvaluationRun) -> list[str]:
    parts: list[str] = []
    noted = [score for score in run.scores if score.notes]
    named: dict[str, Sequence[tuple[str, str | None]]] = {
        "Not read, counted as empty": [(s.example.name, s.prediction.error) for s in run.failures],
        "Not compared in full": [(s.example.name, "; ".join(s.notes)) for s in noted],
        "Entries that cannot be used": [(one.name, one.reason) for one in run.rejections],
        "Texts that were not used": [(name, "") for name in run.extra],
        "Samples without an answer for the tasks asked for": [(n, "") for n in run.unsupported],
    }
    for title, rows in named.items():
        if rows:
            parts.append(f"## {title}: {len(rows)}\n")
            parts.append(escaped_table(["name", "why"], rows[:MOST_LISTED]))
        if len(rows) > MOST_LISTED:
            parts.append(f"… and {len(rows) - MOST_LISTED} more; see metrics.json.\n")
    return parts


def _error(score: Score) -> float:
    """One number from 0 (perfect) to 1 for a page: edit distance, or 1 less the mean overlap."""
    if "ned" in score.shares:
        return score.shares["ned"][0]
    above, below = score.shares.get("iou", (1.0, 1.0))
    return 1 - above / below


def _plots(run: EvaluationRun) -> dict[str, bytes]:
    plots: dict[str, bytes] = {}
    for task, figures in run.summary.items():
        short, scores = presets.task_name(task), run.of(task)
        label = "edit distance" if "ned" in figures else "1 - IoU"
        plots[f"{short}_errors.png"] = _histogram([_error(score) for score in scores], label)
        known = [score.shares for score in scores if "compression" in score.shares]
        if known:
            ratios = [share["compression"][0] / share["compression"][1] for share in known]
            precisions = [1 - share["ned"][0] for share in known]
            plots[f"{short}_precision.png"] = _scatter(ratios, precisions)
    return plots


def _histogram(errors: Sequence[float], label: str) -> bytes:
    drawing = Figure(figsize=(6, 3.5), layout="constrained")
    axes = drawing.add_subplot()
    *_, bars = axes.hist(errors, bins=20, range=(0, 1))
    axes.bar_label(cast(BarContainer, bars), fmt=lambda n: f"{n:.0f}" if n else "", fontsize=7)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=f"{label} of a page (0 is perfect)", ylabel="pages")
    return _png(drawing)


def _scatter(ratios: Sequence[float], precisions: Sequence[float]) -> bytes:
    drawing = Figure(figsize=(6, 3.5), layout="constrained")
    axes = drawing.add_subplot()
    axes.plot(ratios, precisions, linestyle="none", marker="o", markersize=3, alpha=0.5)
    axes.set(xlabel="text tokens per vision token", ylabel="precision", ylim=(-0.02, 1.02))
    return _png(drawing)


def _png(drawing: Figure) -> bytes:
    data = io.BytesIO()
    drawing.savefig(data, format="png")
    return data.getvalue()
