"""A weight matrix as the fast paths see it: rows of any float type, or of 8 bits with scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from deepseek_ocr.devices import hugepages

_BLOCK = 1024
"""Rows quantised at a time: float32 copies stay below 30 MB at full size."""

_NUMBERS_A_ROW = 8
"""Of 4 bytes, alive at once while the scales of a block are computed, at most."""

_FEW = 8
"""Inputs up to which torch's product for few inputs beats a conversion and a matrix product."""


STEPS = 128
"""Inputs are divided by it, and what comes out is multiplied by it: a sum of products with whole
numbers up to 127 would leave float16 long before the result does."""


@dataclass(frozen=True)
class Matrix:
    """A matrix `[..., rows, k]`; of 8 bits where it has `scales [..., rows]` (float32)."""

    values: torch.Tensor
    scales: torch.Tensor | None = None

    def __getitem__(self, at: int | tuple[int | slice, ...]) -> Matrix:
        """The matrix `at` of several, or some rows of one."""
        return Matrix(self.values[at], None if self.scales is None else self.scales[at])


def linear(x: torch.Tensor, rows: Matrix) -> torch.Tensor:
    """`x [n, k]` times the transpose of a matrix: `[n, rows]`."""
    if rows.scales is None:
        return nn.functional.linear(x, rows.values)
    if x.device.type == "cpu" and len(x) <= _FEW:
        return torch._weight_int8pack_mm(x, rows.values, rows.scales.to(x.dtype))
    return ((x / STEPS) @ rows.values.to(x.dtype).T) * (rows.scales * STEPS).to(x.dtype)


def empty_int8(shape: Sequence[int], device: torch.device) -> Matrix:
    """Room on `device` for a matrix `[..., rows, k]` of 8 bits; fill it with `quantize_into`."""
    scales = torch.empty(tuple(shape[:-1]), dtype=torch.float32, device=device)
    return Matrix(hugepages.empty(shape, torch.int8, device), scales)


def quantize(weight: torch.Tensor, device: torch.device | None = None) -> Matrix:
    """`[..., rows, k]` of any float type in 8 bits: whole numbers from -127 to 127, and the scale
    of each row. On `device`, or where `weight` is."""
    rows = empty_int8(weight.shape, device or weight.device)
    quantize_into(rows, weight, weight.dtype)
    return rows


def quantize_into(rows: Matrix, weight: torch.Tensor, dtype: torch.dtype) -> None:
    """Fill `rows` with `weight` of the same shape, rounded to `dtype` first.

    `weight` may be on another device: its rows are moved and quantised a block at a time, so that
    no more than `working_bytes` are taken there. A row with a value that is not finite has a scale
    that is not finite.
    """
    assert rows.scales is not None, "there are no scales to fill"
    source = weight.reshape(-1, weight.shape[-1])
    values, scales = rows.values.view(source.shape), rows.scales.view(-1)
    for start in range(0, len(source), _BLOCK):
        part = slice(start, start + _BLOCK)
        _quantize_block(values[part], scales[part], source[part], dtype)


def _quantize_block(
    values: torch.Tensor, scales: torch.Tensor, source: torch.Tensor, dtype: torch.dtype
) -> None:
    block = source.to(values.device, dtype).float()
    scales.copy_(_scale(block.abs().amax(1)))
    values.copy_((block / scales[:, None]).round_())


def working_bytes(shape: Sequence[int]) -> int:
    """The most that `quantize_into` takes for a moment on the device, beside a result of this
    `shape`: two copies in float32 of a block of rows, and a few numbers a row."""
    rows = min(_BLOCK, math.prod(shape[:-1]))
    return rows * (2 * shape[-1] + _NUMBERS_A_ROW) * torch.float32.itemsize


def _scale(largest: torch.Tensor) -> torch.Tensor:
    """`largest / 127` rounded up to bfloat16, so that every kernel, whatever it computes in,
    multiplies by the same, and no value exceeds 127; 1 for rows of zeros."""
    exact = torch.where(largest == 0, 1, largest / 127).contiguous()
    bits = (exact.view(torch.int32) + 0xFFFF) & -0x10000
    return torch.where(exact.isfinite(), bits.view(torch.float32), exact)
