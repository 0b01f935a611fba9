"""Convolutions as cut-out windows and one matrix product, for devices that cannot convolve.

The network convolves in five places: patch embedding (16 px, stride 16), the neck (1 and 3 px) and
two stride-2 reductions (3 px). Each window of the input is laid out as a row, and the rows are
multiplied with the weights; only views, copies and `linear` are used, and the sums are those of the
convolution in another order, so that results differ by rounding.
"""

from __future__ import annotations

from functools import partial

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional


def convolve(module: nn.Conv2d, pixels: torch.Tensor) -> torch.Tensor:
    """What `module` gives for `pixels` `[B, C, H, W]`: `[B, O, H', W']`, without convolving. Raises
    `ValueError` for dilated, grouped or not zero-padded convolutions, of which the network has
    none."""
    plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    if not plain or isinstance(module.padding, str):
        raise ValueError(f"{module} is not a plain convolution.")
    pad_y, pad_x = module.padding
    if pad_y or pad_x:
        pixels = functional.pad(pixels, (pad_x, pad_x, pad_y, pad_y))
    rows = _windows(pixels, module.kernel_size, module.stride)
    weight = rearrange(module.weight, "o c y x -> o (y x c)")
    return rearrange(functional.linear(rows, weight, module.bias), "b h w o -> b o h w")


def _windows(
    pixels: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]
) -> torch.Tensor:
    """What lies under the kernel at every place: `[B, C, H, W]` to `[B, H', W', (y x c)]`."""
    (tall, wide), (down, right) = kernel, stride
    height = (pixels.shape[2] - tall) // down + 1
    width = (pixels.shape[3] - wide) // right + 1
    if kernel == stride:  # windows side by side are a reshape
        pixels = pixels[:, :, : height * tall, : width * wide]
        return rearrange(pixels, "b c (h y) (w x) -> b h w (y x c)", y=tall, x=wide)
    last = rearrange(pixels, "b c h w -> b h w c")
    shifted = [
        last[:, y : y + down * (height - 1) + 1 : down, x : x + right * (width - 1) + 1 : right]
        for y in range(tall)
        for x in range(wide)
    ]
    return torch.cat(shifted, dim=-1)


def replace(network: nn.Module) -> int:
    """Make every convolution in `network` one of these; how many there were.

    Parameters keep their names and places: only what is computed with them changes.
    """
    found = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for module in found:
        module.forward = partial(convolve, module)  # type: ignore[method-assign]
    return len(found)
