"""Ways of decoding, each compared with the library's plain class and timed; for
`benchmarks.kernels` and `benchmarks.gpu`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks import machine
from benchmarks.page_stages import prompt_of
from benchmarks.part_rows import Figures, verdict
from deepseek_ocr.decoding.decoder import Decoder, PlainDecoder
from deepseek_ocr.devices import selection
from deepseek_ocr.kernels import compiled_steps, decoder_weights, slot_decoder, torch_steps
from deepseek_ocr.kernels.rehearsal import TOLERANCES
from deepseek_ocr.kernels.slot_decoder import DecodePath
from deepseek_ocr.model.network import Network

LIMITS = "limits"
"""Row of a report that holds `Limits`."""

MOST = 1.05
"""Share of a limit above which it was measured too low: measuring is good to a few percent."""


@dataclass(frozen=True)
class Limits:
    """What the device was measured to do at most: bytes of memory and operations a second."""

    bytes_per_second: float
    operations_per_second: float

    def __str__(self) -> str:
        operations = self.operations_per_second / 1e12
        return f"{self.bytes_per_second / 1e9:.1f} GB/s, {operations:.2f} TFLOP/s"


def limits(
    device: torch.device, dtype: torch.dtype, earlier: Mapping[str, Any] | None = None
) -> Limits:
    """What `device` does at most, with matrices in `dtype`: as the report's part `card` found among
    those that ran `earlier`, so that all shares are of the same limit; else measured now."""
    found = (earlier or {}).get("card", {}).get("rows", {}).get(LIMITS, {})
    if "bytes_per_second" in found:
        return Limits(found["bytes_per_second"], found["operations_per_second"])
    return Limits(machine.bandwidth(device), machine.matrix_peak(device, dtype))


def too_low(*shares: float) -> Figures:
    """A remark if one of these shares cannot be."""
    return {"remark": "the limit was measured too low"} if max(shares) > MOST else {}


@dataclass(frozen=True)
class DecodeTask:
    """What every way is given, and what the plain class made of it.

    - `prompt` `[1, L, hidden]`; `forced_ids`: tokens that follow it one by one, so that all ways
      see the same
    - `repeat`: how often decoding `len(forced_ids)` tokens is timed; the median counts
    - `expected` `[len(forced_ids), 1, V]`: logits behind each token; `best`
      `[len(forced_ids), 1]`: the likeliest tokens before anything was quantised
    """

    prompt: torch.Tensor
    forced_ids: tuple[int, ...]
    repeat: int
    expected: torch.Tensor
    best: torch.Tensor

    @property
    def context(self) -> int:
        """Tokens of room that a slot needs, in whole blocks of 512."""
        return -(-(self.prompt.shape[1] + self.most_tokens + 2) // 512) * 512

    @property
    def most_tokens(self) -> int:
        """Tokens behind the prompt in the end: those that are compared, two that warm up, and those
        that are timed."""
        return (1 + self.repeat) * len(self.forced_ids) + _WARM_UP


def paths(network: Network) -> Iterator[tuple[str, DecodePath]]:
    """The fast paths that the network's device has, and what they are called here."""
    yield "torch", slot_decoder.TORCH
    if network.device.type == "cuda":
        yield "graphs", slot_decoder.GRAPHS
    elif compiled_steps.can_run(network.device, network.dtype):
        yield "compiled", slot_decoder.NATIVE


