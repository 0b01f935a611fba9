"""A weight matrix as the fast paths see it: rows of any float type, or of 8 bits with scales."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from deepseek_ocr import hugepages

_BLOCK = 1024
"""Rows quantised at a time: float32 copies stay below 30 MB at full size."""

_FEW = 8
"""Inputs up to which torch's product for few inputs beats a conversion and a matrix product."""


STEPS = 128
"""Inputs are divided by it, and what comes out is multiplied by it: a sum of products with whole
numbers up to 127 would leave float16 long before the result does."""


@dataclass(frozen=True)
class Rows:
    """A matrix `[..., rows, k]`; of 8 bits where it has `scales [..., rows]` (float32)."""

    values: torch.Tensor
    scales: torch.Tensor | None = None

    def __getitem__(self, at: int) -> Rows:
        """The matrix `at` of several."""
        return Rows(self.values[at], None if self.scales is None else self.scales[at])


def linear(x: torch.Tensor, rows: Rows) -> torch.Tensor:
    """`x [n, k]` times the transpose of a matrix: `[n, rows]`."""
    if rows.scales is None:
        return nn.functional.linear(x, rows.values)
    if x.device.type == "cpu" and len(x) <= _FEW:
        return torch._weight_int8pack_mm(x, rows.values, rows.scales.to(x.dtype))
    return ((x / STEPS) @ rows.values.to(x.dtype).T) * (rows.scales * STEPS).to(x.dtype)


def quantize(weight: torch.Tensor) -> Rows:
    """`[..., rows, k]` of any float type in 8 bits: whole numbers from -127 to 127, and the scale
    of each row."""
    flat = weight.reshape(-1, weight.shape[-1])
    values = hugepages.empty(flat.shape, torch.int8, weight.device)
    scales = torch.empty(len(flat), dtype=torch.float32, device=weight.device)
    for start in range(0, len(flat), _BLOCK):
        block = flat[start : start + _BLOCK].float()
        scale = _scale(block.abs().amax(1))
        values[start : start + _BLOCK] = (block / scale[:, None]).round_()
        scales[start : start + _BLOCK] = scale
    return Rows(values.view(weight.shape), scales.view(weight.shape[:-1]))


def _scale(largest: torch.Tensor) -> torch.Tensor:
    """`largest / 127` rounded up to bfloat16, so that every kernel, whatever it computes in,
    multiplies by the same, and no value exceeds 127; 1 for rows of zeros."""
    exact = torch.where(largest > 0, largest / 127, 1).contiguous()
    bits = (exact.view(torch.int32) + 0xFFFF) & -0x10000
    return bits.view(torch.float32)
