"""Typefaces for synthetic pages: those at hand, split into some to train on and some held out."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from fontTools.ttLib import TTFont
from matplotlib import get_data_path
from PIL import ImageFont

from deepseek_ocr.errors import InputError
from deepseek_ocr.training.synthetic.phrases import CHARACTERS
from deepseek_ocr.training.synthetic.recipes import FontSet

FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "/Library/Fonts", "C:/Windows/Fonts")

HELD_OUT = (
    "Carlito", "Caladea", "Lato", "Cantarell", "PT Sans", "PT Serif", "Linux Libertine",
    "Open Sans", "Quattrocento", "Go Mono",
)  # fmt: skip
"""Families that no model is trained on: a name that begins with one of these is held out."""

_UNSUITED = (
    "Awesome", "Bitmap", "Braille", "Dingbats", "Emoji", "Icon", "Initials", "Keys", "Math",
    "Music", "Ornament", "Outline", "Personal", "Small Caps", "SmallCaps", "Symbol", "Title",
    "Webdings", "Stencil", "Fell", "Jsmath", "Funny", "Dunhill", "Fibonacci",
    "Upright", "Z003", "Chancery", "Lobster", "Staypuft", "Blackletter", "Condensed", "Classical",
    "Shadow", "Keyboard", "Display", "Inline", "Caps", "Swash", "Unslanted", "Script",
    "D050000L", "Thin", "Hairline", "UltraLight", "ExtraLight", "Monoisome",
)  # fmt: skip
"""Parts of names of families that are not for running text, or print other glyphs than asked."""


@dataclass(frozen=True, order=True)
class Typeface:
    """One font file and its family and style."""

    family: str
    style: str
    path: Path


def typefaces(which: FontSet = "all") -> tuple[Typeface, ...]:
    """Typefaces that have every character of `phrases.CHARACTERS`, sorted by family. Raises
    `InputError` if there are none."""
    faces, asked = _installed(), which == "held-out"
    found = [one for one in faces if which == "all" or one.family.startswith(HELD_OUT) == asked]
    if not found:
        others = ""
        if faces:
            others = "draw with those that are installed (deepseek-ocr synth --fonts all), or "
        raise InputError(
            f"No {which} fonts were found under {', '.join(FOLDERS)}; {others}install some of the "
            "packages that deepseek_ocr/training/README.md names under Synthetic pages: "
            "apt install fonts-dejavu-core fonts-crosextra-carlito."
        )
    return tuple(found)


@lru_cache(maxsize=512)  # a megabyte or more each
def sized(face: Typeface, size: int) -> ImageFont.FreeTypeFont:
    """`face` at `size` px to the em."""
    return ImageFont.truetype(str(face.path), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _installed() -> tuple[Typeface, ...]:
    """One typeface for each family and style, in a fixed order; if the system has none, those
    that matplotlib brings along."""
    logging.getLogger("fontTools").setLevel(logging.ERROR)  # it remarks on every oddity
    return _faces_in(FOLDERS) or _faces_in([os.path.join(get_data_path(), "fonts", "ttf")])


def _faces_in(folders: Sequence[str]) -> tuple[Typeface, ...]:
    faces: dict[tuple[str, str], Typeface] = {}
    for folder in folders:
        for parent, _, names in sorted(os.walk(folder)):
            for name in sorted(names):
                is_font = name.lower().endswith((".ttf", ".otf"))
                if is_font and (face := _read(Path(parent, name))):
                    faces.setdefault((face.family, face.style), face)
    return tuple(sorted(faces.values()))


def _read(path: Path) -> Typeface | None:
    """The typeface in `path`, or None if it is unsuited, damaged, or lacks characters."""
    try:
        with path.open("rb") as file, TTFont(file, lazy=True) as font:
            names = font["name"]
            family = names.getBestFamilyName() or ""
            style = names.getBestSubFamilyName() or ""
            known = font.getBestCmap() or {}
    except Exception:  # fontTools raises what it stumbles over, struct.error for one
        return None
    full = f"{family} {style}"
    if any(part.lower() in full.lower() for part in _UNSUITED):
        return None
    if any(ord(character) not in known for character in CHARACTERS):
        return None
    return Typeface(family, style, path)
