"""Documents whose outputs the tests look at: PDFs with text in known places, and their records."""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pikepdf
import pypdfium2
from pikepdf import Array, Dictionary, Name
from PIL import Image

from deepseek_ocr.engine.results import Counts, Timings
from deepseek_ocr.formats.export import text_of
from deepseek_ocr.formats.records import DocumentRecord, PageRecord, Try
from deepseek_ocr.formats.writing import WriteOptions
from deepseek_ocr.grounding import parser
from deepseek_ocr.grounding.parser import Box, Confidence
from tests.conftest import need

ENGLISH = "The quick brown fox jumps over the lazy dog and runs home before the night falls"
SCRIPTS = {
    "english": ENGLISH,
    "chinese": "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏",
    "japanese": "いろはにほへとちりぬるをわかよたれそつねならむ",
    "korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다",
    "arabic": "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق",
    "hebrew": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם",
    "hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता",
    "thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน",
    "greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι",
    "russian": "Все люди рождаются свободными и равными в своём достоинстве",
    "astral": "𠀋𡈽𡌛𡑮𡢽 😀🎉",
}


@dataclass(frozen=True)
class Block:
    """A region as the model would write it."""

    label: str
    box: Box
    text: str


def grounded(blocks: Sequence[Block]) -> str:
    """What the model writes for `blocks`."""
    return "\n\n".join(
        f"<|ref|>{block.label}<|/ref|><|det|>[{list(block.box)}]<|/det|>\n{block.text}"
        for block in blocks
    )


def record_of(
    number: int, text: str, size: tuple[int, int] = (1000, 1400), **values: object
) -> PageRecord:
    """The record of a page on which `text` was read."""
    fields: dict[str, object] = {
        "finish_reason": "stop",
        "confidence": Confidence(0.98, 0.5),
        "counts": Counts(913, 903, 100, 796, 0.13),
        "timings": Timings(0.1, 0.2, 0.3, 4.0),
        "tries": (Try({"preset": "gundam"}, "stop", 100, 4.6),),
    }
    return PageRecord(
        number,
        *size,
        text=text,
        regions=tuple(parser.parse(text)),
        **{**fields, **values},  # type: ignore[arg-type]
    )


def document_of(
    pages: Sequence[PageRecord], source: Path = Path("scan.pdf"), name: str = "scan"
) -> DocumentRecord:
    """A document of `pages`; a PDF by the look of its source."""
    kind = "pdf" if source.suffix == ".pdf" else "image"
    return DocumentRecord(name, source, kind, pages, {"model": "test", "task": "markdown"})  # type: ignore[arg-type]


def blank(number: int = 1) -> Image.Image:
    """The picture of any page where nothing depends on it."""
    return Image.new("RGB", (200, 280), "white")


def make_pdf(
    path: Path,
    pages: int = 1,
    size: tuple[float, float] = (595, 842),
    rotate: int = 0,
    crop: Sequence[float] | None = None,
    contents: bytes = b"",
    **save: object,
) -> Path:
    """A PDF whose pages draw `contents`, turned and cropped as asked."""
    with pikepdf.new() as pdf:
        for _ in range(pages):
            page = pdf.add_blank_page(page_size=size)
            font = Dictionary(Type=Name.Font, Subtype=Name.Type1, BaseFont=Name.Helvetica)
            page.obj.Resources = Dictionary(Font=Dictionary(F1=font))
            page.obj.Contents = pikepdf.Stream(pdf, contents)
            if rotate:
                page.obj.Rotate = rotate
            if crop is not None:
                page.obj.CropBox = Array(list(crop))
        pdf.save(path, **save)  # type: ignore[arg-type]
    return path


def renderer(
    path: Path, password: str | None = None, scale: float = 2.0
) -> Callable[[int], Image.Image]:
    """Renders the pages of a PDF with the real library."""

    def render(number: int) -> Image.Image:
        with pypdfium2.PdfDocument(path, password=password) as pdf:
            return pdf[number - 1].render(scale=scale).to_pil().convert("RGB")

    return render


Word = tuple[str, float, float, float, float]


def words_of(path: Path, page: int = 1) -> list[Word]:
    """The words `pdftotext` finds on a page: text, left, top, right, bottom in 0-999 as shown."""
    need("pdftotext")
    with pypdfium2.PdfDocument(path) as pdf:
        width, height = pdf[page - 1].get_size()
    done = subprocess.run(
        ["pdftotext", "-bbox", "-cropbox", "-f", str(page), "-l", str(page), path, "-"],
        capture_output=True,
        check=True,
    )
    scale = {"xMin": width, "yMin": height, "xMax": width, "yMax": height}
    found: list[Word] = []
    for word in ElementTree.fromstring(done.stdout).iter("{http://www.w3.org/1999/xhtml}word"):
        x1, y1, x2, y2 = (float(word.attrib[name]) / side * 999 for name, side in scale.items())
        found.append((word.text or "", x1, y1, x2, y2))
    return found


def text_in(path: Path, box: Box, page: int = 1) -> str:
    """The words of a page that lie within a box (0-999, with one to spare), blanks left out."""
    x1, y1, x2, y2 = box
    return "".join(
        word
        for word, left, top, right, bottom in words_of(path, page)
        if x1 - 1 <= left and right <= x2 + 1 and y1 - 1 <= top and bottom <= y2 + 1
    )


TABLE = "<table><tr><td>Item</td><td>Price</td></tr><tr><td>Bread</td><td>2.50</td></tr></table>"
PAGE = grounded(
    [
        Block("title", (50, 50, 900, 100), "# The report"),
        Block("text", (50, 120, 900, 300), "Words and **more** words.\nA second line."),
        Block("image", (100, 320, 500, 600), ""),
        Block("table", (50, 620, 900, 800), TABLE),
        Block("formula", (50, 820, 900, 860), r"\[ a_1 \coloneqq b_2 \]"),
    ]
)


def text_output(
    name: str, *pages: PageRecord, join: bool = True, folder: Path = Path("absent")
) -> str:
    return "".join(text_of(document_of(pages), name, folder, WriteOptions(join_tables=join)))


def three_pages() -> list[PageRecord]:
    """A page that was read, one that failed, and one that looped at its second try."""
    tries = (Try({}, "loop", 9, 1.0), Try({"temperature": 0.2}, "loop", 8, 1.0))
    return [
        record_of(1, PAGE, figures=("0_0.jpg",)),
        PageRecord(2, error="The page cannot be rendered -->; repair the file."),
        record_of(3, "round and round", finish_reason="loop", tries=tries, kept=1),
    ]
