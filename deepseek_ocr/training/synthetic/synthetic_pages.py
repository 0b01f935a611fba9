"""Synthetic pages with exact annotations.

Page `i` of seed `s` is the same picture with the same annotation on every machine that has the
same fonts, however many processes make it.
"""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from deepseek_ocr.errors import SettingsError
from deepseek_ocr.files import write_bytes
from deepseek_ocr.training.data.annotations import (
    Annotation,
    LabelledRegion,
    Reference,
    annotation_to_json,
)
from deepseek_ocr.training.synthetic import fonts, layouts
from deepseek_ocr.training.synthetic.layouts import Block, Canvas, Glyph, PixelBox
from deepseek_ocr.training.synthetic.recipes import FontSet, Recipe


@dataclass(frozen=True)
class SynthPage:
    """A page and what is on it; `glyphs` holds the characters of every line of its text, in the
    same order."""

    image: Image.Image
    annotation: Annotation
    glyphs: tuple[tuple[Glyph, ...], ...] = ()


_ATTEMPTS = 200
"""A drawn page may have room for no text; of those that people ask for, one in some dozens."""


def make_page(recipe: Recipe, seed: int | str) -> SynthPage:
    """The page that `seed` stands for. Raises `SettingsError` if no text fits."""
    rng = Random(seed)
    for _ in range(_ATTEMPTS):
        page = _attempt(recipe, rng)
        if page is not None:
            return page
    raise SettingsError(
        f"No text of {recipe.smallest} to {recipe.largest} px fits a page of {recipe.size[0]} x "
        f"{recipe.size[1]} px; choose smaller print or a larger page."
    )


