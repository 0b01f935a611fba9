"""Facts checked against readings: verdicts, pass rates with intervals, the report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from deepseek_ocr.files import json_bytes
from deepseek_ocr.images.limits import PICTURE_SUFFIXES
from deepseek_ocr.training.data.samples import Rejection
from deepseek_ocr.training.evaluation.bootstrap import Estimate, by_page, figures
from deepseek_ocr.training.evaluation.evaluation_report import (
    MOST_LISTED,
    escaped_table,
    settings_table,
    shown,
    table,
)
from deepseek_ocr.training.evaluation.facts import TYPES, Fact, FactPage, PageText, Verdict, check
from deepseek_ocr.training.evaluation.predictions import Names, sole_names
from deepseek_ocr.training.evaluation.scoring import Prediction
from deepseek_ocr.training.experiment_log import versions

ALL = "all"
"""Name of the pass rate over facts of every type."""


@dataclass(frozen=True)
class FactRun:
    """What a report on facts is made of; `extra` are texts that belong to no page."""

    settings: Mapping[str, Any]
    verdicts: Sequence[Verdict]
    rejections: Sequence[Rejection] = ()
    extra: Sequence[str] = ()

    @cached_property
    def rates(self) -> dict[str, Estimate]:
        """Pass rates over all facts and by type; pages are drawn anew for the intervals."""
        parts = [
            (name_of(one.fact.page), dict.fromkeys((ALL, one.fact.type), (one.passed, 1)))
            for one in self.verdicts
        ]
        return figures(by_page(parts, (ALL, *TYPES)))

    def lines(self) -> list[str]:
        """The pass rates as plain lines."""
        return [f"{name}: {shown(figure)}" for name, figure in self.rates.items()]

    def contents(self) -> dict[str, bytes]:
        """File names and contents of the report: report.md, metrics.json, facts.jsonl."""
        metrics = {
            "settings": dict(self.settings),
            "versions": versions(),
            "counts": self.counts(),
            "facts": {name: asdict(figure) for name, figure in self.rates.items()},
            "rejected": [asdict(rejection) for rejection in self.rejections],
            "extra texts": list(self.extra),
        }
        return {
            "report.md": _markdown(self).encode("utf-8", "replace"),
            "metrics.json": json_bytes(metrics),
            "facts.jsonl": "".join(_line(verdict) for verdict in self.verdicts).encode("utf-8"),
        }

    def counts(self) -> dict[str, int]:
        """How many facts there were, and what became of them."""
        return {
            "facts": len(self.verdicts),
            "passed": sum(verdict.passed for verdict in self.verdicts),
            "pages": len({verdict.fact.page for verdict in self.verdicts}),
            "not run": len(self.rejections),
            "extra texts": len(self.extra),
        }


def name_of(page: FactPage) -> str:
    """How a page is called in reports."""
    return page.file if page.number is None else f"{page.file} page {page.number}"


def names_of(pages: Iterable[FactPage]) -> Names:
    """What the texts and pictures of `pages`, all that are known, may be called, by `name_of`."""
    return sole_names({name_of(page): page.names() for page in pages})


def picture(data_root: Path, page: FactPage, names: Sequence[str]) -> Path:
    """Where the picture of `page` is, by one of its `names`, or would be expected."""
    if page.number is None:
        return data_root / page.file
    for name in names:
        for suffix in sorted(PICTURE_SUFFIXES):
            if os.path.isfile(path := data_root / f"{name}{suffix}"):
                return path
    return data_root / f"{names[0]}.png"


def verdicts(facts: Sequence[Fact], readings: Mapping[str, Prediction]) -> list[Verdict]:
    """Each fact checked, in order; on a page that was not read every fact fails, also that
    something is absent."""
    on_page: dict[str, list[int]] = {}
    for at, fact in enumerate(facts):
        on_page.setdefault(name_of(fact.page), []).append(at)
    found: dict[int, Verdict] = {}
    for name, places in on_page.items():  # a page is made ready once, and only one is held
        text, error = PageText(readings[name].text), readings[name].error
        for at in places:
            unread = Verdict(facts[at], False, f"the page was not read: {error}")
            found[at] = check(facts[at], text) if error is None else unread
    return [found[at] for at in range(len(facts))]


def _line(verdict: Verdict) -> str:
    fact = verdict.fact
    known = {"id": fact.id, "page": name_of(fact.page), "type": fact.type}
    return json.dumps(known | {"passed": verdict.passed, "reason": verdict.reason}) + "\n"


def _markdown(run: FactRun) -> str:
    rates = [[name, shown(figure), str(figure.pages)] for name, figure in run.rates.items()]
    failed = [verdict for verdict in run.verdicts if not verdict.passed]
    rows = [(name_of(v.fact.page), v.fact.id, v.fact.type, v.reason) for v in failed]
    rejected = [(one.name, one.reason) for one in run.rejections]
    parts = [
        "# Facts\n",
        settings_table(run.settings, run.counts()),
        table(["facts", "passed, 95 % interval", "pages"], rates),
        f"## Failed: {len(failed)}\n",
        escaped_table(["page", "fact", "type", "why"], rows[:MOST_LISTED]),
        f"## Not run: {len(run.rejections)}\n",
        escaped_table(["line", "why"], rejected[:MOST_LISTED]),
        f"## Texts that were not used: {len(run.extra)}\n",
        escaped_table(["text"], [(name,) for name in run.extra[:MOST_LISTED]]),
        "All of them are in facts.jsonl and metrics.json.\n",
    ]
    return "\n".join(parts)
