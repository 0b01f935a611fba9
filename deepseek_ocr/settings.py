"""Frozen values that say how a page is cut and how its text is decoded.

Standard library only: doors build these before anything heavy is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from deepseek_ocr.errors import SettingsError

CELL = 64
"""Side in pixels of the square that becomes one vision token: 16 px patches, then two stride-2
convolutions."""

LARGEST_VIEW = 1280
"""Largest view side in pixels that the model was trained for (preset Large)."""

MAX_PICTURE_PIXELS = 178_956_970
"""Most pixels of a picture: the bound at which Pillow refuses to open one."""

VIEW_SIDES = {"Tiny": 512, "Small": 640, "Base": 1024, "Large": 1280}
"""The model's own presets of one view: title → side in px, the smallest first."""

LARGEST_RANK = 4096
"""Of a LoRA adapter, trained or read: a config may ask for any, and memory is taken by it."""

ExistingText = Literal["skip", "replace", "both"]
"""What a searchable PDF does with pages that have text of their own: leave them as they are, put
what was read in the place of their text, or add it to their text."""

FormulaDelimiters = Literal["dollars", "brackets"]
"""What stands around formulas in Markdown: `$…$` and `$$…$$`, or `\\(…\\)` and `\\[…\\]`."""

QUANTS = ("none", "int8")
"""How the decoder's weights are held: as they are, or in 8 bits with a scale per output row."""

_SWITCH = dict.fromkeys(("yes", "on", "true", "1"), True)
_SWITCH |= dict.fromkeys(("no", "off", "false", "0"), False)

