"""One decoding step in torch's own operations, for every device: fixed buffers, no loop over experts.

Row i of a step is slot i. Slots that have nothing to say are computed along: what they write lies
behind their end, where their own next step overwrites it. So nothing is gathered, all shapes
depend on two numbers (`rows`, `span`), and nothing waits for the device: what a CUDA graph needs.
"""

from __future__ import annotations

import torch
from torch import nn

from deepseek_ocr.kernels.experts import way_for
from deepseek_ocr.kernels.rows import linear
from deepseek_ocr.kernels.weights import Layer, Mlp, Weights


def step(
    weights: Weights, entries: torch.Tensor, ids: torch.Tensor, lengths: torch.Tensor, span: int
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
            linear(normed, part).unflatten(1, (weights.heads, -1))
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


def _feed_forward(x: torch.Tensor, layer: Layer, weights: Weights) -> torch.Tensor:
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
