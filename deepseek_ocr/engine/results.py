"""A page as it goes in, and what comes out of it: frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from deepseek_ocr.grounding import parser
from deepseek_ocr.grounding.parser import Confidence, Region
from deepseek_ocr.images.image_loading import Source
from deepseek_ocr.markup import blocks_in, page_parts, to_markdown
from deepseek_ocr.settings import CropSettings, DecodeSettings, FormulaDelimiters

FinishReason = Literal["stop", "length", "loop", "timeout"]


@dataclass(frozen=True)
class TextToken:
    """A decoded token: id, natural log-probability, and where its text begins in the whole."""

    id: int
    logprob: float
    start: int


@dataclass(frozen=True)
class Delta:
    """What came since the last delta: some text (whole characters) and the tokens it is of."""

    text: str
    tokens: tuple[TextToken, ...]


@dataclass(frozen=True)
class Counts:
    """Tokens of one page.

    - `prompt`: all that went in, vision tokens included; `vision`; `output`: all that came out,
      end token not counted
    - `valid_vision`: vision tokens not spent on padding, as the official code counts them
    - `compression_ratio`: output tokens per valid vision token, two decimals
    """

    prompt: int
    vision: int
    output: int
    valid_vision: int
    compression_ratio: float


@dataclass(frozen=True)
class Timings:
    """Seconds spent on one page, by stage, as a clock on the wall has them.

    `decode` is all that was neither of the others from the moment the page had a slot; other pages
    that were read at the same time count in it. Waiting for a slot counts nowhere.
    """

    preprocess: float
    vision: float
    prefill: float
    decode: float


@dataclass(frozen=True)
class Reading:
    """What was read from one page.

    `text` is what the model wrote, tags included; `markdown` the same cleaned. `finish_reason` is
    "stop" (the model ended), "length" (no room left), "loop" (it went in circles) or "timeout".
    `confidence` is None where nothing was written. `image_size` is width and height in pixels,
    upright.
    `reference` is what the prompt asked to locate, None if nothing.
    `more_pages` is True where the file (a TIFF) holds further pages, which were not read.
    """

    text: str
    regions: tuple[Region, ...]
    finish_reason: FinishReason
    confidence: Confidence | None
    counts: Counts
    timings: Timings
    tokens: tuple[TextToken, ...]
    image_size: tuple[int, int]
    more_pages: bool = False
    reference: str | None = None

    @cached_property
    def markdown(self) -> str:
        """The page as Markdown; see `to_markdown`."""
        return self.to_markdown()

    def to_markdown(self, formulas: FormulaDelimiters = "dollars") -> str:
        """The page as Markdown, pictures as links named as the official script names them."""
        parts = page_parts(self.text, self.regions, self.reference)
        return to_markdown(blocks_in(parts), parser.figure_name, formulas)


@dataclass(frozen=True)
class Page:
    """One page to read: picture, prompt, how to cut it, how to decode it."""

    image: Source
    prompt: str
    crop: CropSettings = CropSettings()
    decode: DecodeSettings = DecodeSettings()


@dataclass(frozen=True)
class Failure:
    """A page that could not be read, and why (`error`; as text: what to do)."""

    error: Exception

    def __str__(self) -> str:
        return str(self.error) or type(self.error).__name__
