"""The network as plain products, for training a small one from nothing on a CPU.

The same numbers as the library's class on square views without tiles, in half its time: windows are
cut once for all of SAM's layers, relative positions ride along in the product of queries and keys,
every expert sees every token, and everything but the weights is in one type (`pocket._dtype`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from deepseek_ocr.model.network import Network

PATCH = 16
"""Side of SAM's patches, px."""


@dataclass(frozen=True)
class Seen:
    """What the encoders make of pages; g = cells a side.

    - `cells`: vision tokens `[B, g, g, hidden]`
    - `patches`: SAM's features before they are merged into cells `[B, 4g, 4g, C]`
    """

    cells: Tensor
    patches: Tensor


def patchify(views: Tensor, window: int) -> Tensor:
    """`[B, 3, S, S]` as patches in the order of SAM's windows: `[B, windows, window**2, 768]`."""
    return rearrange(
        views,
        "b c (Y y py) (X x px) -> b (Y X) (y x) (c py px)",
        py=PATCH,
        px=PATCH,
        y=window,
        x=window,
    )


def see(network: Network, patches: Tensor) -> Seen:
    """Run the encoders over `patchify`'s patches, in their type."""
    model = network.model
    cells, fine = _sam(model.vision_tower.sam_encoder, patches)
    side = cells.shape[1]
    flat = rearrange(cells, "b h w c -> b (h w) c")
    clip = _clip(model.vision_tower.vision_encoder, flat, side)
    tokens = _linear(torch.cat([clip, flat], -1), model.multi_modal_projector)
    return Seen(rearrange(tokens, "b (h w) c -> b h w c", h=side), fine)


def decode(network: Network, ids: Tensor, cells: Tensor) -> tuple[Tensor, ...]:
    """The decoder's states `[B, T, hidden]` after each layer, the last ones normalised, for token
    ids `[B, T]` with vision tokens `[B, g, g, hidden]` behind the first."""
    model = network.model
    kind, size, side = cells.dtype, len(cells), cells.shape[1]
    newlines = model.image_newline.to(kind).expand(size, side, 1, -1)
    rows = rearrange(torch.cat([cells, newlines], 2), "b h w c -> b (h w) c")
    rows = torch.cat([rows, model.view_separator.to(kind).expand(size, 1, -1)], 1)
    embedded = functional.embedding(ids, model.language_model.embed_tokens.weight).to(kind)
    # The begin token, the page, the rest of the prompt and the answer.
    x = torch.cat([embedded[:, :1], rows, embedded[:, 1 + rows.shape[1] :]], 1)
    return _decoder(model.language_model, x)