TABLE_TOKENS = ("<td>", "</td>", "<tr>", "</tr>")
"""Tokens of the official tokenizer that tables, which the model writes in HTML, repeat."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SettingsError(message)


@dataclass(frozen=True)
class CropSettings:
    """How one page image becomes the square views that the network sees.

    With `crop_mode` the page gives one padded global view of `base_size` px and, where a side is
    longer than `image_size`, two to nine tiles of `image_size` px. Without it the page gives a
    single view of `image_size` px and `base_size` is not used.

    Raises `SettingsError` where a size is not a multiple of 64 px between 64 and 1280.
    """

    base_size: int = 1024
    image_size: int = 640
    crop_mode: bool = True

    def __post_init__(self) -> None:
        for name in ("base_size", "image_size"):
            size = getattr(self, name)
            _require(
                type(size) is int and CELL <= size <= LARGEST_VIEW and size % CELL == 0,
                f"{name} must be a multiple of {CELL} between {CELL} and {LARGEST_VIEW} px, "
                f"not {size!r}; the presets use 512, 640, 1024 and 1280.",
            )
        _require(type(self.crop_mode) is bool, "crop_mode must be True or False.")


@dataclass(frozen=True)
class DecodeSettings:
    """How text is decoded: greedy unless `temperature` is above zero.

    The default guard forbids a 30-token sequence to come twice within the last 90 tokens: these
    are the numbers of the vLLM recipe that the model's authors publish. It is windowed because a
    page may honestly repeat a line far apart (headers, forms), while a loop repeats at once.
    Tables repeat honestly and at once, so a sequence with a table token in it forbids nothing:
    rows of empty or equal cells come out as they are.

    - `max_new_tokens`: most tokens to write; the model's context bounds it as well.
    - `temperature` (0 is greedy), `top_p`, `top_k` (0 is off), `seed`: sampling.
    - `repetition_penalty`: divides the score of tokens already written (1 is off).
    - `no_repeat_ngram_size`: length in tokens of the sequence that may not repeat (0 is off).
    - `no_repeat_window`: how many tokens back the guard looks (0 is the whole sequence, prompt
      included, as the official `no_repeat_ngram_size` does).
    - `exempt_tokens`: tokens the n-gram guard never forbids; unknown ones are ignored.
    - `exempt_ngrams`: a sequence that holds an exempt token forbids nothing at all. Without it
      only the exempt tokens themselves stay allowed, as in the authors' recipe.
    - `stop_on_loop`: end the page with finish reason "loop" once the text goes in circles.
    - `timeout`: seconds from the start of a page after which it ends with finish reason "timeout"
      (0 is off).

    Raises `SettingsError` for a value outside its range.
    """

    max_new_tokens: int = 8192
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0
    no_repeat_ngram_size: int = 30
    no_repeat_window: int = 90
    exempt_tokens: tuple[str, ...] = TABLE_TOKENS
    exempt_ngrams: bool = True
    stop_on_loop: bool = True
    timeout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k", "seed", "no_repeat_ngram_size", "no_repeat_window"):
            value = getattr(self, name)
            _require(type(value) is int, f"{name} must be a whole number, not {value!r}.")
        for name in ("temperature", "top_p", "repetition_penalty", "timeout"):
            value = getattr(self, name)
            _require(type(value) in (int, float), f"{name} must be a number, not {value!r}.")
        _require(
            isinstance(self.exempt_tokens, tuple),
            "exempt_tokens must be a tuple of tokens, also for one of them.",
        )
        _require(self.max_new_tokens >= 1, "max_new_tokens must be at least 1.")
        _require(0 <= self.temperature <= 2, "temperature must lie between 0 (greedy) and 2.")
        _require(0 < self.top_p <= 1, "top_p must lie above 0 and at most 1 (1 is off).")
        _require(self.top_k >= 0, "top_k must be 0 (off) or more.")
        _require(0 < self.repetition_penalty <= 10, "repetition_penalty must lie in (0, 10].")
        _require(0 <= self.timeout <= 86_400, "timeout must lie between 0 (off) and 86400 seconds.")
        _require(0 <= self.seed < 2**63, "seed must lie between 0 and 2**63 - 1.")
        _require(self.no_repeat_ngram_size >= 0, "no_repeat_ngram_size must be 0 (off) or more.")
        _require(
            self.no_repeat_window == 0 or self.no_repeat_window >= self.no_repeat_ngram_size,
            "no_repeat_window must be 0 (whole sequence) or at least no_repeat_ngram_size.",
        )


@dataclass(frozen=True)
class Attempt:
    """One way of reading a page: what it is called in reports, how to cut, how to decode.

    `after` are the outcomes of the attempts before it that call for it ("loop", "length",
    "empty"); nothing calls for the first one.
    """

    name: str
    crop: CropSettings
    decode: DecodeSettings
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class RenderSettings:
    """How a page of a document becomes a picture.

    - `dpi`: of pages of a PDF; 144 is what the official script uses
    - `rotate`: None turns as the file's flags say; 0, 90, 180 or 270 is the turn (degrees
      clockwise) taken in place of them
    - `max_pixels`: a PDF page that would have more is rendered at a lower resolution
    - `max_picture_pixels`: a picture that has more is refused before it is decoded
    - `timeout`: seconds a page may take to become a picture
    - `memory`: bytes of address space that the rendering process may add to what it starts with,
      where the system can hold it to that

    Raises `SettingsError` for a value outside its range.
    """

    dpi: int = 144
    rotate: int | None = None
    max_pixels: int = 20_000_000
    max_picture_pixels: int = MAX_PICTURE_PIXELS
    timeout: float = 60.0
    memory: int = 3 * 2**30

    def __post_init__(self) -> None:
        _require(
            type(self.dpi) is int and 18 <= self.dpi <= 1200, "dpi must lie between 18 and 1200."
        )
        _require(self.rotate in (None, 0, 90, 180, 270), "rotate must be 0, 90, 180 or 270.")
        _require(self.max_pixels >= 1, "max_pixels must be at least 1.")
        _require(self.max_picture_pixels >= 1, "max_picture_pixels must be at least 1.")
        _require(self.timeout > 0, "timeout must be more than 0 seconds.")


def parse_switch(name: str, text: str) -> bool:
    """True for yes, on, true and 1 in any case, False for no, off, false and 0. Raises
    `SettingsError` for any other text of the setting `name`."""
    word = text.strip().lower()
    if word not in _SWITCH:
        raise SettingsError(f"{name} must be yes or no (true or false), not {text[:60]!r}.")
    return _SWITCH[word]


def check_quant(name: str) -> None:
    """Raises `SettingsError` for a name that is not among `QUANTS`."""
    if name not in QUANTS:
        raise SettingsError(f"There is no quant {name!r}; use {' or '.join(QUANTS)}.")


def one_of(kind: Any, name: str, word: str) -> Any:
    """`word`, which the setting `name` is to be, as a value of the `Literal` `kind`. Raises
    `SettingsError` for any other."""
    known = get_args(kind)
    if word not in known:
        raise SettingsError(f"{name} must be {', '.join(known)}; not {word[:60]!r}.")
    return word
