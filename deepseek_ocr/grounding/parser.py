"""Read the regions out of grounded text, and clean the text into Markdown.

The text is data from outside: a strict grammar reads it in time linear in its length, nothing
evaluates it, and whatever does not fit the grammar stays as text. Coordinates are integers 0 to
999 of the page's width and height.

    <|ref|>label<|/ref|><|det|>[[x1, y1, x2, y2], …]<|/det|> text of the region
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

SCALE = 999
"""Largest coordinate: pixel = value / 999 * side."""

FIGURE_LABEL = "image"
"""Label of regions that are cropped out as pictures."""

LABELS = frozenset({
    "title", "sub_title", "text", "list", "table", "table_caption", "table_footnote", "image",
    "image_caption", "image_footnote", "figure", "figure_caption", "chart", "formula", "equation",
    "code", "algorithm", "caption", "footnote", "header", "footer", "page_header", "page_footer",
    "page_number", "reference", "references",
})  # fmt: skip
"""What the model calls parts of a page. Seen in its output: title, sub_title, text, table, image,
and captions of these; the others are words of the data sets for layouts. What else stands between
the tags is text of the page, or what was to be located."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""

_TAG = re.compile(r"<\|(/?)(ref|det)\|>")
_CUT_BOXES = re.compile(r"<\|det\|>[\[\]0-9,\s-]*")
_CUT_TAG = re.compile(r"<\|(?:/?(?:r(?:ef?|ef\|)?|d(?:et?|et\|)?)?)?\Z")
_CUT_INNER_TAG = re.compile(rf"<\Z|{_CUT_TAG.pattern}")
_REFERENCE = re.compile(r"<\|ref\|>(.*?)<\|/ref\|>", re.DOTALL)
_NUMBER = r"-?[0-9]{1,9}"
_BOX = rf"\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\]"
_ONE_BOX = re.compile(_BOX)
_BOXES = re.compile(rf"\[\s*{_BOX}(?:\s*,\s*{_BOX})*\s*\]")


@dataclass(frozen=True)
class Confidence:
    """How sure the model was over some tokens: geometric mean and lowest probability, 0 to 1."""

    mean: float
    lowest: float


@dataclass(frozen=True)
class Region:
    """One labelled part of a page.

    - `label`: what the model calls it (title, text, table, image, …), or what was to be located
    - `boxes`: in 0–999 of the page, corners ordered and clamped
    - `text`: what stands in it, stripped, without tags and without one that the answer ends in
    - `start`, `text_start`, `end`: characters in the whole text: tag, text, end of text
    - `confidence`: over the tokens of its text, or of its tag where it has no text
    """

    label: str
    boxes: tuple[Box, ...]
    text: str
    start: int
    text_start: int
    end: int
    confidence: Confidence | None = None

    @property
    def is_figure(self) -> bool:
        """True where the region is a picture to be cropped from the page."""
        return self.label == FIGURE_LABEL

    @property
    def label_is_text(self) -> bool:
        """True if the label was read: a line that came with its box, or what was located."""
        return self.label not in LABELS

    @property
    def content(self) -> str:
        """What was read in the region, wherever the model wrote it."""
        named = self.label if self.label_is_text else ""
        return "\n".join(part for part in (named, self.text) if part)


def parse(text: str) -> list[Region]:
    """The regions of `text`, in its order. Never raises; malformed spans yield no region."""
    tags = list(_TAG.finditer(text))
    heads: list[tuple[int, int, str, tuple[Box, ...]]] = []
    at = 0
    while at + 3 < len(tags):
        ref, ref_end, det, det_end = tags[at : at + 4]
        shape = [tag[0] for tag in (ref, ref_end, det, det_end)]
        boxes = None
        if shape == ["<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"] and ref_end.end() == det.start():
            boxes = _parse_boxes(text[det.end() : det_end.start()])
        if boxes is None:
            at += 1
            continue
        label = text[ref.end() : ref_end.start()].strip()
        heads.append((ref.start(), det_end.end(), label, boxes))
        at += 4
    ends = [*(head[0] for head in heads[1:]), len(text)] if heads else []
    return [
        Region(label, boxes, _region_text(text, text_start, end), start, text_start, end)
        for (start, text_start, label, boxes), end in zip(heads, ends, strict=True)
    ]


def _region_text(text: str, start: int, end: int) -> str:
    whole = text[start:end]
    return (without_cut_tag(whole)[0] if end == len(text) else whole).strip()


def without_cut_tag(text: str) -> tuple[str, str]:
    """`text` without the tag in the middle of which it ends, and the text that the tag named."""
    begin = text.rfind("<|ref|>")
    if begin < 0 or "\n\n" in text[begin:]:
        return _CUT_TAG.sub("", text), ""
    label, closed, rest = text[begin + len("<|ref|>") :].partition("<|/ref|>")
    rest = _CUT_INNER_TAG.sub("", rest)
    if closed and rest and not _CUT_BOXES.fullmatch(rest):
        return _CUT_TAG.sub("", text), ""  # text with a damaged tag, maybe another that was cut
    label = (label if closed else _CUT_INNER_TAG.sub("", label)).strip()
    is_label = any(known.startswith(label) for known in LABELS)
    return text[:begin], "" if is_label else label


def _parse_boxes(text: str) -> tuple[Box, ...] | None:
    """Boxes of `[[x1, y1, x2, y2], …]`, ordered and clamped; None where the text is not that."""
    text = text.strip()
    if not _BOXES.fullmatch(text):
        return None
    return tuple(_tidy(*map(int, found.groups())) for found in _ONE_BOX.finditer(text))


def _tidy(x1: int, y1: int, x2: int, y2: int) -> Box:
    x1, y1, x2, y2 = (min(max(value, 0), SCALE) for value in (x1, y1, x2, y2))
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def reference_in(prompt: str) -> str | None:
    """What `prompt` asks to locate; None if nothing."""
    found = _REFERENCE.search(prompt)
    return None if found is None else found[1].strip()


def to_pixels(box: Box, width: int, height: int) -> Box:
    """`box` in 0–999 as whole pixels of a page `width` x `height` px."""
    x1, y1, x2, y2 = box
    return (
        round(x1 / SCALE * width),
        round(y1 / SCALE * height),
        round(x2 / SCALE * width),
        round(y2 / SCALE * height),
    )


def figure_name(number: int) -> str:
    """Where the official script puts the `number`-th figure (from 0) of a single image."""
    return f"images/{number}.jpg"


def without_tags(text: str, name_of: Callable[[int], str]) -> str:
    """`text` without its tags, as the official script cleans it.

    Figures become links named by `name_of` (from 0, one a box); `\\coloneqq` and `\\eqqcolon` are
    rewritten. Never raises; malformed spans stay as they are.
    """
    parts: list[str] = []
    at = figures = 0
    for region in parse(text):
        parts.append(text[at : region.start])
        if region.is_figure:
            for _ in region.boxes:
                parts.append(f"![]({name_of(figures)})\n")
                figures += 1
        at = region.text_start
    parts.append(text[at:])
    return "".join(parts).replace("\\coloneqq", ":=").replace("\\eqqcolon", "=:")


def to_markdown(text: str) -> str:
    """`text` `without_tags`, with no more than one blank line in a row."""
    return re.sub(r"\n{3,}", "\n\n", without_tags(text, figure_name)).strip("\n")
