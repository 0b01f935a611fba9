"""Right-to-left lines in the order in which a PDF places their characters: left to right.

The algorithm of Unicode Standard Annex 9 without explicit embeddings, which pages do not print.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_RIGHT = frozenset({"R", "AL"})
_NUMBERS = frozenset({"EN", "AN"})


def is_right_to_left(line: str) -> bool:
    """True where the first letter with a direction runs to the left."""
    for sign in line:
        kind = unicodedata.bidirectional(sign)
        if kind == "L" or kind in _RIGHT:
            return kind != "L"
    return False


def visual_order(line: str) -> str:
    """The characters of `line` from left to right as they stand on paper."""
    kinds = [unicodedata.bidirectional(sign) for sign in line]
    if not any(kind in _RIGHT or kind == "AN" for kind in kinds):
        return line
    base = 1 if is_right_to_left(line) else 0
    levels = _levels(_resolve_neutrals(_resolve_weak(kinds, base), base), base)
    order = list(range(len(line)))
    for level in range(max(levels), 0, -1):
        at = 0
        while at < len(order):
            end = at
            while end < len(order) and levels[end] >= level:
                end += 1
            if end > at:
                order[at:end] = order[at:end][::-1]
                levels[at:end] = levels[at:end][::-1]
            at = end + 1
    return "".join(line[at] for at in order)


def _resolve_weak(kinds: Sequence[str], base: int) -> list[str]:
    """Rules W1 to W7: marks and numbers take after what is around them."""
    own = "R" if base else "L"
    found = _resolve_number_signs(_resolve_marks(kinds, own))
    strong = own
    for at, kind in enumerate(found):
        if kind == "L" or kind in _RIGHT:
            strong = kind
        elif kind == "EN" and strong == "L":
            found[at] = "L"
    return ["R" if kind == "AL" else kind for kind in found]


def _resolve_marks(kinds: Sequence[str], own: str) -> list[str]:
    """W1 and W2: a mark is what it stands on; numbers after Arabic letters are Arabic ones."""
    found = []
    previous = strong = own
    for kind in kinds:
        if kind == "NSM":
            found.append(previous)
            continue
        previous = "AN" if kind == "EN" and strong == "AL" else kind
        strong = kind if kind == "L" or kind in _RIGHT else strong
        found.append(previous)
    return found


def _resolve_number_signs(kinds: Sequence[str]) -> list[str]:
    """W4 and W5: separators inside numbers and signs beside them belong to them."""
    found = list(kinds)
    for at in range(1, len(found) - 1):
        before, after = found[at - 1], found[at + 1]
        if before == after and (
            (found[at] == "CS" and before in _NUMBERS) or (found[at] == "ES" and before == "EN")
        ):
            found[at] = before
    for step, order in ((-1, range(1, len(found))), (1, range(len(found) - 2, -1, -1))):
        for at in order:
            if found[at] == "ET" and found[at + step] == "EN":
                found[at] = "EN"
    return found


def _resolve_neutrals(kinds: Sequence[str], base: int) -> list[str]:
    """Rules N1 and N2: neutral characters go with both neighbours, or with the line."""
    found = list(kinds)
    own = "R" if base else "L"
    at, before = 0, own
    while at < len(found):
        if found[at] in ("L", "R") or found[at] in _NUMBERS:
            before = "L" if found[at] == "L" else "R"
            at += 1
            continue
        end = at
        while end < len(found) and found[end] not in ("L", "R", "EN", "AN"):
            end += 1
        after = own if end == len(found) else ("L" if found[end] == "L" else "R")
        found[at:end] = [before if before == after else own] * (end - at)
        at = end
    return found


def _levels(kinds: Sequence[str], base: int) -> list[int]:
    even = {"L": 0, "R": 1, "EN": 2, "AN": 2}
    odd = {"L": 2, "R": 1, "EN": 2, "AN": 2}
    table = odd if base else even
    return [table[kind] for kind in kinds]
