"""Boxes between the picture that was read, the page as displayed, and PDF user space.

A picture is a page turned clockwise by some quarter turns; u and v are its width and height in
0 to 1, from the top left corner.
"""

from __future__ import annotations

from deepseek_ocr.grounding.parser import SCALE, Box

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom; in PDF user space left, bottom, right, top."""

Matrix = tuple[float, float, float, float, float, float]
"""a, b, c, d, e, f of a PDF transformation: x' = ax + cy + e, y' = bx + dy + f."""


def to_displayed(box: Box, points: tuple[float, float], rotation: int) -> Rectangle:
    """`box` of the picture in points of the page as displayed, from its top left corner. `points`:
    the page's width and height; `rotation`: degrees clockwise from page to picture."""
    width, height = points
    x1, y1, x2, y2 = (value / SCALE for value in box)
    if rotation == 90:
        x1, y1, x2, y2 = y1, 1 - x2, y2, 1 - x1
    elif rotation == 180:
        x1, y1, x2, y2 = 1 - x2, 1 - y2, 1 - x1, 1 - y1
    elif rotation == 270:
        x1, y1, x2, y2 = 1 - y2, x1, 1 - y1, x2
    return x1 * width, y1 * height, x2 * width, y2 * height


def picture_size(crop: Rectangle, turned: int) -> tuple[float, float]:
    """Width and height in points of the picture of `crop` (user space) turned clockwise."""
    left, bottom, right, top = crop
    width, height = right - left, top - bottom
    return (height, width) if turned in (90, 270) else (width, height)


def picture_to_user(crop: Rectangle, turned: int) -> Matrix:
    """From points of the picture (x right, y up, from its bottom left corner) to user space.

    `crop` is the visible part of the PDF page, `turned` the degrees clockwise from it to the
    picture.
    """
    left, bottom, right, top = crop
    return {
        0: (1.0, 0.0, 0.0, 1.0, left, bottom),
        90: (0.0, 1.0, -1.0, 0.0, right, bottom),
        180: (-1.0, 0.0, 0.0, -1.0, right, top),
        270: (0.0, -1.0, 1.0, 0.0, left, top),
    }[turned]
