"""The stages of a page by the library's plain class and by this project, over the same weights."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import in_turn, medians
from deepseek_ocr.decoding.decoder import Decoder
from deepseek_ocr.images.views import Views
from deepseek_ocr.kernels import choice, op_fallbacks
from deepseek_ocr.kernels.decoder_factory import DecoderFactory
from deepseek_ocr.kernels.rehearsal import PathSelection, prepare
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.int8_layers import quantize_decoder
from deepseek_ocr.model.loader import load_network, rebuild_buffers
from deepseek_ocr.model.network import Network, empty_network, replace_parameter, vision_tokens

PROMPT = 913
"""Tokens of an A4 page at Gundam with the Markdown prompt."""


@dataclass(frozen=True)
class NetworkPair:
    """Both networks, and how ours decodes."""

    plain: Network
    ours: Network
    selection: PathSelection

    def decoder(self, slots: int, context: int) -> Decoder:
        """Our decoder with so many slots of `context` tokens."""
        return DecoderFactory(self.ours, self.selection.paths, context).make(slots)


def load_pair(
    folder: Path, device: str, dtype: str, kernels: str = "auto", quant: str = "none"
) -> NetworkPair:
    """Both networks of the checkpoint in `folder`, ours with the fast paths `kernels` and its
    decoder in 8 bits if `quant` is int8; both with stand-ins for what the device lacks."""
    ours = load_network(folder, device, dtype)
    plain = empty_network(read_config(folder))
    for name, parameter in ours.named_parameters():
        replace_parameter(plain, name, parameter)
    rebuild_buffers(plain, ours.device)
    op_fallbacks.fit(plain)
    if quant == "int8":
        quantize_decoder(ours)
    return NetworkPair(plain.eval(), ours, prepare(ours, choice.parse(kernels)))


def views_of(side: int, tiles: int = 0, tile_side: int = 640) -> Views:
    """A view of `side` px and so many tiles, of noise."""
    grid = (1, 1) if not tiles else (tiles, 1) if tiles % 2 else (2, tiles // 2)
    return Views(torch.rand(3, side, side), torch.rand(tiles, 3, tile_side, tile_side), grid)


def prompt_length(network: Network) -> int:
    """`PROMPT`, or half the context of a network for which that is too much."""
    context: int = network.config.text_config.max_position_embeddings
    return min(PROMPT, context // 2)


def prompt_of(network: Network, tokens: int) -> torch.Tensor:
    """Embeddings `[1, tokens, hidden]` of about the size that vision tokens have."""
    hidden = network.config.text_config.hidden_size
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, tokens, hidden, generator=generator) * 0.02
    return values.to(network.device, network.dtype)


@dataclass(frozen=True)
class StageTime:
    """One stage: median seconds of both, None if the plain class has no such stage; `share` is
    ours, of the machine's limit."""

    stage: str
    plain: float | None
    ours: float
    share: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times faster than the plain class."""
        return None if self.plain is None else self.plain / self.ours


def vision(pair: NetworkPair, stage: str, views: Views, repeat: int, peak: float) -> StageTime:
    """The stage from `views` to vision tokens. Its share is that of the plain class's matrix
    products in `peak` operations a second."""
    plain = partial(vision_tokens, pair.plain, views)
    calls = {"plain": plain, "ours": partial(vision_tokens, pair.ours, views)}
    seconds = medians(in_turn(calls, repeat, pair.ours.device))
    with FlopCounterMode(display=False) as counter:
        plain()
    share = counter.get_total_flops() / seconds["ours"] / peak
    return StageTime(stage, **seconds, share=share)


class _Clock:
    """A streamer for the library's `generate` that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: torch.Tensor) -> None:
        if tokens.numel():  # the first call holds the prompt's ids, here none
            self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def plain_times(network: Network, embeddings: torch.Tensor, tokens: int) -> list[float]:
    """When each token came from the library's `generate`."""
    clock = _Clock()
    network.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], device=network.device, dtype=torch.long),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=clock,
    )
    assert len(clock.times) == tokens
    return clock.times


@torch.inference_mode()
def our_times(decoder: Decoder, embeddings: torch.Tensor, tokens: int, pages: int) -> list[float]:
    """When each token of all `pages` (the same one several times) came from our decoder."""
    ids = [int(decoder.prefill(slot, embeddings).argmax()) for slot in range(pages)]
    times = [time.perf_counter()]
    for _ in range(tokens - 1):
        ids = decoder.step(range(pages), ids).argmax(-1).tolist()
        times.append(time.perf_counter())
    for slot in range(pages):
        decoder.free(slot)
    return times


def first_and_rest(
    runs: Sequence[Callable[[], list[float]]], repeat: int
) -> list[tuple[float, float]]:
    """Median seconds to the first token and from it to the last, of each; they take turns."""
    kept: list[list[tuple[float, float]]] = [[] for _ in runs]
    for turn in range(repeat + 1):
        for run, into in zip(runs, kept, strict=True):
            began = time.perf_counter()
            times = run()
            if turn:
                into.append((times[0] - began, times[-1] - times[0]))
    parts = ([statistics.median(part) for part in zip(*some, strict=True)] for some in kept)
    return [(first, rest) for first, rest in parts]
