"""One page in, a `Reading` out; many pages in, one outcome each.

The shortest use:

    engine = OcrEngine.load("checkpoints/deepseek-ocr")
    print(engine.read("page.jpg", "Free OCR.").text)
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from deepseek_ocr import adapters, devices, generation, grounding, images, model, prompts
from deepseek_ocr.checkpoint import read_config
from deepseek_ocr.grounding import Confidence, Region
from deepseek_ocr.images import ImageLimits, Source, Views
from deepseek_ocr.settings import CELL, CropSettings, DecodeSettings

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
    """Seconds spent on one page, by stage."""

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

    @cached_property
    def markdown(self) -> str:
        """The text without tags, pictures as links (see `grounding.to_markdown`)."""
        return grounding.to_markdown(self.text)


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


class OcrEngine:
    """A loaded checkpoint that reads pages, one at a time."""

    def __init__(
        self, network: model.Network, codec: prompts.Codec, limits: ImageLimits | None = None
    ) -> None:
        self.network = network
        self.codec = codec
        self.limits = limits or ImageLimits()

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        limits: ImageLimits | None = None,
        adapter: str | os.PathLike[str] | None = None,
    ) -> OcrEngine:
        """Load the checkpoint in `folder`: network and tokenizer; merge the LoRA `adapter`, a
        folder, into it where there is one.

        Raises `CheckpointError` and `DeviceError`.
        """
        folder = Path(folder)
        config = read_config(folder)
        codec = prompts.load_codec(
            folder,
            begin_id=config.text_config.bos_token_id,
            end_ids=_as_set(config.text_config.eos_token_id),
            image_id=config.image_token_id,
        )
        network = model.load_network(folder, device, dtype)
        if adapter is not None:
            network = adapters.merge_adapter(network, Path(adapter))
        return cls(network, codec, limits)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        device: torch.device = self.network.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights."""
        dtype: torch.dtype = self.network.dtype
        return dtype

    def vision_tokens(self, views: Views) -> torch.Tensor:
        """The rows `[N, hidden]` that stand for a page in the sequence."""
        return model.vision_tokens(self.network, views)

    def read(
        self,
        image: Source,
        prompt: str,
        crop: CropSettings = CropSettings(),
        decode: DecodeSettings = DecodeSettings(),
    ) -> Reading:
        """Read one page to its end. Raises what `stream` raises."""
        *_, last = self.stream(image, prompt, crop, decode)
        assert isinstance(last, Reading)
        return last

    def stream(
        self,
        image: Source,
        prompt: str,
        crop: CropSettings = CropSettings(),
        decode: DecodeSettings = DecodeSettings(),
    ) -> Iterator[Delta | Reading]:
        """Read one page: a `Delta` whenever text was decoded, and the `Reading` at the end.

        The texts of the deltas join to `Reading.text`. Closing the iterator cancels. `prompt`
        holds `<image>` where the page goes; in front if it does not say.

        Raises `ImageError`, `PromptError` and `GenerationError`.
        """
        clock = _Clock(self.device)
        deadline = time.perf_counter() + (decode.timeout or math.inf)
        page = images.open_image(image, self.limits)
        views = images.make_views(page, crop)
        encoded = prompts.encode(self.codec, prompts.with_image(prompt), views.token_count)
        generation.room(self.network, len(encoded.ids), decode.max_new_tokens)
        preprocess = clock.lap()
        rows = self.vision_tokens(views)
        vision = clock.lap()
        embeddings = model.embed(self.network, encoded.ids, rows, encoded.image_start)
        prefilled = generation.prefill(self.network, embeddings)
        prefill = clock.lap()

        output = _Output(self.codec, decode.stop_on_loop)
        tokens = generation.decode(
            self.network,
            prefilled,
            encoded.ids,
            decode,
            self.codec.end_ids,
            self.codec.token_ids(decode.exempt_tokens),
        )
        for token in tokens:
            if delta := output.add(token):
                yield delta
            if output.finish_reason == "length" and time.perf_counter() > deadline:
                output.finish_reason = "timeout"
            if output.finish_reason in ("loop", "timeout"):
                break
        if delta := output.flush():
            yield delta

        confidences = _Confidences(output.tokens)
        yield Reading(
            text=output.text,
            regions=tuple(
                replace(region, confidence=confidences.of_region(region))
                for region in grounding.parse(output.text)
            ),
            finish_reason=output.finish_reason,
            confidence=confidences.of_span(0, len(output.text) + 1),
            counts=_count(views, crop, page.size, len(encoded.ids), len(output.tokens)),
            timings=Timings(preprocess, vision, prefill, clock.lap()),
            tokens=tuple(output.tokens),
            image_size=page.size,
            more_pages=bool(page.info.get("more_pages")),
        )

    def read_many(self, pages: Iterable[Page]) -> Iterator[Reading | Failure]:
        """Read pages as they come, in order, each to a `Reading` or a `Failure`.

        A page that fails does not stop the others.
        """
        for page in pages:
            yield self._outcome(page)

    def _outcome(self, page: Page) -> Reading | Failure:
        try:
            return self.read(page.image, page.prompt, page.crop, page.decode)
        except Exception as error:  # every page that goes in comes out
            return Failure(_without_frames(error))


