"""From a picture to the square views that the network sees.

Everything here must match the official preprocessing to the pixel, so resizing is Pillow's
and the arithmetic is plain; `tests/golden/preprocess.json` holds what the official code gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange
from PIL import Image

from deepseek_ocr.settings import CELL, CropSettings

if TYPE_CHECKING:
    import torch

Size = tuple[int, int]
"""Width and height, px."""

Pixels = np.ndarray[Any, Any]

PADDING = (127, 127, 127)
"""Colour around a padded view: the official mean 0.5 in 8 bits."""

LARGEST_STRETCHED = 640
"""Without tiles, views up to this side in pixels stretch the page, larger ones pad it: a fixed
number in the official code."""

MIN_TILES, MAX_TILES = 2, 9
"""Fewest and most tiles of one page in the official code."""


@dataclass(frozen=True)
class Views:
    """What the network sees of one page, normalised to [-1, 1], float32.

    - `global_view`: `[3, S, S]`
    - `tiles`: `[n, 3, T, T]`, row by row; n is 0 where the page has none
    - `grid`: tiles as (columns, rows); (1, 1) where there are none
    """

    global_view: torch.Tensor
    tiles: torch.Tensor
    grid: tuple[int, int]

    @property
    def token_count(self) -> int:
        """Vision tokens these views become: tiles, global view, separator."""
        cells = self.global_view.shape[-1] // CELL
        count = cells * (cells + 1) + 1
        if len(self.tiles):
            columns, rows = self.grid
            cells = self.tiles.shape[-1] // CELL
            count += (columns * cells + 1) * rows * cells
        return count


def _resize(image: Image.Image, sizes: Sequence[Size]) -> list[Pixels]:
    """An RGB picture resized to each of `sizes`, bicubic: `[height, width, 3]`, 8 bits."""
    image.load()
    with ThreadPoolExecutor(len(sizes)) as pool:  # Pillow lets other threads run while it resizes
        return list(pool.map(lambda size: np.asarray(image.resize(size)), sizes))


def make_views(image: Image.Image, crop: CropSettings) -> Views:
    """Cut an RGB page into its views as the official code does (see `CropSettings`)."""
    import torch  # late, so that a process that only opens pictures stays small

    width, height = image.size
    if crop.crop_mode:
        grid, tiled = (1, 1), []
        if max(image.size) > crop.image_size:
            grid = choose_grid(width, height, crop.image_size)
            tiled = [(grid[0] * crop.image_size, grid[1] * crop.image_size)]
        fitted, *page = _resize(image, [_fit(width, height, crop.base_size), *tiled])
        views = _normalise(_pad(fitted, crop.base_size), (1, 1))
        tiles = torch.empty(0, 3, crop.image_size, crop.image_size)
        return Views(views[0], _normalise(page[0], grid) if page else tiles, grid)
    side = crop.image_size
    stretched = side <= LARGEST_STRETCHED
    square = _resize(image, [(side, side) if stretched else _fit(width, height, side)])[0]
    views = _normalise(_pad(square, side), (1, 1))
    return Views(views[0], torch.empty(0, 3, side, side), (1, 1))


def choose_grid(width: int, height: int, side: int) -> tuple[int, int]:
    """Crop grid (columns, rows) of 2 to 9 tiles whose shape is closest to the page's. On ties the
    larger grid wins if the page has more than half as many pixels as its tiles."""
    grids = [
        (columns, rows)
        for columns in range(1, MAX_TILES + 1)
        for rows in range(1, MAX_TILES + 1)
        if MIN_TILES <= columns * rows <= MAX_TILES
    ]
    best, best_difference = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(width / height - columns / rows)
        roomy = width * height > 0.5 * side * side * columns * rows
        if difference < best_difference or (difference == best_difference and roomy):
            best, best_difference = (columns, rows), difference
    return best


def _fit(width: int, height: int, side: int) -> Size:
    """The largest size of this shape within a square of `side` px; one pixel of a page so thin
    that it would be scaled to nothing."""
    if width > height:
        return side, max(1, round(height / width * side))
    return max(1, round(width / height * side)), side


def _pad(pixels: Pixels, side: int) -> Pixels:
    """A page fitted into a square of `side` px, in its middle, with grey around it."""
    height, width, _ = pixels.shape
    if (width, height) == (side, side):
        return pixels
    padded = np.full((side, side, 3), PADDING, np.uint8)
    left, top = round((side - width) * 0.5), round((side - height) * 0.5)
    padded[top : top + height, left : left + width] = pixels
    return padded


def _normalise(pixels: Pixels, grid: tuple[int, int]) -> torch.Tensor:
    """RGB pixels cut into `grid` (columns, rows), row by row: `[n, 3, H, W]` float32 in [-1, 1]
    (mean 0.5, deviation 0.5)."""
    import torch

    columns, rows = grid
    cut = "(rows h) (columns w) c -> (rows columns) c h w"
    planes = rearrange(torch.tensor(pixels), cut, columns=columns, rows=rows).contiguous()
    return planes.float().div_(255).sub_(0.5).div_(0.5)