def _sam(sam: Any, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Cells `[B, g, g, C]` and, before they are merged, patches `[B, 4g, 4g, C']`."""
    projection = sam.patch_embed.projection
    x = functional.linear(patches, projection.weight.to(patches.dtype).flatten(1))
    x = x + projection.bias.to(x.dtype)
    batch, count, area, _ = x.shape
    window, across = round(area**0.5), round(count**0.5)
    side = window * across
    table = sam.interpolate_pos_encoding(side, side)
    cut = "b (Y y) (X x) c -> b (Y X) (y x) c"
    x = x + rearrange(table, cut, y=window, x=window).to(x.dtype)
    x = rearrange(x, "b n t c -> (b n) t c")
    for layer in sam.layers:
        x = x + _windowed(_norm(x, layer.layer_norm1), layer.attn, window)
        raised = functional.gelu(_linear(_norm(x, layer.layer_norm2), layer.mlp.lin1))
        x = x + _linear(raised, layer.mlp.lin2)
    x = _norm(
        functional.linear(x, sam.neck.conv1.weight.to(x.dtype).flatten(1)), sam.neck.layer_norm1
    )
    back = "(b Y X) (y x) c -> b c (Y y) (X x)"
    planes = rearrange(x, back, b=batch, Y=across, y=window)
    fine = _norm(_conv(planes, sam.neck.conv2).permute(0, 2, 3, 1), sam.neck.layer_norm2)
    merged = _conv(_conv(fine.permute(0, 3, 1, 2), sam.proj.conv1), sam.proj.conv2)
    return merged.permute(0, 2, 3, 1), fine


def _windowed(x: Tensor, attention: Any, n: int) -> Tensor:
    """Attention within windows `[windows, n * n, C]`, with what each query gives to the rows and
    columns of its window."""
    heads = attention.num_attention_heads
    parts = rearrange(_linear(x, attention.qkv), "w t (k h d) -> k w h t d", k=3, h=heads)
    q, k, v = parts.unbind(0)
    apart = torch.arange(n, device=x.device)
    spread = apart[:, None] - apart + n - 1
    grid = rearrange(q, "w h (y x) d -> (w h) y x d", y=n)
    down = torch.einsum("byxd,ykd->byxk", grid, attention.rel_pos_h.to(x.dtype)[spread])
    along = torch.einsum("byxd,xkd->byxk", grid, attention.rel_pos_w.to(x.dtype)[spread])
    given = rearrange(torch.cat([down, along], -1), "(w h) y x k -> w h (y x) k", h=heads)
    one = torch.eye(n, device=x.device, dtype=x.dtype)
    marks = torch.cat([one.repeat_interleave(n, 0), one.repeat(n, 1)], -1)
    q = torch.cat([q * attention.scale, given], -1)
    k = torch.cat([k, marks.expand(*k.shape[:3], 2 * n)], -1)
    mixed: Tensor = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
    return _linear(rearrange(mixed, "w h t d -> w t (h d)"), attention.proj)


def _clip(clip: Any, cells: Tensor, side: int) -> Tensor:
    """`[B, g * g, C]` to the same, every cell knowing of every other."""
    embeddings = clip.embeddings
    length = side * embeddings.patch_size
    begin = embeddings.class_embedding.to(cells.dtype).expand(len(cells), 1, -1)
    x = torch.cat([begin, cells], 1)
    x = x + embeddings.interpolate_pos_encoding(x, length, length).to(x.dtype)
    x = _norm(x, clip.pre_layrnorm)
    for layer in clip.encoder.layers:
        attention = layer.self_attn
        y = _norm(x, layer.layer_norm1)
        q, k, v = (
            rearrange(_linear(y, part), "b t (h d) -> b h t d", h=attention.num_heads)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = torch.softmax((q * attention.scale) @ k.transpose(-1, -2), -1) @ v
        x = x + _linear(rearrange(mixed, "b h t d -> b t (h d)"), attention.out_proj)
        raised = layer.mlp.activation_fn(_linear(_norm(x, layer.layer_norm2), layer.mlp.fc1))
        x = x + _linear(raised, layer.mlp.fc2)
    return x[:, 1:]


def _decoder(decoder: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Embeddings `[B, T, C]` to the states after each layer."""
    place = torch.arange(x.shape[1], device=x.device)
    angles = place[:, None].float() * decoder.rotary_emb.inv_freq.to(x.device)
    angles = torch.cat([angles, angles], -1)
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    ahead = torch.zeros(len(place), len(place), device=x.device, dtype=x.dtype)
    ahead = ahead.masked_fill(place > place[:, None], float("-inf"))
    states: list[Tensor] = []
    for layer in decoder.layers:
        attention = layer.self_attn
        y = _rms(x, layer.input_layernorm)
        q, k, v = (
            rearrange(_linear(y, part), "b t (h d) -> b h t d", d=attention.head_dim)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = (z * cosine + _turned(z) * sine for z in (q * attention.scaling, k))
        mixed = torch.softmax(q @ k.transpose(-1, -2) + ahead, -1) @ v
        x = x + _linear(rearrange(mixed, "b h t d -> b t (h d)"), attention.o_proj)
        y = _rms(x, layer.post_attention_layernorm)
        x = x + (_mixture(y, layer.mlp) if hasattr(layer.mlp, "experts") else _gated(y, layer.mlp))
        states.append(x)
    return *states[:-1], _rms(x, decoder.norm)


def _mixture(x: Tensor, layer: Any) -> Tensor:
    """The chosen experts' sum and the shared one; all experts compute, the others count nothing."""
    gate, experts = layer.gate, layer.experts
    scores = functional.linear(x.float(), gate.weight.float()).softmax(-1)
    chosen = torch.zeros_like(scores).scatter(-1, scores.topk(gate.top_k, -1).indices, 1.0)
    shares = (scores * chosen * gate.routed_scaling_factor).to(x.dtype)
    both = torch.einsum("btc,eoc->bteo", x, experts.gate_up_proj.to(x.dtype))
    gates, values = both.chunk(2, -1)
    raised = functional.silu(gates) * values * shares[..., None]
    mixed = torch.einsum("bteo,eco->btc", raised, experts.down_proj.to(x.dtype))
    return mixed + _gated(x, layer.shared_experts)


def _gated(x: Tensor, layer: Any) -> Tensor:
    raised = functional.silu(_linear(x, layer.gate_proj)) * _linear(x, layer.up_proj)
    return _linear(raised, layer.down_proj)


def _turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _linear(x: Tensor, layer: Any) -> Tensor:
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return functional.linear(x, layer.weight.to(x.dtype), bias)


def _conv(x: Tensor, layer: Any) -> Tensor:
    return functional.conv2d(
        x, layer.weight.to(x.dtype), stride=layer.stride, padding=layer.padding
    )


def _norm(x: Tensor, layer: Any) -> Tensor:
    weight, bias = layer.weight.to(x.dtype), layer.bias.to(x.dtype)
    return functional.layer_norm(x, x.shape[-1:], weight, bias, layer.eps)


def _rms(x: Tensor, layer: Any) -> Tensor:
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + layer.variance_epsilon)
    weighed: Tensor = layer.weight.to(x.dtype) * scaled.to(x.dtype)
    return weighed
