"""Figures: the regions labelled `image`, cut out of the page at its full resolution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from deepseek_ocr.files import atomic_write
from deepseek_ocr.grounding import parser
from deepseek_ocr.grounding.parser import Region

FOLDER = "images"
"""Where the figures of a document lie, below the folder of its outputs."""

MOST_FIGURES = 200
"""Files made of one page; boxes beyond get none."""

MOST_AREA = 8.0
"""Area of one page's figures in pages; a page of many overlapping figures is a hostile one."""

_QUALITY = 92


def figure_crops(image: Image.Image, regions: Iterable[Region]) -> Iterator[Image.Image | None]:
    """The figures of a page, one a box and in order, cut from the picture `image` (any size).

    None keeps the place of a box that holds no pixel, and of every box beyond `MOST_FIGURES` or
    `MOST_AREA`. One crop is held at a time.
    """
    made, area = 0, 0.0
    for box in (box for region in regions if region.is_figure for box in region.boxes):
        left, top, right, bottom = parser.to_pixels(box, *image.size)
        size = (right - left) * (bottom - top) / max(image.width * image.height, 1)
        if size <= 0 or made >= MOST_FIGURES or area + size > MOST_AREA:
            yield None
            continue
        made, area = made + 1, area + size
        yield image.crop((left, top, right, bottom))


def save_figures(
    image: Image.Image, regions: Iterable[Region], number: int, folder: Path
) -> tuple[str, ...]:
    """Write the figures of page `number` (from 1) below `folder`/images; gives their names. Named
    as the official script does, `<page>_<n>.jpg` from 0; "" where a box has no figure."""
    names = []
    for at, crop in enumerate(figure_crops(image, regions)):
        names.append("" if crop is None else f"{number - 1}_{at}.jpg")
        if crop is not None:
            (folder / FOLDER).mkdir(parents=True, exist_ok=True)
            with atomic_write(folder / FOLDER / names[at]) as stream:
                crop.convert("RGB").save(stream, "JPEG", quality=_QUALITY)
    return tuple(names)
