"""Parts of a report, each in a process of its own, within one budget of time.

A part that raises, runs out of memory, hangs or is killed ends alone: what it had found by then is
kept, with the error, and the next part begins with a fresh process and a fresh device. The report
is written after every part.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deepseek_ocr.files import appearing

Figures = dict[str, Any]
"""What a row says, by name; `wrong` is why it must not be so, `error` what was raised."""

NO_TIME = "left out: no time"

STOPPED = "stopped: no time"

GRACE = 15.0
"""Seconds beyond twice its own that a part has to start and to finish the row it is at, before it
is stopped."""

_LEAST = 5.0
"""Seconds that must be left for a part to begin: starting a process takes about as long."""

_LONGEST_TEXT = 2000
"""Characters that are kept of an error, and of what a failed part wrote on standard error."""


@dataclass(frozen=True)
class Settings:
    """What the parts measure: where, in which type, over which full-size checkpoint.

    - `pages`: numbers of pages in flight; `read`: pages that are read from picture to text, with
      `tokens` tokens each; `repeat`: how often a stage is timed
    """

    device: str
    dtype: str
    checkpoint: Path
    pages: tuple[int, ...] = (1, 8, 32, 64)
    read: int = 64
    tokens: int = 200
    repeat: int = 3


@dataclass(frozen=True)
class Part:
    """One part: its name, a function that can be imported by its name, the share of all seconds
    that it may take, and whether it is the budget's time that it takes."""

    name: str
    run: Callable[[Settings, Rows], None]
    share: float = 1.0
    counted: bool = True


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
            self._keep(name, {"left_out": NO_TIME})
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

    def note(self, text: str) -> None:
        """Keep and print a remark that is no failure."""
        self._found["notes"].append(text)
        print(f"  {text}", flush=True)
        self._write()

    def fail(self, error: BaseException) -> None:
        """Keep what ended the part."""
        self._found["error"] = described(error)
        self._write()

    def _keep(self, name: str, figures: Figures) -> None:
        self._found["rows"][name] = figures
        shown = [f"{key} {_shown(value)}" for key, value in figures.items() if key != "seconds"]
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


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {_shown(inner)}" for key, inner in value.items()) + ")"
    return str(value)


# --- the process that has all parts run -----------------------------------------------------------


def run(
    parts: Sequence[Part], settings: Settings, seconds: float, output: Path | None, head: Figures
) -> dict[str, Any]:
    """Run all `parts` one after the other and return the report, which is written to `output` after
    each: `head` and, for every part, `status` ("done", "failed", `NO_TIME`, `STOPPED`), `seconds`,
    `rows`, `notes`, and the `error` that ended it.

    Raises `OSError` if it cannot be written.
    """
    report: dict[str, Any] = {**head, "parts": {}, "seconds": 0.0, "complete": False}

    def keep() -> None:
        if output is not None:
            write(output, report)

    for part in parts:
        left = seconds - report["seconds"]
        if part.counted and left < _LEAST:
            report["parts"][part.name] = {"status": NO_TIME}
            print(f"{part.name}: {NO_TIME}", flush=True)
            continue
        print(f"{part.name} …", flush=True)
        report["parts"][part.name] = {"status": "running"}
        keep()
        limit, most = math.inf, math.inf
        if part.counted:
            limit = min(max(left - GRACE, left / 2), part.share * seconds)
            most = min(left, 2 * limit + GRACE)
        found = _run_alone(part, settings, limit, most)
        report["parts"][part.name] = found
        report["seconds"] += found["seconds"] if part.counted else 0
        print(f"{part.name}: {found['status']}, {found['seconds']:.1f} s", flush=True)
        keep()
    report["complete"] = True
    keep()
    return report


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


def _run_alone(part: Part, settings: Settings, limit: float, most: float) -> dict[str, Any]:
    """What `part` found in a process of its own, which begins no row `limit` seconds after its
    imports and is stopped after `most` in all."""
    with tempfile.TemporaryDirectory(prefix="gpu-report-") as name:
        path, errors = Path(name) / "rows.json", Path(name) / "stderr"
        began = time.monotonic()
        process = multiprocessing.get_context("spawn").Process(
            target=_in_child, args=(part, settings, path, errors, limit), daemon=True
        )
        process.start()
        process.join(None if math.isinf(most) else most)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        found: dict[str, Any] = {"rows": {}, "notes": []}
        if path.exists():
            found |= json.loads(path.read_text())
        said = errors.read_text(errors="replace") if errors.exists() else ""
    sys.stderr.write(said)
    found["seconds"] = time.monotonic() - began
    if late:
        why = f"stopped after {most:.0f} s, in the row after those that are here"
        if most < 2 * limit + GRACE:  # the budget's end, which may come in the middle of a row
            return {"status": STOPPED, **found, "notes": [*found["notes"], why]}
        found["error"] = {"type": "TimeoutError", "text": why}
    elif process.exitcode and "error" not in found:
        found["error"] = {"type": "Killed", "text": _ended(process.exitcode)}
    rows = found["rows"].values()
    if "error" in found or any("error" in row or "wrong" in row for row in rows):
        return {"status": "failed", **found, "stderr": said[-_LONGEST_TEXT:]}
    return {"status": "done", **found}


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
    """Take back what a failed row held. Raises where the device answers nothing more, as after some
    errors of CUDA."""
    import torch

    from deepseek_ocr import devices, memory

    device = torch.device(name)
    memory.give_back(device)
    devices.synchronize(device)