class _Output:
    """Gathers tokens into text, watches for loops, knows how the page ended."""

    def __init__(self, codec: prompts.Codec, stop_on_loop: bool) -> None:
        self._end_ids = codec.end_ids
        self._stream = generation.TextStream(codec.tokenizer)
        self._loops = generation.LoopDetector() if stop_on_loop else None
        self._waiting: list[TextToken] = []
        self.tokens: list[TextToken] = []
        self.finish_reason: FinishReason = "length"

    @property
    def text(self) -> str:
        return self._stream.text

    def add(self, token: generation.Token) -> Delta | None:
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
        rest = self._stream.flush()
        return self._delta(rest) if rest or self._waiting else None

    def _delta(self, text: str) -> Delta:
        delta = Delta(text, tuple(self._waiting))
        self._waiting.clear()
        return delta


class _Confidences:
    """Confidence of stretches of text, from the tokens they are made of."""

    def __init__(self, tokens: Sequence[TextToken]) -> None:
        self._starts = torch.tensor([token.start for token in tokens], dtype=torch.long)
        self._logprobs = [token.logprob for token in tokens]

    def of_span(self, start: int, end: int) -> Confidence | None:
        """Over the tokens that begin in `[start, end)`; None where there are none."""
        first, last = torch.searchsorted(self._starts, torch.tensor([start, end])).tolist()
        chosen = self._logprobs[first:last]
        if not chosen:
            return None
        return Confidence(math.exp(sum(chosen) / len(chosen)), math.exp(min(chosen)))

    def of_region(self, region: Region) -> Confidence | None:
        start = region.text_start if region.text else region.start
        return self.of_span(start, region.end) or self.of_span(region.start, region.end)


class _Clock:
    """Wall-clock seconds between laps, the device's pending work included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = time.perf_counter()

    def lap(self) -> float:
        devices.synchronize(self._device)
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def _without_frames(error: Exception) -> Exception:
    """`error` without the stack frames it holds, which hold the page and its cache."""
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return error


def _as_set(ids: int | list[int]) -> frozenset[int]:
    return frozenset([ids] if isinstance(ids, int) else ids)


def _count(
    views: Views, crop: CropSettings, size: tuple[int, int], prompt: int, output: int
) -> Counts:
    """Token counts; `valid_vision` as the official code has it: the share of the global view that
    is page and not padding, plus all cells of the tiles. A page stretched to a small square view
    has no padding.
    """
    cells = (views.global_view.shape[-1] // CELL) ** 2
    tile_cells = (views.tiles.shape[-1] // CELL) ** 2
    stretched = not crop.crop_mode and crop.image_size <= images.LARGEST_STRETCHED
    share = 1.0 if stretched else 1 - (max(size) - min(size)) / max(size)
    valid = int(cells * share) + len(views.tiles) * tile_cells
    ratio = round(output / max(valid, 1), 2)
    return Counts(prompt, views.token_count, output, valid, ratio)