def _attempt(recipe: Recipe, rng: Random) -> SynthPage | None:
    ground = rng.randint(200, 255)
    ink = rng.randint(0, 90)
    if rng.random() < recipe.dark:
        ground, ink = ink, ground
    margin = max(4, min(recipe.size) // rng.randint(16, 40))
    canvas = Canvas(recipe.size, ink, ground, margin)
    families = _families(recipe.font_set)
    face = rng.choice(families[rng.choice(list(families))])  # every family as likely as any other
    kind = rng.choices(list(recipe.kinds), list(recipe.kinds.values()))[0]
    blocks, figure = _filled(canvas, rng, face, kind, recipe)
    if kind != "blank" and not any(block.text or block.lines for block in blocks):
        return None
    image, blocks, angle = _with_effects(canvas.image, blocks, rng, recipe.effects, ground)
    glyphs = tuple(
        tuple((character, *_turned_point(x, y, angle, image.size)) for character, x, y in line)
        for line in canvas.glyphs
    )
    return SynthPage(_tinted(image, rng), _annotation(blocks, image.size, rng, figure), glyphs)


@cache
def _families(which: FontSet) -> dict[str, list[fonts.Typeface]]:
    families: dict[str, list[fonts.Typeface]] = {}
    for face in fonts.typefaces(which):
        families.setdefault(face.family, []).append(face)
    return families


def _filled(
    canvas: Canvas, rng: Random, face: fonts.Typeface, kind: str, recipe: Recipe
) -> tuple[list[Block], str | None]:
    plain = {"lines": layouts.lines, "full": layouts.full, "article": layouts.article}
    if kind in plain:
        return plain[kind](canvas, rng, face, recipe), None
    if kind == "blank":
        return [], None
    heading = None
    if rng.random() < 0.5:
        font = fonts.sized(face, rng.randint(recipe.smallest, recipe.largest))
        short = replace(recipe, random_share=0.0)
        heading = layouts.paragraph(canvas, font, rng, short, 1, "title")
        canvas.top += 8
    before = [heading] if heading else []
    if kind == "table":
        return [*before, *layouts.table(canvas, rng, face, recipe)], None
    blocks, figure = layouts.chart(canvas, rng, face, recipe)
    return [*before, *blocks], figure


# --- how a page suffers on its way to the scanner -------------------------------------------------


def _with_effects(
    image: Image.Image, blocks: list[Block], rng: Random, share: float, ground: int
) -> tuple[Image.Image, list[Block], float]:
    """`image` with noise, blur, a small turn and compression, each on its own `share` of pages;
    and by how many degrees it was turned."""
    angle = 0.0
    if rng.random() < share:
        angle = _angle_that_fits(rng.uniform(-2, 2), blocks, image.size)
        image = image.rotate(angle, Image.Resampling.BICUBIC, fillcolor=ground)
        blocks = [_turned(block, angle, image.size) for block in blocks]
    if rng.random() < share:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    if rng.random() < share:
        generator = np.random.default_rng(rng.randrange(2**32))
        noise = generator.normal(0, rng.uniform(2, 10), image.size[::-1])
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if rng.random() < share:
        packed = BytesIO()
        image.save(packed, "JPEG", quality=rng.randint(35, 90))
        image = Image.open(packed)
        image.load()
    return image, blocks, angle


def _angle_that_fits(angle: float, blocks: list[Block], size: tuple[int, int]) -> float:
    """As much of a turn by `angle` degrees as leaves all print on the page: long pages take less.
    Halved and not drawn again, so that what is drawn after it stays the same."""
    boxes = [box for block in blocks for box in (block.box, *(box for _, box in block.lines))]
    for _ in range(8):
        turned = [_turned_box(box, angle, size) for box in boxes]
        if all(min(x, y) >= 0 and x2 <= size[0] and y2 <= size[1] for x, y, x2, y2 in turned):
            return angle
        angle /= 2
    return 0.0


def _turned(block: Block, angle: float, size: tuple[int, int]) -> Block:
    turned = [(text, _turned_box(box, angle, size)) for text, box in block.lines]
    return replace(block, box=_turned_box(block.box, angle, size), lines=tuple(turned))


def _turned_box(box: PixelBox, angle: float, size: tuple[int, int]) -> PixelBox:
    """The upright box around `box` turned by `angle` degrees about the middle of the page."""
    corners = [_turned_point(x, y, angle, size) for x in box[::2] for y in box[1::2]]
    xs, ys = zip(*corners, strict=True)
    return (min(xs), min(ys), max(xs), max(ys))


def _turned_point(x: float, y: float, angle: float, size: tuple[int, int]) -> tuple[float, float]:
    """Where a point of the page is after a turn by `angle` degrees about its middle."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    right, down = x - size[0] / 2, y - size[1] / 2
    return (size[0] / 2 + right * cosine + down * sine, size[1] / 2 - right * sine + down * cosine)


def _tinted(image: Image.Image, rng: Random) -> Image.Image:
    """In colour: now and then with a tint, mostly grey."""
    if rng.random() > 0.2:
        return image.convert("RGB")
    scales = [rng.uniform(0.85, 1.0) for _ in range(3)]
    return Image.merge("RGB", [image.point([int(v * s) for v in range(256)]) for s in scales])


# --- annotations ----------------------------------------------------------------------------------


def _annotation(
    blocks: list[Block], size: tuple[int, int], rng: Random, figure: str | None
) -> Annotation:
    scaled = partial(to_thousandths, size=size)
    regions = tuple(LabelledRegion(one.label, (scaled(one.box),), one.text) for one in blocks)
    printed = [(text, box) for block in blocks for text, box in block.lines]
    once = [(text, box) for text, box in printed if [t for t, _ in printed].count(text) == 1]
    asked = rng.sample(once, 1) if once else []
    return Annotation(
        text="\n".join(text for text, _ in printed),
        markdown="\n\n".join(block.text for block in blocks if block.text),
        regions=regions,
        reference=tuple(Reference(text, (scaled(box),)) for text, box in asked),
        figure=figure,
    )


def to_thousandths(box: PixelBox, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in pixels as integers 0-999 of the page."""
    sides = (*size, *size)
    scaled = [round(v / side * 999) for v, side in zip(box, sides, strict=True)]
    left, top, right, bottom = (min(max(v, 0), 999) for v in scaled)
    return (left, top, right, bottom)


# --- files ----------------------------------------------------------------------------------------


def write_pages(
    folder: Path, recipe: Recipe, numbers: Sequence[int], seed: int, processes: int
) -> Iterator[Path]:
    """Write page after page into `folder` as `000001.png` and `.json`; yields each picture. Raises
    `SettingsError` if no text fits, `InputError` if there are no fonts, `FileWriteError` if a page
    cannot be written, and `BrokenProcessPool` if one of several processes died."""
    write = partial(_write_page, folder, recipe, seed)
    if processes == 1:
        yield from map(write, numbers)
        return
    # Ctrl-C reaches every process: this one tells of it, the others finish what they have begun.
    with ProcessPoolExecutor(
        processes, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        yield from pool.map(write, numbers, chunksize=16)


def _write_page(folder: Path, recipe: Recipe, seed: int, number: int) -> Path:
    page = make_page(recipe, page_seed(seed, number))
    path = folder / f"{number:06d}.png"
    packed = BytesIO()
    page.image.save(packed, "PNG")
    # The annotation last: a picture without one is an unfinished page that the next run redoes.
    write_bytes(path, packed.getvalue())
    annotation = json.dumps(annotation_to_json(page.annotation), ensure_ascii=False, indent=1)
    write_bytes(path.with_suffix(".json"), annotation.encode("utf-8"))
    return path


def page_seed(seed: int, number: int) -> str:
    """The seed of page `number` of a set."""
    return f"{seed}:{number}"