def within_one_span(length: int, most: int, repeat: int) -> tuple[int, int]:
    """How many tokens to decode at a time, `most` at most, so that a `DecodeTask` behind a prompt
    of `length` tokens ends within one span of the cache, and that span.

    Spans are the powers of two from `torch_steps.SPAN` on: each takes longer than the one before.
    """
    span = torch_steps.SPAN
    while span - length < 2 * (1 + repeat):
        span *= 2
    return min(most, (span - length - _WARM_UP) // (1 + repeat)), span


_WARM_UP = 2
"""Steps before the clock runs."""


def task_of(
    network: Network, length: int, tokens: int, repeat: int, best: torch.Tensor | None = None
) -> DecodeTask:
    """A prompt of `length` tokens and `tokens` more, read by the plain class over `network`; `best`
    is that of the task before anything was quantised, if there was one."""
    prompt = prompt_of(network, length)
    numbers = torch.Generator().manual_seed(1)
    vocabulary = network.config.text_config.vocab_size
    forced_ids = tuple(torch.randint(vocabulary, (tokens,), generator=numbers).tolist())
    expected = follow(PlainDecoder(network), prompt, forced_ids)[:, :1]
    return DecodeTask(
        prompt, forced_ids, repeat, expected, expected.argmax(2) if best is None else best
    )


def follow(one: Decoder, prompt: torch.Tensor, forced_ids: tuple[int, ...]) -> torch.Tensor:
    """Logits `[len(forced_ids), 2, V]` behind each of the tokens in the first and the last slot of
    `one`, on the CPU; all slots are given the same, and keep it."""
    slots = range(one.slots)
    for slot in slots:
        one.prefill(slot, prompt)
    return torch.stack(
        [one.step(slots, [token] * one.slots)[[0, -1]].cpu() for token in forced_ids]
    )  # fmt: skip


def measure(way: str, one: Decoder, task: DecodeTask, network: Network, limits: Limits) -> Figures:
    """What the way called `way` does with all slots of `one` over the weights of `network`:

    - `tokens_per_s`: over all pages
    - `share_of_memory`: of the speed at which a step reads the weights it needs, and what every
      page has in its cache, once; `share_of_peak`: of the device's matrix products
    - `agreement`: the median over steps of the relative difference of the logits, in the first or
      the last slot, from the plain class over the same weights; None of that class itself; `wrong`
      if it is more than rounding explains
    - `top1`: how often the likeliest token is that of the plain class before anything was quantised
    """
    logits = follow(one, task.prompt, task.forced_ids)
    errors = (logits - task.expected).norm(dim=2) / task.expected.norm(dim=2)
    agreement = None if way == "plain" else float(errors.amax(1).median())
    speed = _tokens_per_second(one, task, network.device)
    steps = speed / one.slots
    bytes_read, operations = needed_by_step(network, one.slots, task.prompt.shape[1])
    shares = {
        "share_of_memory": steps * bytes_read / limits.bytes_per_second,
        "share_of_peak": steps * operations / limits.operations_per_second,
    }
    return {
        "way": way,
        "pages": one.slots,
        "tokens_per_s": speed,
        **shares,
        "agreement": agreement,
        "top1": float((logits.argmax(2) == task.best).float().mean()),
        **too_low(*shares.values()),
        **({} if agreement is None else verdict(agreement, TOLERANCES[network.dtype])),
    }


def _tokens_per_second(one: Decoder, task: DecodeTask, device: torch.device) -> float:
    """Tokens a second over all slots of `one`, which hold a prompt, greedy, one transfer of ids a
    step; the median.

    Before it is timed a step is made at the last length and at the first, as libraries choose
    other kernels for each.
    """
    slots, ids = list(range(one.slots)), list(range(3, 3 + one.slots))
    behind = task.prompt[:, -1:].expand(-1, task.most_tokens, -1)
    for prompt in (torch.cat([task.prompt, behind], dim=1), task.prompt):
        one.prefill(0, prompt)
        one.step(slots, ids)
    speeds = []
    for _ in range(task.repeat):
        selection.synchronize(device)
        start = time.perf_counter()
        for _ in task.forced_ids:
            ids = one.step(slots, ids).argmax(-1).tolist()
        selection.synchronize(device)
        speeds.append(one.slots * len(task.forced_ids) / (time.perf_counter() - start))
    return statistics.median(speeds)


def needed_by_step(network: Network, pages: int, length: int) -> tuple[float, float]:
    """What a step of `pages` pages of `length` tokens cannot do without: bytes it reads, and
    operations of its matrix products.

    Of the experts those are read that so many distinct random choices hit on average. Products
    within the attention are not counted.
    """
    read = decoder_weights.read(network, 1)
    total: float = _size(read.head) + sum(_size(layer) for layer in read.layers)
    numbers: float = _numbers(read.head) + sum(_numbers(layer) for layer in read.layers)
    for layer in read.layers:
        if layer.experts is None:
            continue
        routed = (layer.experts.inner, layer.experts.outer)
        chosen = read.chosen / len(layer.experts.router)
        total -= (1 - chosen) ** pages * sum(map(_size, routed))
        numbers -= (1 - chosen) * sum(map(_numbers, routed))
    text = network.config.text_config
    cache = 2 * len(read.layers) * text.hidden_size * length * network.dtype.itemsize
    return total + pages * cache, 2 * pages * numbers


def _size(part: object) -> int:
    """Bytes of all tensors in a frozen value."""
    return sum(tensor.nbytes for tensor in _tensors(part))


def _numbers(part: object) -> int:
    """How many numbers the matrices in a frozen value have."""
    return sum(tensor.numel() for tensor in _tensors(part) if tensor.dim() > 1)


def _tensors(part: object) -> Iterator[torch.Tensor]:
    if isinstance(part, torch.Tensor):
        yield part
    for inner in getattr(part, "__dict__", {}).values():
        yield from _tensors(inner)
