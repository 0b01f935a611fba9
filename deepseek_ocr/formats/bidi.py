"""Right-to-left lines in the order in which a PDF places their characters: left to right.

The algorithm of Unicode Standard Annex 9 without explicit embeddings, which pages do not print. Its
rules are patterns over the kinds of a line's characters, a sign for each.
"""

from __future__ import annotations

import re
import unicodedata

_SIGNS = {"L": "L", "R": "R", "AL": "A", "EN": "1", "AN": "9", "CS": ",", "ES": "+", "ET": "%",
          "NSM": "^"}  # fmt: skip
"""Letters to the left and right, Arabic letters; European and Arabic numbers; separators and signs
of numbers, what ends them; marks. All else is neutral, a space."""


def is_right_to_left(line: str) -> bool:
    """True where the first letter with a direction runs to the left."""
    first = re.search("[LRA]", _kinds(line))
    return first is not None and first[0] != "L"


def visual_order(line: str) -> str:
    """The characters of `line` from left to right as they stand on paper."""
    kinds = _kinds(line)
    if not re.search("[RA9]", kinds):
        return line
    own = "R" if is_right_to_left(line) else "L"
    kinds = _resolve_neutrals(_resolve_weak(kinds, own), own)
    order = list(line)
    for turned in ("[L19]+", ".+") if own == "R" else ("[19]+", "[R19]+"):
        for run in re.finditer(turned, kinds):
            order[run.start() : run.end()] = order[run.start() : run.end()][::-1]
    return "".join(order)


def _kinds(line: str) -> str:
    return "".join(_SIGNS.get(unicodedata.bidirectional(sign), " ") for sign in line)


def _resolve_weak(kinds: str, own: str) -> str:
    """Rules W1 to W7: marks and numbers take after what is around them."""
    kinds = own + kinds
    kinds = re.sub(r"([^^])(\^+)", lambda found: found[1] * len(found[0]), kinds)  # W1
    kinds = re.sub("A[^LRA]*", lambda found: found[0].replace("1", "9"), kinds)  # W2
    kinds = re.sub("(?<=1)[,+](?=1)", "1", kinds)  # W4
    kinds = re.sub("(?<=9),(?=9)", "9", kinds)
    kinds = re.sub("[1%]+", _ended_numbers, kinds)  # W5
    kinds = re.sub("L[^LRA]*", lambda found: found[0].replace("1", "L"), kinds)  # W7
    return kinds[1:].replace("A", "R")  # W3


def _ended_numbers(found: re.Match[str]) -> str:
    return "1" * len(found[0]) if "1" in found[0] else found[0]


def _resolve_neutrals(kinds: str, own: str) -> str:
    """Rules N1 and N2: neutral characters go with both neighbours, or with the line."""

    def resolved(found: re.Match[str]) -> str:
        before, after = ("L" if side == "L" else "R" for side in (found[1], found[3]))
        return found[1] + (before if before == after else own) * len(found[2])

    return re.sub("([LR19])([^LR19]+)(?=(.))", resolved, f"{own}{kinds}{own}")[1:-1]
