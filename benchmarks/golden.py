"""Whether a device computes what the official implementation gave, by every way and in every type.

The golden checkpoint and its outputs are those of `tests/test_golden.py`. Differences are relative:
the norm of the difference over the norm of the official values.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from functools import partial

import torch

from benchmarks import decode_speed
from benchmarks.part_rows import Figures, ReportRows, verdict
from benchmarks.part_runner import ReportSettings
from deepseek_ocr.decoding.decoder import Decoder, PlainDecoder
from deepseek_ocr.kernels import choice, op_fallbacks
from deepseek_ocr.kernels.rehearsal import prepare
from deepseek_ocr.kernels.slot_decoder import SlotDecoder
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network, vision_tokens
from tests.goldens import CASES, GOLDEN, VIEWS, Golden, embedded, golden_views, load_golden
from tests.goldens import relative_error as error

TYPES = ("float32", "bfloat16", "float16")

TOLERANCE = {"float32": 1e-5, "bfloat16": 0.03, "float16": 0.005, "int8": 0.06}
"""Relative differences that rounding explains. float32 as in the tests, of every row; the others of
the median over rows, as a rounding can tip the choice of an expert: about three times what a CPU
gives (bfloat16 0.009, float16 0.0011, int8 in bfloat16 0.02)."""

CONTEXT = 1024

TAIL = 9
"""Text tokens behind the page in every case; their logits and their loss are stored."""


def check(settings: ReportSettings, rows: ReportRows) -> None:
    """The part: a row for every type, and in it for vision and for each way of decoding."""
    golden = load_golden()
    for dtype in TYPES:
        _check_type(settings, rows, golden, dtype, "none")
    _check_type(settings, rows, golden, "bfloat16", "int8")


def _check_type(
    settings: ReportSettings, rows: ReportRows, golden: Golden, dtype: str, quant: str
) -> None:
    name, kind = (dtype, dtype) if quant == "none" else (f"{quant} in {dtype}", quant)
    plain, ours = (
        load_network(GOLDEN / "checkpoint", settings.device, dtype, quant=quant) for _ in range(2)
    )
    op_fallbacks.fit(plain)
    chosen = prepare(ours, choice.parse("auto"))
    if quant == "none":
        for way, network, by in (("plain", plain, None), ("fast", ours, chosen.vision)):
            rows.add(f"{name}, vision, {way}", partial(_vision, network, golden, kind, by))
    make: Make = PlainDecoder
    rows.add(f"{name}, decoding, plain", partial(_decoding, plain, make, golden, kind, None))
    for way, path in decode_speed.paths(ours):
        make = partial(SlotDecoder, slots=1, context=CONTEXT, path=path)
        found = partial(_decoding, ours, make, golden, kind, chosen.attention)
        rows.add(f"{name}, decoding, {way}", found)


Make = Callable[[Network], Decoder]


def _vision(network: Network, golden: Golden, kind: str, by: str | None) -> Figures:
    """The largest difference of the vision tokens of all stored views; `by` is the attention."""
    found = {}
    for name in VIEWS:
        tokens = vision_tokens(network, golden_views(golden, name))
        found[name] = error(tokens.float().cpu(), golden[f"{name}.vision_tokens"])
    worst = max(found, key=lambda name: found[name])
    figures: Figures = {"attention": by} if by else {}
    figures |= {"difference": found[worst], "of": worst, "tolerance": TOLERANCE[kind]}
    return figures | verdict(found[worst], TOLERANCE[kind])


def _decoding(network: Network, make: Make, golden: Golden, kind: str, by: str | None) -> Figures:
    """Logits behind prompts and steps, losses, and how many greedy ids are the official ones; `by`
    is the attention."""
    decoder = make(network)
    differences, losses, same, count = [], [], 0, 0
    for case in CASES:
        ids, embeddings = embedded(network, golden, case)
        theirs = golden[f"{case}.logits_last16"]
        text = ids[len(ids) - TAIL :]
        logits = _given(decoder, embeddings[:, : len(ids) - TAIL], text)
        differences += [error(*pair) for pair in zip(logits, theirs[-TAIL - 1 :], strict=True)]
        loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(text))
        losses.append(error(loss[None], golden[f"{case}.loss_labels_last9"]))
        wanted = golden[f"{case}.greedy_norepeat0"].tolist()
        written = _greedy(decoder, embeddings, len(wanted))
        alike = map(operator.eq, written, wanted)
        same += len(list(itertools.takewhile(bool, alike)))
        count += len(wanted)
    differences.sort()
    exact = kind == "float32"
    difference = differences[-1] if exact else differences[len(differences) // 2]
    figures: Figures = {"attention": by} if by else {}
    figures |= {
        "difference": difference, "largest": differences[-1], "loss": max(losses),
        "greedy": f"{same} of {count} ids", "tolerance": TOLERANCE[kind],
    }  # fmt: skip
    figures |= verdict(max(difference, *losses), TOLERANCE[kind])
    if exact and same < count and "wrong" not in figures:
        figures["wrong"] = f"only {same} of {count} greedy ids are the official ones"
    return figures


def _given(decoder: Decoder, embeddings: torch.Tensor, text: list[int]) -> torch.Tensor:
    """Logits `[1 + len(text), V]` behind the prompt and each token, on the CPU."""
    logits = [decoder.prefill(0, embeddings).cpu().clone()]
    logits += [decoder.step([0], [token])[0].cpu().clone() for token in text]
    decoder.free(0)
    return torch.stack(logits)


def _greedy(decoder: Decoder, embeddings: torch.Tensor, count: int) -> list[int]:
    ids = [int(decoder.prefill(0, embeddings).argmax())]
    while len(ids) < count:
        ids.append(int(decoder.step([0], ids[-1:]).argmax()))
    decoder.free(0)
    return ids
