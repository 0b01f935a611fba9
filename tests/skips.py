"""Which tests were skipped and why: `python -m tests.skips REPORT [OTHER]`.

Both are what `pytest --junitxml` writes. The exit status is 1 if a test was skipped because
something installable was missing, or if REPORT skips a test that OTHER does not.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ALLOWED = ("needs a processor with", "needs the reference material", "needs to be allowed")
"""Allowed reasons begin with one of these: processor features, files that are not public and
permissions cannot be installed."""


def main(reports: list[str]) -> int:
    """Print how many tests were skipped for each reason; return 1 if any skip is not allowed."""
    skipped = skips(Path(reports[0]))
    for reason, count in Counter(skipped.values()).most_common():
        print(f"{count} skipped: {reason}")
    wrong = {name for name, reason in skipped.items() if not reason.startswith(ALLOWED)}
    for other in reports[1:]:
        wrong |= skipped.keys() - skips(Path(other)).keys()
    for name in sorted(wrong):
        print(f"may not be skipped: {name}: {skipped[name]}", file=sys.stderr)
    return 1 if wrong else 0


def skips(report: Path) -> dict[str, str]:
    """Tests, and files that were skipped whole, with the reason."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        skipped = case.find("skipped")
        if skipped is not None:
            reason = skipped.get("message", "").removeprefix("Skipped: ")
            found[f"{case.get('classname')}::{case.get('name')}"] = reason
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
