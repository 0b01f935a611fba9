"""Parts of a report, each in a process of its own, within one budget of time.

A part that raises, runs out of memory, hangs or is killed ends alone: what it had found by then is
kept, with the error, and the next part begins with a fresh process and a fresh device. The report
is written with every row.
"""

from __future__ import annotations

import faulthandler
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from benchmarks.command import write_json
from benchmarks.part_rows import LONGEST_TEXT, Figures, ReportRows

RUNNING, DONE, INCOMPLETE, FAILED = "running", "done", "incomplete", "failed"

NO_TIME = "left out: no time"

STOPPED = "stopped: no time"

INTERRUPTED = "interrupted"

GRACE = 15.0
"""Seconds beyond twice its own that a part has to start and to finish the row it is at, before it
is stopped."""

KILL_SECONDS = 10.0
"""Seconds that a killed process has to end: one that waits within the driver may never do so."""

_LEAST = 5.0
"""Seconds that must be left for a part to begin: starting a process takes about as long."""


@dataclass(frozen=True)
class ReportSettings:
    """What the parts measure: where, in which type, over which full-size checkpoint.

    - `pages`: numbers of pages in flight; `read`: pages that are read from picture to text, with
      `tokens` tokens each; `repeat`: how often a stage is timed
    - `earlier`: what the parts before found, by name, as the report has it
    """

    device: str
    dtype: str
    checkpoint: Path
    pages: tuple[int, ...] = (1, 8, 32, 64)
    read: int = 64
    tokens: int = 200
    repeat: int = 3
    earlier: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReportPart:
    """One part: its name, a function that can be imported by its name, and the share of all seconds
    that it may take; or, beside these, `own_seconds`."""

    name: str
    run: Callable[[ReportSettings, ReportRows], None]
    share: float = 1.0
    own_seconds: float | None = None


