"""From pixels of any kind, deep grey and see-through ones among them, to 8-bit RGB."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageOps

_BLOCK_PIXELS = 1 << 20
"""Pixels looked at together, so that odd pixel formats cost little memory on top."""


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture the right way up in 8-bit RGB, whatever its pixels are."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        return _deep_grey_to_rgb(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return _flatten(image.convert("RGBA"))
    return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit and floating-point grey to 8 bits (Pillow alone would clip it)."""
    white = _white(image)
    grey = Image.new("L", image.size)
    for top, block in _blocks(image):
        values = np.nan_to_num(block.astype(np.float32), posinf=0.0, neginf=0.0)
        levels = np.clip(values * (255.0 / white), 0, 255).round().astype(np.uint8)
        grey.paste(Image.fromarray(levels), (0, top))
    return grey.convert("RGB")


def _white(image: Image.Image) -> float:
    """The value that stands for white in a deep grey image."""
    if image.mode.startswith("I;16"):
        return 65535.0
    finite = (block[np.isfinite(block)] for _, block in _blocks(image))
    highest = max((float(values.max()) for values in finite if values.size), default=0.0)
    if image.mode == "F" and highest <= 1.0:
        return 1.0
    return 65535.0 if 255 < highest <= 65535 else max(highest, 255.0)


def _blocks(image: Image.Image) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """(first row, pixels) of the image, some rows at a time."""
    rows = max(1, _BLOCK_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        yield top, np.asarray(image.crop((0, top, image.width, bottom)))


def _flatten(image: Image.Image) -> Image.Image:
    """Drop the alpha channel as the official code does, but for dark pages on no ground at all.

    Drawing programs write black text on transparent black; dropping alpha would give a black
    page. Where all see-through pixels hide one dark colour, that colour carries nothing, and if
    what can be seen is dark too, the page is laid on white.
    """
    if not _is_dark_on_nothing(image):
        return image.convert("RGB")
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.getchannel("A"))
    return page


def _is_dark_on_nothing(image: Image.Image) -> bool:
    """True where the see-through pixels are of one dark colour, and the others mostly dark."""
    ground: np.ndarray[Any, Any] | None = None
    dark = seen = 0
    for _, block in _blocks(image):
        hidden = block[..., 3] == 0
        colours = block[hidden]
        if len(colours):
            ground = colours[0] if ground is None else ground
            if ground[:3].max() > 127 or (colours != ground).any():
                return False
        visible = block[~hidden]
        seen += len(visible)
        dark += int((visible[:, :3].max(axis=1) <= 127).sum()) if len(visible) else 0
    return ground is not None and 2 * dark >= seen
