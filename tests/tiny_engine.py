"""An engine over the golden checkpoint (random weights) that reads a page in a few hundredths of a
second, and decoders whose steps a test can hold, watch or break."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from deepseek_ocr.decoding import sampler
from deepseek_ocr.decoding.decoder import Decoder, PlainDecoder
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Page, Reading
from deepseek_ocr.images.image_loading import open_image
from deepseek_ocr.images.views import make_views
from deepseek_ocr.kernels import choice
from deepseek_ocr.kernels.decoder_factory import DecoderFactory
from deepseek_ocr.kernels.slot_decoder import paths_for
from deepseek_ocr.model.network import Network, embed, vision_tokens
from deepseek_ocr.model.prompts import Codec, encode, with_image
from deepseek_ocr.settings import CropSettings, DecodeSettings
from tests.conftest import byte_tokenizer

SMALL = CropSettings(64, 64, crop_mode=False)
"""One cell: three vision tokens."""

PROMPTS = ("Free OCR.", "Read.", "What does this say? <image>", "<image>")


def codec_of(network: Network) -> Codec:
    """Bytes as tokens; the model writes others too, which have no text."""
    return Codec(byte_tokenizer(), 0, frozenset({1}), network.config.image_token_id)


def page(number: int, tokens: int = 8, **settings: Any) -> Page:
    """Page `number`, which writes what no other page writes, until it has `tokens` tokens."""
    picture = Image.new("RGB", (64, 64), (number * 37 % 256, number * 101 % 256, 90))
    decode = DecodeSettings(max_new_tokens=tokens, stop_on_loop=False, **settings)
    return Page(picture, PROMPTS[number % len(PROMPTS)], SMALL, decode)


def decode(
    network: Network,
    embeddings: torch.Tensor,
    prompt_ids: list[int],
    settings: DecodeSettings,
    end_ids: frozenset[int],
    exempt_ids: frozenset[int] = frozenset(),
) -> Iterator[sampler.Token]:
    """One page by the plain loop, a token at a time, the end token included."""
    decoder = PlainDecoder(network)
    chooser = sampler.Chooser(settings, prompt_ids, exempt_ids)
    logits = decoder.prefill(0, embeddings)
    most = sampler.room(decoder.context, len(prompt_ids), settings.max_new_tokens)
    for count in range(1, most + 1):
        token = chooser.accept(chooser.pick(logits))
        yield token
        if token.id in end_ids or count == most:
            return
        logits = decoder.step([0], [token.id])[0]


def alone(network: Network, asked: Page) -> list[sampler.Token]:
    """What the plain loop writes for a page, without its end token."""
    codec = codec_of(network)
    views = make_views(open_image(asked.image), asked.crop)
    prompt = encode(codec, with_image(asked.prompt), views.token_count)
    rows = vision_tokens(network, views)
    embeddings = embed(network, prompt.ids, rows, prompt.image_start)
    exempt = codec.token_ids(asked.decode.exempt_tokens)
    tokens = decode(network, embeddings, prompt.ids, asked.decode, codec.end_ids, exempt)
    return [token for token in tokens if token.id not in codec.end_ids]


def ids_alone(network: Network, asked: Page) -> list[int]:
    """Their ids."""
    return [token.id for token in alone(network, asked)]


def ids_of(reading: object) -> list[int]:
    """Ids of what was read."""
    assert isinstance(reading, Reading), reading
    return [token.id for token in reading.tokens]


def engine_with(network: Network, decoder: Callable[[int], Decoder], slots: int) -> OcrEngine:
    """An engine on decoders that `decoder` makes of a number of slots."""
    return OcrEngine(network, codec_of(network), make=decoder, slots=slots)


def engine_of(network: Network, slots: int, paths: str = "auto") -> OcrEngine:
    """An engine with the fast paths called `paths`."""
    context = network.config.text_config.max_position_embeddings
    decoders = DecoderFactory(network, paths_for(network, choice.parse(paths)), context)
    return engine_with(network, decoders.make, slots)


class Held(PlainDecoder):
    """Waits before every step until it is let go on; knows what was asked of it.

    `steps` are the slots of every step that was begun. `before` is called, with its slots, at the
    beginning of each.
    """

    def __init__(self, network: Network, slots: int, free: bool = False) -> None:
        super().__init__(network, slots)
        self.going_on = threading.Event()
        if free:
            self.going_on.set()
        self._one = threading.Semaphore(0)
        self.waits = threading.Semaphore(0)
        self.steps: list[list[int]] = []
        self.prefills: list[int] = []
        self.before: Callable[[Sequence[int]], None] = lambda _: None

    def prefill(self, slot: int, embeddings: torch.Tensor) -> torch.Tensor:
        self.prefills.append(slot)
        return super().prefill(slot, embeddings)

    def step(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        self.steps.append(list(slots))
        if not self.going_on.is_set():
            self.waits.release()
            assert self._one.acquire(timeout=60)
        self.before(slots)
        return super().step(slots, ids)

    def reached(self) -> None:
        """Wait until a step is begun and held."""
        assert self.waits.acquire(timeout=60)

    def let_one(self) -> None:
        """Let the step that is held go on."""
        self._one.release()

    def let_go(self) -> None:
        """Hold nothing any more."""
        self.going_on.set()
        self._one.release(1000)
