"""Position tables of the encoders, resized once per view size and kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import nn

from deepseek_ocr.model.network import Network


def keep(network: Network) -> None:
    """Resize the position tables of the encoders once per view size instead of once per call.

    While a table is being trained it is resized anew each time, as the library does.
    """
    sam = network.model.vision_tower.sam_encoder
    clip = network.model.vision_tower.vision_encoder.embeddings
    sam_kept: dict[object, torch.Tensor] = {}
    clip_kept: dict[object, torch.Tensor] = {}

    def sam_table(height: int, width: int) -> torch.Tensor:
        return kept(sam_kept, sam.pos_embed, (height, width), _resize_grid)

    def clip_table(_: torch.Tensor, height: int, width: int) -> torch.Tensor:
        size = (height // clip.patch_size, width // clip.patch_size)
        return kept(clip_kept, clip.position_embedding.weight, size, _resize_class_and_grid)

    sam.interpolate_pos_encoding = sam_table
    clip.interpolate_pos_encoding = clip_table
    for layer in sam.layers:
        layer.attn.get_rel_pos = _RelativeTables(layer.attn.get_rel_pos)


class _RelativeTables:
    """SAM's relative positions, laid out once per view size; the library does it in every call,
    with coordinates made on the CPU whatever the device.

    Remembers what `lay_out(q_size, k_size, table)` gives: `[q_size, k_size, head]`.
    """

    def __init__(self, lay_out: Callable[[int, int, torch.Tensor], torch.Tensor]) -> None:
        self._lay_out = lay_out
        self._tables: dict[object, torch.Tensor] = {}

    def __call__(self, q_size: int, k_size: int, table: torch.Tensor) -> torch.Tensor:
        size = (q_size, k_size)
        return kept(self._tables, table, size, lambda rows, size: self._lay_out(*size, rows))


def kept(
    store: dict[object, torch.Tensor],
    table: torch.Tensor,
    size: tuple[int, int],
    resize: Callable[[torch.Tensor, tuple[int, int]], torch.Tensor],
) -> torch.Tensor:
    """What `resize` makes of `table` for `size`, from `store` where it was made before.

    New values in `table` make a new one; while it is being trained it is made anew each time.
    """
    if table.requires_grad:
        return resize(table, size)
    key = (size, *identity(table))
    if key not in store:
        store[key] = resize(table.cpu(), size).to(table.device)
    return store[key]


def identity(table: torch.Tensor) -> tuple[object, ...]:
    """What changes when a tensor is given new values or is moved."""
    version = 0 if table.is_inference() else table._version  # inference mode counts no versions
    return (table.dtype, table.device, table.data_ptr(), version)


def _resize_grid(table: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`[1, h, w, C]` to `[1, H, W, C]`: bicubic, antialiased, in float32, as the model was made."""
    if table.shape[1:3] == size:
        return table
    planes = rearrange(table.float(), "n h w c -> n c h w")
    resized = nn.functional.interpolate(planes, size, mode="bicubic", antialias=True)
    return rearrange(resized, "n c h w -> n h w c").to(table.dtype)


def _resize_class_and_grid(table: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`[1 + h*w, C]` (class token first, h = w) to `[1, 1 + H*W, C]`."""
    side = round((len(table) - 1) ** 0.5)
    grid = _resize_grid(rearrange(table[1:], "(h w) c -> 1 h w c", h=side), size)
    return torch.cat([table[None, :1], rearrange(grid, "1 h w c -> 1 (h w) c")], dim=1)
