"""The stages of a page, timed for the library's plain class and this project in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deepseek_ocr.decoding.decoder import Decoder
from deepseek_ocr.devices import selection as devices
from deepseek_ocr.images import views as images
from deepseek_ocr.kernels import op_fallbacks
from deepseek_ocr.kernels.decoder_factory import DecoderFactory
from deepseek_ocr.kernels.rehearsal import PathSelection, prepare
from deepseek_ocr.model import network as model
from deepseek_ocr.model.checkpoint import read_config
from deepseek_ocr.model.int8_layers import Int8Experts, Int8Linear, quantize_decoder
from deepseek_ocr.model.loader import load_network, rebuild_buffers
from deepseek_ocr.model.weight_matrix import Matrix

PROMPT_TAIL = 9
"""Text tokens behind the page in the Markdown prompt: 913 in all with an A4 page at Gundam."""


@dataclass(frozen=True)
class Ways:
    """Both networks, over one set of weights, and how ours decodes."""

    plain: model.Network
    ours: model.Network
    chosen: frozenset[str]
    selection: PathSelection

    def decoder(self, slots: int, context: int) -> Decoder:
        """Our decoder with so many slots."""
        return DecoderFactory(self.ours, self.selection.paths, context).make(slots)


def load(folder: Path, device: str, dtype: str, chosen: frozenset[str], quant: str) -> Ways:
    """Both ways, ours with the fast paths `chosen`; in both are stand-ins for what the device
    lacks."""
    ours = load_network(folder, device, dtype)
    plain = model.empty_network(read_config(folder))
    for name, parameter in ours.named_parameters():
        owner, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(owner), leaf, nn.Parameter(parameter, requires_grad=False))
    rebuild_buffers(plain, ours.device)
    op_fallbacks.fit(plain)
    if quant == "int8":
        quantize_decoder(ours)
    return Ways(plain.eval(), ours, chosen, prepare(ours, chosen))


def in_turn(calls: list[Callable[[], Any]], repeat: int, device: torch.device) -> list[float]:
    """Median seconds of each call; they take turns, after one turn that does not count."""
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(repeat + 1):
        for call, kept in zip(calls, seconds, strict=True):
            devices.synchronize(device)
            start = time.perf_counter()
            call()
            devices.synchronize(device)
            if turn:
                kept.append(time.perf_counter() - start)
    return [statistics.median(kept) for kept in seconds]


@torch.inference_mode()
def plain_vision(network: model.Network, views: images.Views) -> None:
    """Vision tokens by the library's class alone."""
    kind = network.dtype
    network.get_image_features(
        pixel_values=views.global_view[None].to(network.device, kind),
        pixel_values_local=views.tiles.to(network.device, kind) if len(views.tiles) else None,
        num_local_patches=[len(views.tiles)],
        patches_grid=[list(views.grid)],
    )


def operations(network: model.Network, views: images.Views) -> int:
    """Additions and multiplications of the plain class's matrix products for these views."""
    with FlopCounterMode(display=False) as counter:
        plain_vision(network, views)
    return int(counter.get_total_flops())


def bytes_per_token(network: model.Network) -> int:
    """Bytes of weights that one decoded token has to read: those of the experts it takes."""
    text = network.model.language_model
    config = network.config.text_config
    taken = config.num_experts_per_tok / config.n_routed_experts
    total = 0.0
    for name, module in [*text.layers.named_modules(), ("lm_head", network.lm_head)]:
        share = taken if name.endswith(".experts") else 1
        total += share * sum(tensor.nbytes for tensor in _weights(module))
    return round(total)


def _weights(module: nn.Module) -> list[torch.Tensor]:
    """What a module, without those within it, holds: as parameters, or as rows of 8 bits."""
    if isinstance(module, Int8Linear):
        return _of(module.rows)
    if isinstance(module, Int8Experts):
        return _of(module.inner) + _of(module.outer)
    return list(module.parameters(recurse=False))


def _of(rows: Matrix) -> list[torch.Tensor]:
    return [rows.values] + ([] if rows.scales is None else [rows.scales])


def prompt(views: images.Views, network: model.Network) -> list[int]:
    """Ids of a prompt of the usual length around these views."""
    vocabulary = network.config.text_config.vocab_size
    tail = [id_ % vocabulary for id_ in range(1000, 1000 + PROMPT_TAIL)]
    return [0, *[network.config.image_token_id] * views.token_count, *tail]


class _Times:
    """A streamer for the library's `generate` that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, tokens: torch.Tensor) -> None:
        if tokens.numel():  # the first call holds the prompt's ids, here none
            self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def plain_times(network: model.Network, embeddings: torch.Tensor, tokens: int) -> list[float]:
    """When each token came from the library's `generate`."""
    streamer = _Times()
    network.generate(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(embeddings.shape[:2], device=network.device, dtype=torch.long),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=streamer,
    )
    assert len(streamer.times) == tokens
    return streamer.times


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


def first_and_rest(runs: list[Callable[[], list[float]]], repeat: int) -> list[tuple[float, float]]:
    """Median seconds to the first token and from it to the last, of each; they take turns."""
    kept: list[list[tuple[float, float]]] = [[] for _ in runs]
    for turn in range(repeat + 1):
        for run, into in zip(runs, kept, strict=True):
            start = time.perf_counter()
            times = run()
            if turn:
                into.append((times[0] - start, times[-1] - times[0]))
    medians = [[statistics.median(part) for part in zip(*some, strict=True)] for some in kept]
    return [(first, rest) for first, rest in medians]
