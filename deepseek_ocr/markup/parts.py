"""A page's text → its parts: each region, and what stands outside of all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from deepseek_ocr import grounding
from deepseek_ocr.grounding import LABELS, Region
from deepseek_ocr.markup.blocks import Block, Figure, Location, Paragraph
from deepseek_ocr.markup.html_tables import open_table_in
from deepseek_ocr.markup.reader import blocks_of

_CUT_BOXES = re.compile(r"<\|det\|>[\[\]0-9,\s-]*")
_CUT_TAG = re.compile(r"<\|(?:/?(?:r(?:ef?|ef\|)?|d(?:et?|et\|)?)?)?\Z")
_CUT_INNER_TAG = re.compile(rf"<\Z|{_CUT_TAG.pattern}")


@dataclass(frozen=True)
class Part:
    """What a region holds; `region` is None for text outside of all."""

    region: Region | None
    blocks: tuple[Block, ...]


def page_parts(
    text: str, regions: Sequence[Region] | None = None, reference: str | None = None
) -> list[Part]:
    """The parts of a page's `text`, in its order.

    `regions` are those of `grounding.parse(text)`, if they are known. `reference` is what the
    prompt asked to locate: then each region is a place where it was found. An answer that was cut
    in the middle of a tag ends before it; what it had named by then stays.
    """
    regions = grounding.parse(text) if regions is None else regions
    end = regions[0].start if regions else len(text)
    parts = [*_outside(text[:end], is_last=not regions)]
    figures = 0
    for region in regions:
        rest, names = region.text, list[str]()
        if region is regions[-1]:
            rest, names = without_cut_tag(rest)
        blocks = _region_blocks(region, rest, figures, reference)
        figures += len(region.boxes) if region.is_figure else 0
        parts.append(Part(region, blocks))
        parts += [Part(None, blocks_of(name)) for name in names]
    return parts


def blocks_in(parts: Iterable[Part]) -> Iterator[Block]:
    """The blocks of all `parts`."""
    for part in parts:
        yield from part.blocks


def settled(text: str) -> str:
    """The beginning of `text` that is read alike whatever follows; it ends with a block."""
    regions = grounding.parse(text)
    last = regions[-1].text_start if regions else 0
    end = text.find("<|", last)
    end = len(text) if end < 0 else end
    table = open_table_in(text[last:end])
    if table is not None:
        end = last + table
    end = text.rfind("\n\n", last, end)
    if end < 0 or not text[last:end].strip():
        end = regions[-1].start if regions else 0
    return text[:end]


def _outside(text: str, is_last: bool) -> Iterator[Part]:
    names: list[str] = []
    if is_last:
        text, names = without_cut_tag(text)
    for one in (text, *names):
        if blocks := blocks_of(one):
            yield Part(None, blocks)


def _region_blocks(
    region: Region, text: str, figures: int, reference: str | None
) -> tuple[Block, ...]:
    pictures: tuple[Block, ...] = ()
    if region.is_figure:
        pictures = tuple(Figure(figures + nth) for nth in range(len(region.boxes)))
    if reference is not None:
        named = [block for block in blocks_of(region.label, "text") if isinstance(block, Paragraph)]
        places = tuple(Location(block.lines[0], region.boxes) for block in named)
        return (*places, *pictures, *blocks_of(text, "text"))
    if region.names_its_text and not text:
        return blocks_of(region.label, "text")
    return (*pictures, *blocks_of(text, region.label))


def without_cut_tag(text: str) -> tuple[str, list[str]]:
    """`text` without the tag in the middle of which it ends, and the text that the tag named."""
    begin = text.rfind("<|ref|>")
    if begin < 0 or "\n" in text[begin:]:
        return _CUT_TAG.sub("", text), []
    label, closed, rest = text[begin + len("<|ref|>") :].partition("<|/ref|>")
    rest = _CUT_INNER_TAG.sub("", rest)
    if closed and rest and not _CUT_BOXES.fullmatch(rest):
        return text, []  # no tag that was cut, but text with a damaged one
    label = (label if closed else _CUT_INNER_TAG.sub("", label)).strip()
    is_label = any(known.startswith(label) for known in LABELS)
    return text[:begin], [] if is_label else [label]
