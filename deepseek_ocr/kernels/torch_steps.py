"""One decoding step in torch's own operations, in buffers that stay where they are.

Row i of a step is slot i. Slots that have nothing to say are computed along: what they write lies
behind their end, where their own next step overwrites it. So nothing is gathered, all shapes
depend on two numbers (`rows`, `span`), and nothing waits for the device: what a CUDA graph needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from deepseek_ocr.kernels.decoder_weights import DecoderWeights, Layer, Mlp
from deepseek_ocr.kernels.slot_cache import SlotCache
from deepseek_ocr.model.experts import way_for
from deepseek_ocr.model.weight_matrix import linear


def step(
    weights: DecoderWeights,
    entries: torch.Tensor,
    ids: torch.Tensor,
    lengths: torch.Tensor,
    span: int,
) -> torch.Tensor:
    """Logits `[rows, V]` (float32) behind one more token `ids[i]` in slot i, for `ids [rows]`.

    `entries` is the cache's (`SlotCache`), `lengths [rows]` how many tokens each slot held before,
    all below `span`, the number of cache entries that are looked at.
    """
    x = nn.functional.embedding(ids, weights.embedding)
    cosines, sines = weights.cosines[lengths][:, None], weights.sines[lengths][:, None]
    seen = torch.arange(span, device=ids.device)[None] <= lengths[:, None]
    for layer, (keys, values) in zip(weights.layers, entries, strict=True):
        normed = _norm(x, layer.first_norm, weights.epsilon)
        query, key, value = (
            linear(normed, part).view(len(x), weights.heads, -1)
            for part in (layer.query, layer.key, layer.value)
        )
        at = torch.arange(len(ids), device=ids.device)
        keys[at, :, lengths] = _rotated(key, cosines, sines)
        values[at, :, lengths] = value
        mixed = nn.functional.scaled_dot_product_attention(
            _rotated(query, cosines, sines)[:, :, None],
            keys[: len(ids), :, :span],
            values[: len(ids), :, :span],
            attn_mask=seen[:, None, None],
        )
        x = x + linear(mixed.flatten(1), layer.output)
        x = x + _feed_forward(_norm(x, layer.second_norm, weights.epsilon), layer, weights)
    return linear(_norm(x, weights.norm, weights.epsilon), weights.head).float()


def _norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def _rotated(x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, dim=-1)
    return x * cosines + torch.cat((-high, low), dim=-1) * sines


def _feed_forward(x: torch.Tensor, layer: Layer, weights: DecoderWeights) -> torch.Tensor:
    shared = _mlp(x, layer.mlp)
    if layer.experts is None:
        return shared
    scores = nn.functional.linear(x.float(), layer.experts.router.float()).softmax(-1)
    shares, chosen = scores.topk(weights.chosen, dim=-1, sorted=False)
    way = way_for(x.device, len(x))
    shares = shares * weights.routed_scale
    return way(x, chosen, shares, layer.experts.inner, layer.experts.outer) + shared


def _mlp(x: torch.Tensor, mlp: Mlp) -> torch.Tensor:
    return linear(nn.functional.silu(linear(x, mlp.gate)) * linear(x, mlp.up), mlp.down)


SPAN = 512
"""Tokens by which the part of the cache that steps look at grows."""


class TorchSteps:
    """Steps over `weights` and `cache`, called as they are."""

    def __init__(self, weights: DecoderWeights, cache: SlotCache) -> None:
        self._weights, self._cache = weights, cache
        slots = len(cache.lengths)
        self._given = torch.zeros(2, slots, dtype=torch.long, device=weights.device)
        self._sent = torch.zeros(2, slots, dtype=torch.long)
        if weights.device.type == "cuda":
            self._sent = self._sent.pin_memory()

    def __call__(self, slots: Sequence[int], ids: Sequence[int]) -> torch.Tensor:
        """Logits `[n, V]` (float32) behind one more token in each of `slots`."""
        lengths = self._cache.lengths
        rows = self.rows(max(slots) + 1)
        self._sent[0, list(slots)] = torch.tensor(ids)
        # Only a slot at the context's end, which is never stepped again, has no room behind it.
        self._sent[1] = torch.tensor(lengths).clamp(max=self._cache.capacity - 1)
        self._given.copy_(self._sent, non_blocking=True)
        # A slot that is computed along may be longer than those that are asked for, and be full.
        longest = min(max(lengths[:rows]) + 1, self._cache.capacity)
        logits = self.run(rows, self.span(longest))
        if list(slots) == list(range(len(slots))):
            return logits[: len(slots)]
        return logits[list(slots)]

    def rows(self, needed: int) -> int:
        """How many rows are computed where `needed` are."""
        return needed

    def span(self, needed: int) -> int:
        """How many cache entries are looked at if the longest slot needs `needed`."""
        return min(-(-needed // SPAN) * SPAN, self._cache.capacity)

    def run(self, rows: int, span: int) -> torch.Tensor:
        """The step itself, over what was given last."""
        ids, lengths = self._given[:, :rows]
        return step(self._weights, self._cache.entries, ids, lengths, span)
