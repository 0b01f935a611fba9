"""The decoder's weights in 8 bits: a whole number from -127 to 127, times a scale per output row.

Attention, experts, dense layers and the output head are held so; embeddings, norms, routers and
the encoders stay as they are. Inputs are not quantised here. A scale is a bfloat16 number, so that
every kernel, whatever it computes in, multiplies by the same.
"""

from __future__ import annotations

import torch
from torch import nn

from deepseek_ocr.model import Network

_BLOCK = 1024
"""Rows quantised at a time: float32 copies stay below 30 MB at full size."""

_FEW = 8
"""Inputs up to which torch's kernel for single tokens beats a matrix product after conversion."""


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[..., rows, k]` of any float type to int8 of the same shape and float32 scales
    `[..., rows]`."""
    flat = weight.reshape(-1, weight.shape[-1])
    values = torch.empty(flat.shape, dtype=torch.int8, device=weight.device)
    scales = torch.empty(len(flat), dtype=torch.float32, device=weight.device)
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK].float()
        scale = _scale(block.abs().amax(1))
        values[start : start + _BLOCK] = (block / scale[:, None]).round_()
        scales[start : start + _BLOCK] = scale
    return values.view(weight.shape), scales.view(weight.shape[:-1])


def _scale(largest: torch.Tensor) -> torch.Tensor:
    """`largest / 127` rounded up to bfloat16, so that no value exceeds 127; 1 for rows of zeros."""
    exact = torch.where(largest > 0, largest / 127, 1).contiguous()
    bits = (exact.view(torch.int32) + 0xFFFF) & -0x10000
    return bits.view(torch.float32)


def multiply(x: torch.Tensor, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """`x [n, k]` times the transpose of `values [rows, k]` with `scales [rows]`: `[n, rows]`."""
    if x.device.type == "cpu" and len(x) <= _FEW:
        return torch.ops.aten._weight_int8pack_mm(x, values, scales.to(x.dtype))
    return (x @ values.to(x.dtype).T) * scales.to(x.dtype)


class Int8Linear(nn.Module):
    """Stands in for an `nn.Linear` without bias."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.values, self.scales = map(nn.Buffer, quantize_rows(linear.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., k]` to `[..., rows]`."""
        flat = multiply(x.reshape(-1, x.shape[-1]), self.values, self.scales)
        return flat.view(*x.shape[:-1], -1)


class Int8Experts(nn.Module):
    """Stands in for the library's experts."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.act_fn = experts.act_fn
        self.in_values, self.in_scales = map(nn.Buffer, quantize_rows(experts.gate_up_proj))
        self.out_values, self.out_scales = map(nn.Buffer, quantize_rows(experts.down_proj))

    def forward(
        self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """`hidden [n, k]`, experts `chosen [n, c]` with their `weights [n, c]`: `[n, k]`."""
        total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        counts = flat.bincount(minlength=len(self.in_values)).tolist()
        for expert, places in enumerate(order.split(counts)):
            if not len(places):
                continue
            tokens = places // chosen.shape[1]
            inner = multiply(hidden[tokens], self.in_values[expert], self.in_scales[expert])
            gate, up = inner.chunk(2, dim=-1)
            outer = multiply(
                self.act_fn(gate) * up, self.out_values[expert], self.out_scales[expert]
            )
            total.index_add_(0, tokens, outer * weights.flatten()[places, None])
        return total.to(hidden.dtype)


@torch.inference_mode(False)
@torch.no_grad()
def quantize(network: Network) -> None:
    """Put 8-bit weights into the decoder of `network`, a module at a time, and drop the originals.

    One that is quantised already stays as it is.
    """
    if not isinstance(network.lm_head, Int8Linear):
        network.lm_head = Int8Linear(network.lm_head)
    for layer in network.model.language_model.layers:
        for part in (layer.self_attn, layer.mlp, getattr(layer.mlp, "shared_experts", None)):
            for name, module in list(part.named_children()) if part is not None else []:
                if isinstance(module, nn.Linear):
                    setattr(part, name, Int8Linear(module))
        experts = getattr(layer.mlp, "experts", None)
        if experts is not None and not isinstance(experts, Int8Experts):
            layer.mlp.experts = Int8Experts(experts)
