"""Resizing through the compiled kernel, to the pixel what Pillow makes of a picture.

Pillow sums whole numbers, so any order of summing gives the same; its weights are formed here as
it forms them (bicubic, in doubles, rounded to 22 bits behind the point). Which direction it takes
first is its own choice, known for `KNOWN`.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from ctypes import c_int64, c_void_p
from functools import lru_cache
from typing import ClassVar

import numpy as np
import PIL
import torch
from PIL import Image

from deepseek_ocr.images.views import Pixels, Resize, Size, by_pillow
from deepseek_ocr.kernels import compiling

KNOWN = "13."
"""Versions of Pillow whose order of directions `_columns_first` knows."""

WORTH = 2_000_000
"""Pixels from which the kernel is used: smaller pictures take Pillow a few milliseconds."""

_POINT = 22
_REACH = 2.0
"""Pixels on either side that a bicubic weight reaches, at the same size."""

_LOG = logging.getLogger(__name__)


class _Weights(ctypes.Structure):
    _fields_: ClassVar = [
        *[(name, c_int64) for name in ("before", "after", "taps")],
        *[(name, c_void_p) for name in ("first", "count", "weight")],
    ]


def choose(chosen: frozenset[str]) -> Resize:
    """How pictures are resized with the fast paths `chosen`."""
    return by_kernel if "compiled" in chosen and PIL.__version__.startswith(KNOWN) else by_pillow


def by_kernel(image: Image.Image, sizes: Sequence[Size]) -> list[Pixels]:
    """See `images.by_pillow`, whose pixels these are."""
    big = image.width * image.height >= WORTH
    if not big or compiling.library("resizing") is None:
        return by_pillow(image, sizes)
    pixels = np.asarray(image)
    return [_resized(pixels, size) for size in sizes]


def _resized(pixels: Pixels, size: Size) -> Pixels:
    (height, width, _), (new_width, new_height) = pixels.shape, size
    if _columns_first((width, height), size):
        return _rows(_columns(pixels, new_height), new_width)
    return _columns(_rows(pixels, new_width), new_height)


def _columns_first(before: Size, after: Size) -> bool:
    """Pillow 13 begins with the direction that leaves less to do, roughly."""
    less = before[1] - after[1]
    return less > 0 and less > 2 * (before[0] - after[0])


def _rows(pixels: Pixels, width: int) -> Pixels:
    out = np.empty((pixels.shape[0], width, 3), np.uint8)
    _call("resize_rows", _weights(pixels.shape[1], width), pixels, pixels.shape[0], out)
    return out


def _columns(pixels: Pixels, height: int) -> Pixels:
    out = np.empty((height, *pixels.shape[1:]), np.uint8)
    _call("resize_columns", _weights(pixels.shape[0], height), pixels, pixels[0].size, out)
    return out


def _call(
    name: str, weights: tuple[int, Pixels, Pixels, Pixels], pixels: Pixels, count: int, out: Pixels
) -> None:
    before, first, counts, weight = weights
    call = _Weights(
        before, *weight.shape, first.ctypes.data, counts.ctypes.data, weight.ctypes.data
    )
    function = getattr(compiling.library("resizing"), name)
    function.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, ctypes.c_int]
    threads = torch.get_num_threads()
    function(ctypes.byref(call), pixels.ctypes.data, count, out.ctypes.data, threads)


@lru_cache(maxsize=64)
def _weights(before: int, after: int) -> tuple[int, Pixels, Pixels, Pixels]:
    """`before`, and for each of `after` pixels the first of `before` that counts, how many do, and
    their weights `[after, taps]`, int32."""
    scale = before / after
    widened = max(scale, 1.0)
    reach = _REACH * widened
    centre = (np.arange(after) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    counts = np.minimum((centre + reach + 0.5).astype(np.int64), before) - first
    places = np.arange(counts.max())
    weight = _bicubic((places + first[:, None] - centre[:, None] + 0.5) * (1.0 / widened))
    weight[places >= counts[:, None]] = 0
    total = np.zeros(after)
    for tap in range(weight.shape[1]):  # summed in the order that Pillow takes
        total += weight[:, tap]
    weight /= total[:, None]
    whole = np.trunc(weight * (1 << _POINT) + np.where(weight < 0, -0.5, 0.5))
    return before, first.astype(np.int32), counts.astype(np.int32), whole.astype(np.int32)


def _bicubic(x: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> Pixels:
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < _REACH, far, 0.0))
