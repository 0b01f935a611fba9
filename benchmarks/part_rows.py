"""Rows that a part of a report finds: kept in a file, and printed with their units."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from typing import Any

Figures = dict[str, Any]
"""What a row says, by name: `wrong` is what must not be so, `error` what was raised, `left_out` why
nothing was measured. Units are those of the names: bytes, seconds (`_s`)."""

LONGEST_TEXT = 2000
"""Characters that are kept of an error, and of what a failed part wrote on standard error."""


class ReportRows:
    """What a part finds, in `found`: `rows` by name, `notes`, and the `error` that ended it.

    `seconds` is the time for all rows; `keep` is called after every change, and `recover` after a
    row that raised: it raises if nothing more can be measured in this process.
    """

    def __init__(
        self,
        seconds: float,
        keep: Callable[[], None] = lambda: None,
        recover: Callable[[], None] = lambda: None,
    ) -> None:
        self.found: dict[str, Any] = {"rows": {}, "notes": []}
        self._end = time.monotonic() + seconds
        self._changed, self._recover = keep, recover

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
        self.found["notes"].append(text)
        print(f"  {text}", flush=True)
        self._changed()

    def fail(self, error: BaseException) -> None:
        """Keep what ended the part."""
        self.found["error"] = described(error)
        self._changed()

    def _keep(self, name: str, figures: Figures) -> None:
        self.found["rows"][name] = figures
        shown = [_shown(key, value) for key, value in figures.items() if key != "seconds"]
        print(f"  {name}: {', '.join(shown)}", flush=True)
        self._changed()


def described(error: BaseException) -> dict[str, str]:
    """An error as JSON has it."""
    return {"type": type(error).__name__, "text": str(error)[:LONGEST_TEXT]}


def verdict(difference: float, tolerance: float) -> Figures:
    """`wrong` if the difference from what was expected is more than that, or not finite."""
    if difference <= tolerance:  # False for NaN too
        return {}
    return {"wrong": f"differs by {difference:.2g}, {tolerance:.2g} at most was expected"}


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
    ("bytes_per_second", 1e9, "GB/s"),
    ("operations_per_second", 1e12, "TFLOP/s"),
    ("bytes", 1e9, "GB"),
    ("share", 0.01, "%"),
)
"""Part of a figure's name → the unit that it is printed in, and how much that is."""
