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

from deepseek_ocr.files import appearing

Figures = dict[str, Any]
"""What a row says, by name: `wrong` is what must not be so, `error` what was raised, `left_out` why
nothing was measured. Units are those of the names: bytes, seconds (`_s`)."""

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

_LONGEST_TEXT = 2000
"""Characters that are kept of an error, and of what a failed part wrote on standard error."""


@dataclass(frozen=True)
class Settings:
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
class Part:
    """One part: its name, a function that can be imported by its name, and the share of all seconds
    that it may take; or, beside these, `own_seconds`."""

    name: str
    run: Callable[[Settings, Rows], None]
    share: float = 1.0
    own_seconds: float | None = None


@dataclass(frozen=True)
class Bound:
    """Seconds of a part: it begins no row after `rows`, counted from its imports, and is stopped
    after `whole`, which is the budget's end if `of_budget`, and else too long for the part."""

    rows: float
    whole: float
    of_budget: bool


class Rows:
    """What a part has found so far, written to `path` with every row.

    `seconds` is the time for all rows; `recover` is called after a row that raised, and raises if
    nothing more can be measured in this process.
    """

    def __init__(
        self, path: Path, seconds: float, recover: Callable[[], None] = lambda: None
    ) -> None:
        self._path, self._recover = path, recover
        self._end = time.monotonic() + seconds
        self._found: dict[str, Any] = {"rows": {}, "notes": []}
        self._write()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._end - time.monotonic()

    def add(self, name: str, measure: Callable[[], Figures], needs: float = 1.0) -> Figures | None:
        """Keep and print what `measure` returns as the row `name`; what it raises is the row
        otherwise, and None is returned. It is not called if fewer seconds than `needs` are left."""
        if self.left < needs:
            self.leave_out(name, "no time")
            return None
        began = time.monotonic()
        try:
            figures = measure()
        except Exception as error:  # whatever a device raises
            traceback.print_exc()
            figures = {"error": described(error)}
        figures["seconds"] = time.monotonic() - began
        self._keep(name, figures)
        if "error" not in figures:
            return figures
        self._recover()
        return None

    def leave_out(self, name: str, why: str) -> None:
        """Keep and print why the row `name` is left out."""
        self._keep(name, {"left_out": why})

    def note(self, text: str) -> None:
        """Keep and print a remark; the part does not fail for it."""
        self._found["notes"].append(text)
        print(f"  {text}", flush=True)
        self._write()

    def fail(self, error: BaseException) -> None:
        """Keep what ended the part."""
        self._found["error"] = described(error)
        self._write()

    def _keep(self, name: str, figures: Figures) -> None:
        self._found["rows"][name] = figures
        if "left_out" in figures:
            print(f"  {name}: left out: {figures['left_out']}", flush=True)
            self._write()
            return
        shown = [_shown(key, value) for key, value in figures.items() if key != "seconds"]
        print(f"  {name}: {', '.join(shown)}", flush=True)
        self._write()

    def _write(self) -> None:
        write(self._path, self._found)


def described(error: BaseException) -> dict[str, str]:
    """An error as JSON has it."""
    return {"type": type(error).__name__, "text": str(error)[:_LONGEST_TEXT]}


