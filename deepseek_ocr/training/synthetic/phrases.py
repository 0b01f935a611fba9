"""What synthetic pages say: English words, made-up words, numbers and random strings.

Random strings and made-up words are there so that a model learns to read and not to guess.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

WORDS_FILE = Path(__file__).with_name("words.txt")

CHARACTERS = string.ascii_letters + string.digits + ".,:;!?'\"()-/&%$#@+=*"
"""What synthetic text is spelt with, besides the space."""

_ONSETS = tuple("bcdfghjklmnprstvwxyz")
_CLUSTERS = ("qu", "br", "ch", "cl", "cr", "dr", "gr", "pl", "pr", "sh", "sp", "st", "str", "th")
_VOWELS = ("a", "e", "i", "o", "u", "y", "ai", "ea", "ee", "ie", "oa", "oo", "ou")
_CODAS = ("", "", "", *"bdfgklmnprstx", "ck", "ct", "ld", "ll", "mp", "nd", "ng", "rt", "ss", "st")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@cache
def english_words() -> tuple[str, ...]:
    """Common English words, lower case."""
    return tuple(WORDS_FILE.read_text(encoding="utf-8").split())


def random_string(rng: Random, length: int) -> str:
    """Characters drawn evenly, no spaces."""
    return "".join(rng.choices(CHARACTERS, k=length))


def made_up_word(rng: Random) -> str:
    """A word that looks English and is not, one to three syllables."""
    return "".join(
        rng.choice(_ONSETS + _CLUSTERS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((1, 2, 2, 3)))
    )


_NUMBERS: tuple[Callable[[Random], str], ...] = (
    lambda rng: f"${rng.randrange(1, 2000)}.{rng.randrange(100):02d}",
    lambda rng: f"{rng.randrange(1, 29)} {rng.choice(_MONTHS)} {rng.randrange(1900, 2060)}",
    lambda rng: f"{rng.randrange(24):02d}:{rng.randrange(60):02d}",
    lambda rng: f"{rng.randrange(100)}%",
    lambda rng: (
        f"{rng.randrange(1, 13):02d}/{rng.randrange(1, 29):02d}/{rng.randrange(1980, 2040)}"
    ),
    lambda rng: f"{rng.randrange(1000):03d}-{rng.randrange(10000):04d}",
    lambda rng: f"{rng.randrange(1, 1000)},{rng.randrange(1000):03d}",
    lambda rng: str(rng.randrange(10 ** rng.randrange(1, 7))),
)


def number(rng: Random) -> str:
    """An amount, a date, a time, a share, a telephone or a plain number."""
    return rng.choice(_NUMBERS)(rng)


def word(rng: Random) -> str:
    """A word (three of ten invented), a number now and then, in any case."""
    if rng.random() < 0.12:
        return number(rng)
    text = made_up_word(rng) if rng.random() < 0.3 else rng.choice(english_words())
    case = rng.random()
    if case < 0.2:
        text = text.capitalize()
    elif case < 0.3:
        text = text.upper()
    mark = rng.random()
    if mark < 0.06:
        text += ","
    elif mark < 0.12:
        text += rng.choice(".;:!?")
    elif mark < 0.15:
        text = rng.choice(("({})", '"{}"', "'{}'")).format(text)
    elif mark < 0.17:
        text = f"{text}-{rng.choice(english_words())}"
    return text


def line(rng: Random, longest: int, random_share: float) -> str:
    """One line of 1 to `longest` characters; a `random_share` of lines are random strings."""
    wanted = rng.randint(max(1, longest // 4), longest)
    if rng.random() < random_share:
        text = random_string(rng, wanted)
        if wanted > 6 and rng.random() < 0.7:
            at = rng.randrange(2, wanted - 2)
            text = f"{text[:at]} {text[at + 1 :]}"
        return text
    text = word(rng)
    while len(text) < wanted:
        text += " " + word(rng)
    return _shortened(text, longest)


def _shortened(text: str, longest: int) -> str:
    """`text` cut between words, or within the only one, to at most `longest` characters."""
    if len(text) <= longest:
        return text
    cut = text.rfind(" ", 0, longest + 1)
    return text[: cut if cut > 0 else longest].rstrip()
