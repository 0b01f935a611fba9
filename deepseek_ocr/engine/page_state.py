"""The work on one page, stage by stage: prepared, seen, written."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from deepseek_ocr.decoding import sampler
from deepseek_ocr.devices import selection
from deepseek_ocr.engine.results import Delta, Page, Reading, Timings
from deepseek_ocr.engine.text_accumulator import Confidences, TextAccumulator, count, valid_tokens
from deepseek_ocr.grounding import parser
from deepseek_ocr.images.image_loading import open_image
from deepseek_ocr.images.limits import ImageLimits
from deepseek_ocr.images.views import Views, make_views
from deepseek_ocr.kernels import float32_fallback
from deepseek_ocr.model import network as model
from deepseek_ocr.model import prompts


class PageState:
    """A page between its picture and its reading.

    Made from the page alone (views and prompt, no network); then `see` turns the views into the
    embeddings of its prompt, and each token goes in by `take` until it has `ended`.
    """

    def __init__(self, page: Page, codec: prompts.Codec, limits: ImageLimits, context: int) -> None:
        """Open the picture, cut it, encode the prompt; in any thread. Raises `ImageError` and
        `PromptError` (also where the prompt fills the `context`, tokens)."""
        began = time.perf_counter()
        picture = open_image(page.image, limits)
        views = make_views(picture, page.crop)
        prompt = prompts.encode(codec, prompts.with_image(page.prompt), views.token_count)
        self._most = sampler.room(context, len(prompt.ids), page.decode.max_new_tokens)
        self._views: Views | None = views
        self._prompt = prompt
        self._embeddings: torch.Tensor | None = None
        self.crop = page.crop
        self._valid = valid_tokens(views, page.crop, picture.size)
        self._image_size = picture.size
        self._reference = parser.reference_in(page.prompt)
        self._more_pages = bool(picture.info.get("more_pages"))
        self._timeout = page.decode.timeout or math.inf
        exempt = codec.token_ids(page.decode.exempt_tokens)
        self.chooser = sampler.Chooser(page.decode, prompt.ids, exempt)
        self.output = TextAccumulator(codec, page.decode.stop_on_loop)
        self._written: list[int] = []
        self._seconds = {"vision": 0.0, "prefill": 0.0}
        self._preprocess = time.perf_counter() - began
        self._began: float | None = None

    @contextmanager
    def stage(self, name: str, device: torch.device) -> Iterator[None]:
        """Counts the seconds within towards "vision" or "prefill", the device's work included."""
        began = time.perf_counter()
        try:
            yield
            selection.synchronize(device)
        finally:
            self._seconds[name] += time.perf_counter() - began

    def see(self, network: model.Network) -> None:
        """Turn the views into the prompt's embeddings, unless that is done."""
        if self._began is None:
            self._began = time.perf_counter()
        if self._views is not None:
            rows = model.vision_tokens(network, self._views)
            if rows.dtype == torch.float16 and not bool(torch.isfinite(rows).all()):
                with float32_fallback.in_float32(network):
                    rows = model.vision_tokens(network, self._views)
            prompt = self._prompt
            self._embeddings = model.embed(network, prompt.ids, rows, prompt.image_start)
            self._views = None

    @torch.inference_mode()
    def embeddings(self, network: model.Network, without_last: bool = False) -> torch.Tensor:
        """`[1, L, hidden]` of the prompt and of what was written, of late or before an
        interruption; without the last token, if so wanted."""
        assert self._embeddings is not None
        written = self._written[: -1 if without_last else None]
        if not written:
            return self._embeddings
        table = network.get_input_embeddings()
        rows = table(torch.tensor(written, device=table.weight.device))
        return torch.cat([self._embeddings[0], rows])[None]

    @property
    def last_id(self) -> int:
        """The token written last."""
        return self._written[-1]

    @property
    def ended(self) -> bool:
        """True when no more tokens are wanted."""
        return self.output.finish_reason != "length" or len(self._written) >= self._most

    def take(self, token: sampler.Token) -> Delta | None:
        """Write a token down; the text that it completes, if any."""
        self._written.append(token.id)
        delta = self.output.add(token)
        if self.output.finish_reason == "length" and self._elapsed() > self._timeout:
            self.output.finish_reason = "timeout"
        return delta

    def _elapsed(self) -> float:
        """Seconds of work on the page; waiting for a slot with its views ready is none."""
        assert self._began is not None
        return self._preprocess + time.perf_counter() - self._began

    def reading(self) -> Reading:
        """What was read; for a page that has ended and whose output was flushed."""
        output, prompt = self.output, self._prompt
        confidences = Confidences(output.tokens)
        regions = tuple(
            replace(region, confidence=confidences.of_region(region))
            for region in parser.parse(output.text)
        )
        decode = self._elapsed() - self._preprocess - sum(self._seconds.values())
        return Reading(
            text=output.text,
            regions=regions,
            finish_reason=output.finish_reason,
            confidence=confidences.of_span(0, len(output.text) + 1),
            counts=count(len(prompt.ids), prompt.image_tokens, len(output.tokens), self._valid),
            timings=Timings(self._preprocess, **self._seconds, decode=decode),
            tokens=tuple(output.tokens),
            image_size=self._image_size,
            more_pages=self._more_pages,
            reference=self._reference,
        )
