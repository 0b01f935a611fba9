"""Attention of a SAM layer through the compiled kernel: the structure of `sam_attention.cpp`,
filled."""

from __future__ import annotations

import ctypes
from ctypes import c_int64, c_void_p
from typing import ClassVar

import torch

from deepseek_ocr.devices import cpu
from deepseek_ocr.kernels import compiling
from deepseek_ocr.kernels.sam_attention import Positions

_LANES = 16
"""Numbers of a head the kernel takes at a time; a head is a multiple of them."""


class _Call(ctypes.Structure):
    _fields_: ClassVar = [
        *[(name, c_int64) for name in ("batch", "height", "width", "side_y", "side_x")],
        *[(name, c_int64) for name in ("heads", "dim", "threads")],
        *[(name, c_void_p) for name in ("qkv", "padding", "rows", "columns", "out")],
    ]


def can_run(device: torch.device, dtype: torch.dtype, dim: int) -> bool:
    """True where the kernel is for this type and this processor and can be had here."""
    if device.type != "cpu" or dtype != torch.bfloat16 or dim % _LANES:
        return False
    if "AVX-512 BF16" not in cpu.instructions():
        return False
    return compiling.library("sam_attention") is not None


def attend(
    qkv: torch.Tensor, padding: torch.Tensor, positions: Positions, window: int, heads: int
) -> torch.Tensor:
    """Mixed values `[batch, height, width, C]` from `qkv` `[batch, height, width, 3 * C]`.

    `window` is the side of a window in cells, 0 where there are none. Windows reach beyond the
    map; a cell there has `padding` `[3 * C]`. Ask `can_run` first.
    """
    library = compiling.library("sam_attention")
    assert library is not None
    batch, height, width, triple = qkv.shape
    side_y, side_x = (window, window) if window else (height, width)
    rows, columns = positions.tables((side_y, side_x))
    out = qkv.new_empty(batch, height, width, triple // 3)
    qkv, padding = qkv.contiguous(), padding.contiguous()
    call = _Call(
        batch=batch, height=height, width=width, side_y=side_y, side_x=side_x,
        heads=heads, dim=triple // 3 // heads, threads=torch.get_num_threads(),
        qkv=qkv.data_ptr(), padding=padding.data_ptr(), out=out.data_ptr(),
        rows=rows.data_ptr(), columns=columns.data_ptr(),
    )  # fmt: skip
    if library.sam_attention(ctypes.byref(call)):
        raise AssertionError("the compiled kernel refused what it was made for")
    return out
