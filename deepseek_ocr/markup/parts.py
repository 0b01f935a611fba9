"""A page's text → its parts: each region, and what stands outside of all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from deepseek_ocr.grounding import parser
from deepseek_ocr.grounding.parser import Region, without_cut_tag
from deepseek_ocr.markup.blocks import Block, Figure, Location, Text
from deepseek_ocr.markup.html_tables import open_table_in
from deepseek_ocr.markup.reader import blocks_of


@dataclass(frozen=True)
class PagePart:
    """What a region holds; `region` is None for text outside of all."""

    region: Region | None
    blocks: tuple[Block, ...]


def page_parts(
    text: str, regions: Sequence[Region] | None = None, reference: str | None = None
) -> list[PagePart]:
    """The parts of a page's `text`, in its order.

    `regions` are those of `parser.parse(text)`, if they are known. `reference` is what the
    prompt asked to locate: then each region is a place where it was found. An answer that was cut
    in the middle of a tag ends before it; what it had named by then stays.
    """
    regions = parser.parse(text) if regions is None else regions
    rest, named = without_cut_tag(text[regions[-1].text_start :] if regions else text)
    front = text[: regions[0].start] if regions else rest
    return [*_parts(front, regions, reference), *_outside(named)]


def blocks_in(parts: Iterable[PagePart]) -> Iterator[Block]:
    """The blocks of all `parts`."""
    for part in parts:
        yield from part.blocks


def settled_parts(text: str, reference: str | None = None) -> list[PagePart]:
    """The parts of the beginning of a page that are the same whatever follows `text`."""
    regions = parser.parse(text)
    begin = regions[-1].text_start if regions else 0
    rest = text[begin : _settled_end(text, begin)].strip()
    if not regions:
        return list(_parts(rest, [], reference))
    front, last = text[: regions[0].start], regions[-1]
    known = [*regions[:-1], *([replace(last, text=rest)] if rest else [])]
    return list(_parts(front, known, reference))


def _settled_end(text: str, begin: int) -> int:
    """Where the last block ends that is read alike whatever follows; from `begin` on."""
    end = text.find("<|", begin)
    end = len(text) if end < 0 else end
    table = open_table_in(text[begin:end])
    if table is not None:
        end = begin + table
    return max(text.rfind("\n\n", begin, end), begin)


def _parts(front: str, regions: Sequence[Region], reference: str | None) -> Iterator[PagePart]:
    """The text in `front` of the regions, then each of them."""
    yield from _outside(front)
    figures = 0
    for region in regions:
        yield PagePart(region, _region_blocks(region, figures, reference))
        figures += len(region.boxes) if region.is_figure else 0


def _outside(text: str) -> Iterator[PagePart]:
    if blocks := blocks_of(text):
        yield PagePart(None, blocks)


def _region_blocks(region: Region, figures: int, reference: str | None) -> tuple[Block, ...]:
    """What a region holds: `figures` stand before it, `reference` was to be located."""
    pictures: tuple[Block, ...] = ()
    if region.is_figure:
        pictures = tuple(Figure(figures + nth) for nth in range(len(region.boxes)))
    if reference is not None:
        name = Text(" ".join(region.label.split()))
        return (Location((name,), region.boxes), *pictures, *blocks_of(region.text, "text"))
    if region.label_is_text:
        return blocks_of(region.label, "text") + blocks_of(region.text, "text")
    return (*pictures, *blocks_of(region.text, region.label))
