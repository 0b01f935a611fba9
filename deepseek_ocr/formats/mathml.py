"""Formulas as MathML, which browsers set by themselves: no script, no font, nothing fetched."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from html import escape

from math_core import LatexError, LatexToMathML

DEEPEST = 100
"""Levels of a formula that are converted; the library's parser runs out of stack at some
thousands."""

_TOKEN = re.compile(r"\\[A-Za-z]+\*?|\\.|[{}^_]|[^\\{}^_]+", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\(begin|end)\{(equation|align|gather|multline|split|eqnarray)\}")
_SAME = {"split": "aligned", "eqnarray": "align*"}
_NUMBER = re.compile(r"\\(?:eqno|leqno)\s{0,9}\{?\s{0,9}\(([^(){}\\]{1,20})\)\s{0,9}\}?\s*\Z")
_PERCENT = re.compile(r"(?<!\\)((?:\\\\)*)%")


@lru_cache(maxsize=512)
def to_mathml(source: str, display: bool) -> str | None:
    """`source` (LaTeX) as a `<math>` element with the source in `alttext`. None for what the
    library does not know, or is nested deeper than `DEEPEST`."""
    if not _is_shallow(source):
        return None
    try:
        made = _converter().convert_with_local_state(_prepared(source), displaystyle=display)
    except LatexError:
        return None
    return made.replace("<math", f'<math alttext="{escape(source)}"', 1)


@cache
def _converter() -> LatexToMathML:
    return LatexToMathML(macros={"mbox": r"\text{#1}"})


def _prepared(source: str) -> str:
    """`source` without what LaTeX would number by itself or take for a comment."""
    source = _PERCENT.sub(r"\1\\%", source)
    source = _ENVIRONMENT.sub(_unnumbered, source)
    if numbered := _NUMBER.search(source):
        source = f"{source[: numbered.start()]}\\tag{{{numbered[1]}}}"
    if "\\tag" in source and "\\begin{align*}" not in source and "\\begin{gather*}" not in source:
        source = f"\\begin{{equation*}}{source}\\end{{equation*}}"
    return source


def _unnumbered(found: re.Match[str]) -> str:
    name = _SAME.get(found[2], f"{found[2]}*")
    return f"\\{found[1]}{{{name}}}"


def _is_shallow(source: str) -> bool:
    """True if no part of the formula lies more than `DEEPEST` levels deep.

    A level is a brace, an environment or a delimiter, or a command or script that another follows
    at once, as in `\\sqrt\\sqrt x`.
    """
    levels = chain = 0
    for found in _TOKEN.finditer(source):
        token = found[0]
        if token in ("{", "\\begin", "\\left"):
            levels += 1
        elif token in ("}", "\\end", "\\right"):
            levels, chain = max(levels - 1, 0), 0
        elif token[0] in "\\^_":
            chain += 1
        elif token.strip():
            chain = 0
        if levels + chain > DEEPEST:
            return False
    return True
