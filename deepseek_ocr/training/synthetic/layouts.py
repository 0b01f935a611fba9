"""Where things go on a synthetic page: text lines, paragraphs, tables and charts, drawn with their
boxes known to the pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape
from itertools import accumulate
from random import Random

from PIL import Image, ImageDraw, ImageFont

from deepseek_ocr.training.synthetic import fonts, phrases
from deepseek_ocr.training.synthetic.recipes import Recipe

PixelBox = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

Glyph = tuple[str, float, float]
"""A character and the middle of where it stands, px."""


@dataclass(frozen=True)
class Block:
    """A region of a page: label, box in pixels, the text in it, and the lines as they lie."""

    label: str
    box: PixelBox
    text: str
    lines: tuple[tuple[str, PixelBox], ...] = ()


class Canvas:
    """A page being filled from top to bottom; `top` is where the next block may begin, `glyphs`
    what was drawn so far, line by line."""

    def __init__(self, size: tuple[int, int], ink: int, ground: int, margin: int) -> None:
        self.image = Image.new("L", size, ground)
        self.draw = ImageDraw.Draw(self.image)
        self.ink = ink
        self.margin = margin
        self.top = margin
        self.glyphs: list[tuple[Glyph, ...]] = []

    @property
    def right(self) -> int:
        return self.image.width - self.margin

    @property
    def bottom(self) -> int:
        return self.image.height - self.margin

    def text(self, x: float, top: float, text: str, font: ImageFont.FreeTypeFont) -> PixelBox:
        """Draw one line whose tallest letters begin at `top`; its box, tall letters to tails."""
        _, above, _, below = font.getbbox("Hg", anchor="ls")
        baseline = top - above
        self.draw.text((x, baseline), text, fill=self.ink, font=font, anchor="ls")
        start, _, end, _ = font.getbbox(text, anchor="ls")
        widths = [font.getlength(character) for character in text]
        ends = list(accumulate(widths, initial=x))
        middle = (top + baseline) / 2
        spans = zip(text, widths, ends[1:], strict=True)
        self.glyphs.append(tuple((sign, end - width / 2, middle) for sign, width, end in spans))
        return (x + start, top, x + end, baseline + below)

    def line(self, x: int, text: str, font: ImageFont.FreeTypeFont) -> list[Block]:
        """What of `text` fits from `x` to the margin, drawn as a block; none if nothing does."""
        text = fitting(font, text, self.right - x)
        if not text:
            return []
        box = self.text(x, self.top, text, font)
        return [Block("text", box, text, ((text, box),))]


def height_of(font: ImageFont.FreeTypeFont) -> int:
    """Pixels from the top of a tall letter to the end of a tail."""
    _, above, _, below = font.getbbox("Hg", anchor="ls")
    return int(below - above)


def fitting(font: ImageFont.FreeTypeFont, text: str, width: int) -> str:
    """As much of the beginning of `text` as is at most `width` px wide."""
    while text and font.getlength(text) > width:
        space = text.rfind(" ")
        text = text[: space if space > 0 else len(text) - 1].rstrip()
    return text


def lines(canvas: Canvas, rng: Random, face: fonts.Typeface, recipe: Recipe) -> list[Block]:
    """Separate lines, each a block, one below the other with gaps; sizes differ now and then."""
    blocks: list[Block] = []
    count = rng.randint(1, recipe.most_lines)
    size = rng.randint(recipe.smallest, recipe.largest)
    x = rng.randint(canvas.margin, max(canvas.margin, canvas.image.width // 3))
    canvas.top = rng.randint(canvas.margin, max(canvas.margin, canvas.image.height // 3))
    same = rng.random() < 0.6
    while len(blocks) < count:
        if not same:
            size = rng.randint(recipe.smallest, recipe.largest)
            x = rng.randint(canvas.margin, max(canvas.margin, canvas.image.width // 2))
        font = fonts.sized(face, size)
        if canvas.top + height_of(font) > canvas.bottom:
            break
        text = phrases.line(rng, recipe.longest, recipe.random_share)
        blocks += canvas.line(x, text, font)
        canvas.top += int(height_of(font) * rng.uniform(1.15, 2.2)) + 2
    return blocks


def full(canvas: Canvas, rng: Random, face: fonts.Typeface, recipe: Recipe) -> list[Block]:
    """Lines from edge to edge and from top to bottom: as much to read as fits."""
    blocks: list[Block] = []
    size = rng.randint(recipe.smallest, recipe.largest)
    same = rng.random() < 0.6
    while True:
        if not same:
            size = rng.randint(recipe.smallest, recipe.largest)
        font = fonts.sized(face, size)
        if canvas.top + height_of(font) > canvas.bottom:
            return blocks
        x = canvas.margin + rng.randint(0, size)
        words = " ".join(phrases.line(rng, recipe.longest, recipe.random_share) for _ in range(2))
        blocks += canvas.line(x, words, font)
        canvas.top += int(height_of(font) * rng.uniform(1.1, 1.5)) + 1


def paragraph(
    canvas: Canvas, font: ImageFont.FreeTypeFont, rng: Random, recipe: Recipe, most: int, label: str
) -> Block | None:
    """Up to `most` lines set close together; None if not one fits."""
    placed: list[tuple[str, PixelBox]] = []
    step = int(height_of(font) * rng.uniform(1.12, 1.35)) + 1
    for _ in range(most):
        if canvas.top + height_of(font) > canvas.bottom:
            break
        text = phrases.line(rng, recipe.longest, recipe.random_share)
        text = fitting(font, text, canvas.right - canvas.margin)
        if text:
            placed.append((text, canvas.text(canvas.margin, canvas.top, text, font)))
            canvas.top += step
    if not placed:
        return None
    text = " ".join(text for text, _ in placed)
    marked = f"# {text}" if label == "title" else text
    return Block(label, around([box for _, box in placed]), marked, tuple(placed))


def article(canvas: Canvas, rng: Random, face: fonts.Typeface, recipe: Recipe) -> list[Block]:
    """A title and one to three paragraphs."""
    blocks: list[Block | None] = []
    body = rng.randint(recipe.smallest, (recipe.smallest + recipe.largest) // 2)
    title = fonts.sized(face, min(int(body * rng.uniform(1.4, 1.8)), 2 * recipe.largest))
    short = replace(recipe, longest=max(4, int(recipe.longest * 0.6)), random_share=0.0)
    if rng.random() < 0.7:
        blocks.append(paragraph(canvas, title, rng, short, 1, "title"))
        canvas.top += body // 2
    font = fonts.sized(face, body)
    for _ in range(rng.randint(1, 3)):
        blocks.append(paragraph(canvas, font, rng, recipe, rng.randint(1, 4), "text"))
        canvas.top += int(body * rng.uniform(0.6, 1.2))
    return [block for block in blocks if block]


def table(canvas: Canvas, rng: Random, face: fonts.Typeface, recipe: Recipe) -> list[Block]:
    """A ruled table of two or three columns and two to four rows."""
    font = fonts.sized(face, rng.randint(recipe.smallest, (recipe.smallest + recipe.largest) // 2))
    columns, rows = rng.randint(2, 3), rng.randint(2, 4)
    width = (canvas.right - canvas.margin) // columns
    height = int(height_of(font) * rng.uniform(1.5, 2.0))
    left, top = canvas.margin, canvas.top
    texts: list[list[str]] = []
    placed: list[tuple[str, PixelBox]] = []
    for row in range(rows):
        if canvas.top + height > canvas.bottom:
            break
        cells = []
        for column in range(columns):
            text = phrases.number(rng) if row and column else phrases.word(rng).strip(".,:;!?")
            text = fitting(font, text, width - 12)
            x, y = left + column * width + 6, top + row * height + (height - height_of(font)) / 2
            if text:
                placed.append((text, canvas.text(x, y, text, font)))
            cells.append(text)
        texts.append(cells)
        canvas.top += height
    if not texts:
        return []
    box = (left, top, left + columns * width, top + len(texts) * height)
    for edge in range(columns + 1):
        canvas.draw.line((left + edge * width, box[1], left + edge * width, box[3]), canvas.ink, 2)
    for edge in range(len(texts) + 1):
        canvas.draw.line((left, top + edge * height, box[2], top + edge * height), canvas.ink, 2)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(text, quote=False)}</td>" for text in cells) + "</tr>"
        for cells in texts
    )
    canvas.top += height // 2
    return [Block("table", box, f"<table>{body}</table>", tuple(placed))]


def chart(
    canvas: Canvas, rng: Random, face: fonts.Typeface, recipe: Recipe
) -> tuple[list[Block], str | None]:
    """A bar chart of two to four bars with a name below and a value above each, and its content
    as a Markdown table; nothing if there is no room."""
    font = fonts.sized(face, rng.randint(recipe.smallest, (recipe.smallest + recipe.largest) // 2))
    count = rng.randint(2, 4)
    tall = height_of(font)
    left, top, right, bottom = canvas.margin, canvas.top, canvas.right, canvas.bottom
    # A name and a value with 14 px about them, and something left for the bars.
    if bottom - top < max(3 * tall, 2 * tall + 14):
        return [], None
    width = (right - left) // count
    words = phrases.english_words()
    bars = [(fitting(font, rng.choice(words), width - 6), rng.randint(5, 99)) for _ in range(count)]
    # A value begins where its bar does, a fifth into the column.
    if not all(name and font.getlength(str(value)) <= width - width // 5 for name, value in bars):
        return [], None
    placed: list[tuple[str, PixelBox]] = []
    for place, (name, value) in enumerate(bars):
        x = left + place * width
        foot = bottom - tall - 6
        head = foot - (foot - top - tall - 8) * value / 100
        canvas.draw.rectangle(
            (x + width // 5, head, x + width * 4 // 5, foot), fill=(canvas.ink + 128) // 2
        )
        text_at = (x + width // 5, head - tall - 4)
        placed.append((str(value), canvas.text(*text_at, str(value), font)))
        placed.append((name, canvas.text(x + 4, foot + 4, name, font)))
    canvas.top = bottom
    rows = "\n".join(f"| {name} | {value} |" for name, value in bars)
    return [Block("image", (left, top, right, bottom), "", tuple(placed))], rows


def around(boxes: list[PixelBox]) -> PixelBox:
    """The smallest box that holds all of `boxes`."""
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    return (min(lefts), min(tops), max(rights), max(bottoms))