def write(path: Path, content: object) -> None:
    """Write `content` as JSON, whole or not at all; numbers that are not finite as text."""
    with appearing(path) as stream:
        stream.write((json.dumps(_finite(content), indent=1) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _shown(name: str, value: object) -> str:
    words = name.replace("_", " ")
    if isinstance(value, dict):
        return f"{words} (" + ", ".join(_shown(key, inner) for key, inner in value.items()) + ")"
    if isinstance(value, int | float) and not isinstance(value, bool):
        for what, size, unit in _UNITS:
            if what in name:
                return f"{words} {value / size:.4g} {unit}"
    return f"{words} {value:.4g}" if isinstance(value, float) else f"{words} {value}"


_UNITS = (
    ("bytes_per_s", 1e9, "GB/s"), ("operations_per_s", 1e12, "TFLOP/s"), ("bytes", 1e9, "GB"),
    ("share", 0.01, "%"),
)  # fmt: skip
"""Part of a figure's name → the unit that it is printed in, and how much that is."""


# --- the process that has all parts run -----------------------------------------------------------


def run(
    parts: Sequence[Part], settings: Settings, seconds: float, output: Path, head: Figures
) -> dict[str, Any]:
    """Run all `parts` one after the other and return the report, which is written to `output` with
    each row: `head` and, for every part, `status`, `seconds`, `rows`, `notes`, and the `error` that
    ended it.

    The status is `RUNNING`, `DONE`, `INCOMPLETE` (a row was left out), `FAILED` (a row is wrong, or
    something was raised), `NO_TIME`, `STOPPED` or `INTERRUPTED`: then the part's process is ended,
    and SIGTERM raises `SystemExit`. Raises `OSError` if the report cannot be written.
    """
    report: dict[str, Any] = {**head, "parts": {}, "seconds": 0.0, "complete": False}
    found = report["parts"]

    def keep(part: Part, figures: dict[str, Any]) -> None:
        found[part.name] = figures
        write(output, report)

    with _exit_on_sigterm():
        for part in parts:
            bound = _bound(part, seconds, seconds - report["seconds"])
            if bound is None:
                keep(part, {"status": NO_TIME})
                print(f"{part.name}: {NO_TIME}", flush=True)
                continue
            print(f"{part.name} …", flush=True)
            keep(part, {"status": RUNNING})
            done = _run_alone(part, replace(settings, earlier=found), bound, partial(keep, part))
            report["seconds"] += done["seconds"] if part.own_seconds is None else 0
            keep(part, done)
            print(f"{part.name}: {done['status']}, {done['seconds']:.1f} s", flush=True)
    report["complete"] = True
    write(output, report)
    return report


def _bound(part: Part, seconds: float, left: float) -> Bound | None:
    """What a part may take of `seconds` in all, of which so many are `left`; None: nothing."""
    if part.own_seconds is not None:
        return Bound(part.own_seconds, part.own_seconds, of_budget=False)
    if left < _LEAST:
        return None
    limit = min(max(left - GRACE, left / 2), part.share * seconds)
    whole = 2 * limit + GRACE
    return Bound(limit, min(left, whole), of_budget=left < whole)


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
    part: Part, settings: Settings, bound: Bound, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """What `part` found in a process of its own; `keep` is given what there is with each row."""
    with tempfile.TemporaryDirectory(prefix="gpu-report-", ignore_cleanup_errors=True) as name:
        path, errors = Path(name) / "rows.json", Path(name) / "stderr"
        began = time.monotonic()
        process = multiprocessing.get_context("spawn").Process(
            target=_in_child, args=(part, settings, path, errors, bound.rows), daemon=True
        )
        process.start()
        try:
            late = _watch(process, path, began + bound.whole, keep)
        except BaseException:
            keep({"status": INTERRUPTED, **_found(path)})
            raise
        finally:
            process.kill()
            process.join(KILL_SECONDS)
        found = _found(path)
        said = errors.read_text(errors="replace") if errors.exists() else ""
    sys.stderr.write(said)
    found["seconds"] = time.monotonic() - began
    why = f"stopped after {bound.whole:.0f} s, in the row after those that are here"
    if process.exitcode is None:
        why = f"{why}; its process could not be killed"
    if late and bound.of_budget and process.exitcode is not None:
        return {"status": STOPPED, **found, "notes": [*found["notes"], why]}
    if late:
        found.setdefault("error", {"type": "TimeoutError", "text": why})
    elif process.exitcode:
        found.setdefault("error", {"type": "Killed", "text": _ended(process.exitcode)})
    status = _status(found)
    return {"status": status, **found} | (
        {"stderr": said[-_LONGEST_TEXT:]} if status == FAILED else {}
    )


def _watch(
    process: multiprocessing.process.BaseProcess,
    path: Path,
    end: float,
    keep: Callable[[dict[str, Any]], None],
) -> bool:
    """Wait for a part's process, until `end` at most, while its rows are kept; whether it still
    runs."""
    before = _found(path)
    while process.is_alive() and (left := end - time.monotonic()) > 0:
        process.join(min(1.0, left))
        if (found := _found(path)) != before:
            keep({"status": RUNNING, **found})
            before = found
    return process.is_alive()


def _found(path: Path) -> dict[str, Any]:
    """What a part's process has written so far."""
    found: dict[str, Any] = {"rows": {}, "notes": []}
    return found | (json.loads(path.read_text()) if path.exists() else {})


def _status(found: dict[str, Any]) -> str:
    rows = found["rows"].values()
    if "error" in found or any("error" in row or "wrong" in row for row in rows):
        return FAILED
    return INCOMPLETE if any("left_out" in row for row in rows) else DONE


def _ended(code: int) -> str:
    if code > 0:
        return f"The process ended with status {code}."
    try:
        return f"The process was ended by {signal.Signals(-code).name}."
    except ValueError:
        return f"The process was ended by signal {-code}."


def _in_child(part: Part, settings: Settings, path: Path, errors: Path, limit: float) -> None:
    """Run a part; what it and its libraries write on standard error goes to a file."""
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    faulthandler.enable()
    rows = Rows(path, limit, partial(_recover, settings.device))
    try:
        part.run(settings, rows)
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