def run(
    parts: Sequence[ReportPart],
    settings: ReportSettings,
    seconds: float,
    output: Path,
    head: Figures,
) -> dict[str, Any]:
    """Run all `parts` one after the other and return the report, which is in `output` with each
    row: `head` and, for every part, `status`, `seconds`, `rows`, `notes`, and the `error` that
    ended it.

    The status is `RUNNING`, `DONE`, `INCOMPLETE` (a row was left out), `FAILED` (a row is wrong, or
    something was raised), `NO_TIME`, `STOPPED` or `INTERRUPTED`: then the part's process is ended,
    and SIGTERM raises `SystemExit`. Raises `OSError` if the report cannot be written.
    """
    report: dict[str, Any] = {**head, "parts": {}, "seconds": 0.0, "complete": False}
    with _exit_on_sigterm():
        for part in parts:
            left = seconds - report["seconds"] if part.own_seconds is None else math.inf
            if left < _LEAST:
                report["parts"][part.name] = {"status": NO_TIME}
                print(f"{part.name}: {NO_TIME}", flush=True)
                continue
            print(f"{part.name} …", flush=True)
            report["parts"][part.name] = {"status": RUNNING}
            write_json(output, report)
            limit = part.own_seconds or min(max(left - GRACE, left / 2), part.share * seconds)
            report = _run_alone(part, settings, output, limit, left)
            done = report["parts"][part.name]
            report["seconds"] += done["seconds"] if part.own_seconds is None else 0
            print(f"{part.name}: {done['status']}, {done['seconds']:.1f} s", flush=True)
    report["complete"] = True
    write_json(output, report)
    return report


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Have SIGTERM raise `SystemExit`, so that what has begun is ended in order."""

    def leave_now(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave_now)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(status: int) -> NoReturn:
    """End this process with `status`: at once if one of a part could not be killed, as
    `multiprocessing` would wait for it."""
    if multiprocessing.active_children():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def problems(report: dict[str, Any]) -> list[str]:
    """What failed or must not be so, a line each."""
    lines = []
    for name, part in report["parts"].items():
        if "error" in part:
            lines.append(f"{name}: {part['error']['type']}: {part['error']['text']}")
        for row, figures in part.get("rows", {}).items():
            if "error" in figures:
                error = figures["error"]
                lines.append(f"{name}, {row}: {error['type']}: {error['text']}")
            if "wrong" in figures:
                lines.append(f"{name}, {row}: {figures['wrong']}")
    return lines


def left_out(report: dict[str, Any]) -> list[str]:
    """What there was no time, no memory or no package for: parts, and how many rows of others."""
    found = []
    for name, part in report["parts"].items():
        rows = sum("left_out" in row for row in part.get("rows", {}).values())
        if part["status"] == NO_TIME:
            found.append(name)
        elif part["status"] == STOPPED:
            found.append(f"{name} (its last rows)")
        elif rows:
            found.append(f"{name} ({rows} {'row' if rows == 1 else 'rows'})")
    return found


def _run_alone(
    part: ReportPart, settings: ReportSettings, output: Path, limit: float, left: float
) -> dict[str, Any]:
    """The report after `part`, whose process writes its rows to `output`.

    It begins no row after `limit` seconds, counted from its imports, and is stopped after twice as
    many and `GRACE`: that is too long for the part, or else after all that are `left`.
    """
    whole = min(left, part.own_seconds or 2 * limit + GRACE)
    with tempfile.TemporaryDirectory(prefix="gpu-report-", ignore_cleanup_errors=True) as folder:
        errors = Path(folder) / "stderr"
        began = time.monotonic()
        process = multiprocessing.get_context("spawn").Process(
            target=_in_child, args=(part, settings, output, errors, limit), daemon=True
        )
        process.start()
        status = INTERRUPTED
        try:
            process.join(whole)
            late, status = process.is_alive(), RUNNING
        finally:
            process.kill()
            process.join(KILL_SECONDS)
            report: dict[str, Any] = json.loads(output.read_text())
            found = {"rows": {}, "notes": [], **report["parts"][part.name], "status": status}
            report["parts"][part.name] = found
            write_json(output, report)
        said = errors.read_text(errors="replace") if errors.exists() else ""
    sys.stderr.write(said)
    found["seconds"] = time.monotonic() - began
    stopped = f"stopped after {whole:.0f} s, in the row after those that are here" if late else ""
    _conclude(found, process.exitcode, stopped, of_budget=whole == left)
    if found["status"] == FAILED:
        found["stderr"] = said[-LONGEST_TEXT:]
    return report


def _conclude(found: dict[str, Any], code: int | None, stopped: str, of_budget: bool) -> None:
    """Give `found` its status, and an error if the process had to be `stopped`, which blames no
    part if the budget was at its end, or ended with a `code` other than 0."""
    if stopped and code is None:
        stopped += "; its process could not be killed"
    elif stopped and of_budget:
        found |= {"status": STOPPED, "notes": [*found["notes"], stopped]}
        return
    if stopped:
        found.setdefault("error", {"type": "TimeoutError", "text": stopped})
    elif code:
        found.setdefault("error", {"type": "Killed", "text": _ended(code)})
    rows = found["rows"].values()
    if "error" in found or any("error" in row or "wrong" in row for row in rows):
        found["status"] = FAILED
    else:
        found["status"] = INCOMPLETE if any("left_out" in row for row in rows) else DONE


def _ended(code: int) -> str:
    if code > 0:
        return f"The process ended with status {code}."
    names = {one.value: one.name for one in signal.Signals}
    return f"The process was ended by {names.get(-code, f'signal {-code}')}."


def _in_child(
    part: ReportPart, settings: ReportSettings, output: Path, errors: Path, limit: float
) -> None:
    """Run a part, and keep its rows in the report; what it and its libraries write on standard
    error goes to a file."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    faulthandler.enable()
    report = json.loads(output.read_text())
    earlier = dict(report["parts"])

    def keep() -> None:
        report["parts"][part.name] = {"status": RUNNING, **rows.found}
        write_json(output, report)

    rows = ReportRows(limit, keep, partial(_recover, settings.device))
    try:
        part.run(replace(settings, earlier=earlier), rows)
    except Exception as error:  # the report has it
        traceback.print_exc()
        rows.fail(error)
        sys.exit(1)


def _recover(name: str) -> None:
    """Take back what a failed row held. Raises if the device answers nothing more, as after some
    errors of CUDA."""
    import torch

    from deepseek_ocr.devices import memory, selection

    device = torch.device(name)
    memory.give_back(device)
    selection.synchronize(device)
