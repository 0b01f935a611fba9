"""What is written of one page: tokens gathered into text, and the figures of its reading."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from deepseek_ocr.decoding.detokenizer import TextStream
from deepseek_ocr.decoding.loop_detector import LoopDetector
from deepseek_ocr.decoding.sampler import Token
from deepseek_ocr.engine.results import Counts, Delta, FinishReason, TextToken
from deepseek_ocr.grounding.parser import Confidence, Region
from deepseek_ocr.images.views import LARGEST_STRETCHED, Views
from deepseek_ocr.model import prompts
from deepseek_ocr.settings import CELL, CropSettings


class TextAccumulator:
    """Gathers tokens into text, watches for loops, knows how the page ended."""

    def __init__(self, codec: prompts.Codec, stop_on_loop: bool) -> None:
        self._end_ids = codec.end_ids
        self._stream = TextStream(codec.tokenizer)
        self._loops = LoopDetector() if stop_on_loop else None
        self._waiting: list[TextToken] = []
        self.tokens: list[TextToken] = []
        self.finish_reason: FinishReason = "length"

    @property
    def text(self) -> str:
        """All text so far."""
        return self._stream.text

    def add(self, token: Token) -> Delta | None:
        """Take in the next token; the text that it completes, if any."""
        if token.id in self._end_ids:
            self.finish_reason = "stop"
            return None
        placed = TextToken(token.id, token.logprob, len(self.text))
        self.tokens.append(placed)
        self._waiting.append(placed)
        piece = self._stream.add(token.id)
        if not piece:
            return None
        if self._loops and self._loops.feed(piece):
            self.finish_reason = "loop"
        return self._delta(piece)

    def flush(self) -> Delta | None:
        """What is left when no more tokens come."""
        rest = self._stream.flush()
        return self._delta(rest) if rest or self._waiting else None

    def _delta(self, text: str) -> Delta:
        delta = Delta(text, tuple(self._waiting))
        self._waiting.clear()
        return delta


class Confidences:
    """Confidence of stretches of text, from the tokens they are made of."""

    def __init__(self, tokens: Sequence[TextToken]) -> None:
        self._starts = [token.start for token in tokens]
        self._logprobs = [token.logprob for token in tokens]

    def of_span(self, start: int, end: int) -> Confidence | None:
        """Over the tokens that begin in `[start, end)`; None where there are none."""
        first, last = bisect_left(self._starts, start), bisect_left(self._starts, end)
        chosen = self._logprobs[first:last]
        if not chosen:
            return None
        return Confidence(math.exp(sum(chosen) / len(chosen)), math.exp(min(chosen)))

    def of_region(self, region: Region) -> Confidence | None:
        """Over a region's text, or over its tags where it has no text."""
        start = region.text_start if region.text else region.start
        return self.of_span(start, region.end) or self.of_span(region.start, region.end)


def valid_tokens(views: Views, crop: CropSettings, size: tuple[int, int]) -> int:
    """Vision tokens that are not padding, as the official code has it: the share of the global
    view that is page, plus all cells of the tiles. A page stretched to a small square view has no
    padding. `size` is width and height of the page in pixels."""
    cells = (views.global_view.shape[-1] // CELL) ** 2
    tile_cells = (views.tiles.shape[-1] // CELL) ** 2
    stretched = not crop.crop_mode and crop.image_size <= LARGEST_STRETCHED
    share = 1.0 if stretched else 1 - (max(size) - min(size)) / max(size)
    return int(cells * share) + len(views.tiles) * tile_cells


def count(prompt: int, vision: int, output: int, valid: int) -> Counts:
    """The counts of a page, with the ratio that follows from them."""
    return Counts(prompt, vision, output, valid, round(output / max(valid, 1), 2))
