"""The text layer as viewers see it: found, highlighted and selected however a page is turned."""

from __future__ import annotations

import io
import subprocess
import unicodedata
from pathlib import Path

import pikepdf
import pypdfium2
import pytest
from PIL import ImageFont

from deepseek_ocr.formats.export import write
from deepseek_ocr.formats.glyphless import font_file, width
from deepseek_ocr.grounding.parser import Box
from tests.conftest import need
from tests.output_fixtures import (
    SCRIPTS,
    Block,
    document_of,
    grounded,
    make_pdf,
    record_of,
    renderer,
    words_of,
)

MEDIA, CROP = (700, 900), (50, 30, 600, 800)
QUERIES = {"english": "quick", "chinese": "宇宙", "arabic": "الناس"}
BOXES: dict[str, Box] = {
    "english": (100, 100, 800, 180), "chinese": (100, 300, 800, 380), "arabic": (100, 500, 800, 580)
}  # fmt: skip
LINES = {
    "english": "The quick brown fox",
    "chinese": "天地玄黄宇宙洪荒",
    "arabic": "يولد جميع الناس",
}


def layered(folder: Path, turn: int, extra: int) -> Path:
    """A cropped page turned by `turn`, read after another turn by `extra`, with its text layer."""
    source = make_pdf(folder / "s.pdf", 1, MEDIA, turn, CROP)
    shown = renderer(source)(1)
    picture = shown.rotate(-extra, expand=True)
    text = grounded([Block("text", BOXES[script], LINES[script]) for script in LINES])
    record = record_of(1, text, picture.size, points=(shown.width / 2, shown.height / 2),
                       rotation=extra)  # fmt: skip
    return write(
        document_of([record], source), ["searchable-pdf"], folder / "out", renderer(source)
    ).files[0]


def highlights(path: Path, query: str) -> list[Box]:
    """The rectangles (0-999 of the page as shown) that PDFium marks for the first hit."""
    with pypdfium2.PdfDocument(path) as pdf:
        page = pdf[0]
        bitmap = page.render(scale=4)
        convert = bitmap.get_posconv(page)
        text = page.get_textpage()
        hit = text.search(query).get_next()
        assert hit is not None, f"{query} is not found"
        found: list[Box] = []
        for at in range(text.count_rects(*hit)):
            left, bottom, right, top = text.get_rect(at)
            (x1, y1), (x2, y2) = convert.to_bitmap(left, bottom), convert.to_bitmap(right, top)
            across, down = 999 / bitmap.width, 999 / bitmap.height
            xs, ys = sorted((x1 * across, x2 * across)), sorted((y1 * down, y2 * down))
            found.append((round(xs[0]), round(ys[0]), round(xs[1]), round(ys[1])))
        return found


@pytest.mark.parametrize("extra", [0, 90, 180, 270])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_pdfium_finds_and_highlights_words_on_pages_turned_and_cropped(
    tmp_path: Path, turn: int, extra: int
) -> None:
    done = layered(tmp_path, turn, extra)
    for script, query in QUERIES.items():
        x1, y1, x2, y2 = BOXES[script]
        (found,) = highlights(done, query)
        assert x1 - 2 <= found[0] < found[2] <= x2 + 2
        assert y1 - 2 <= found[1] < found[3] <= y2 + 2
        assert found[3] - found[1] > 0.7 * (y2 - y1), "as high as the line"
        before, share = LINES[script].split(query)[0], len(query) / len(LINES[script])
        assert found[2] - found[0] == pytest.approx(share * (x2 - x1), rel=0.35)
        start = x1 + (x2 - x1) * natural(before) / natural(LINES[script])
        end = x2 - (x2 - x1) * natural(before) / natural(LINES[script])
        edge, wanted = (found[2], end) if script == "arabic" else (found[0], start)
        assert edge == pytest.approx(wanted, abs=5)


def natural(text: str) -> int:
    return sum(map(width, text))


@pytest.mark.parametrize("extra", [0, 90, 180, 270])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_poppler_finds_words_on_pages_turned_and_cropped(
    tmp_path: Path, turn: int, extra: int
) -> None:
    done = layered(tmp_path, turn, extra)
    words = {word: tuple(place) for word, *place in words_of(done)}
    for script, (x1, y1, x2, y2) in BOXES.items():
        for word in LINES[script].split():
            # With boxes it gives the letters as they lie, from left to right.
            left, top, right, bottom = words[word[::-1] if script == "arabic" else word]
            assert x1 - 2 <= left < right <= x2 + 2
            assert y1 - 2 <= top < bottom <= y2 + 2
            assert bottom - top > 0.7 * (y2 - y1)


MARKED = {
    "hindi": SCRIPTS["hindi"],
    "thai": SCRIPTS["thai"],
    "arabic": "بِسْمِ اللَّهِ الرَّحِيمِ",
    "hebrew": "בְּרֵאשִׁית בָּרָא אֱלֹהִים",
    "latin": "cafe\u0301 au re\u0301sume\u0301",
}


@pytest.mark.parametrize("turn", [0, 90])
@pytest.mark.parametrize("script", MARKED)
def test_pdfium_gives_text_with_combining_marks(tmp_path: Path, script: str, turn: int) -> None:
    """PDFium orders two marks of one letter its own way, which Unicode says means the same."""
    source = make_pdf(tmp_path / "s.pdf", 1, MEDIA, turn)
    text = grounded([Block("text", (100, 100, 900, 180), MARKED[script])])
    record = record_of(1, text, renderer(source)(1).size)
    (done,) = write(
        document_of([record], source), ["searchable-pdf"], tmp_path, renderer(source)
    ).files
    with pypdfium2.PdfDocument(done) as pdf:
        found = pdf[0].get_textpage().get_text_range()
    assert same(found) == same(MARKED[script])


def same(text: str) -> str:
    return unicodedata.normalize("NFC", "".join(text.split()))


def with_poppler(path: Path, folder: Path) -> bytes:
    need("pdftoppm")
    subprocess.run(["pdftoppm", "-r", "72", path, folder / path.stem], check=True)
    (made,) = folder.glob(f"{path.stem}-*.ppm")
    return made.read_bytes()


@pytest.mark.parametrize("turn", [0, 90])
def test_no_pixel_changes(tmp_path: Path, turn: int) -> None:
    drawing = b"BT /F1 24 Tf 120 500 Td (Landmark) Tj ET 0.9 g 100 100 300 300 re f"
    source = make_pdf(tmp_path / "s.pdf", 1, MEDIA, turn, CROP, drawing)
    text = grounded([Block("text", (50, 50, 900, 900), SCRIPTS["hindi"] + LINES["chinese"])])
    record = record_of(1, text, renderer(source)(1).size)
    (done,) = write(
        document_of([record], source), ["searchable-pdf"], tmp_path, renderer(source)
    ).files
    assert renderer(done)(1).tobytes() == renderer(source)(1).tobytes()
    assert with_poppler(done, tmp_path) == with_poppler(source, tmp_path)


def test_the_font_is_a_font() -> None:
    """As far as the library that draws pages on most machines can tell."""
    font = ImageFont.truetype(io.BytesIO(font_file([0, 278, 1000])), 1000)
    assert font.getmetrics() == (800, 200)


def test_codes_use_the_glyph_of_their_width(tmp_path: Path) -> None:
    source = make_pdf(tmp_path / "s.pdf")
    record = record_of(1, "iW\u0301天")
    (done,) = write(
        document_of([record], source), ["searchable-pdf"], tmp_path, renderer(source)
    ).files
    with pikepdf.open(done) as pdf:
        font = pdf.pages[0].obj.Resources.Font["/Read0"].DescendantFonts[0]
        widths = [int(wide) for wide in font.W[1]]
        glyphs = font.CIDToGIDMap.read_bytes()
        program = font.FontDescriptor.FontFile2.read_bytes()
    used = [int.from_bytes(glyphs[at : at + 2], "big") for at in range(2, len(glyphs), 2)]
    assert widths == [222, 944, 0, 1000]
    assert used == [1, 2, 0, 3]
    at = program.index(b"hmtx")
    start = int.from_bytes(program[at + 8 : at + 12], "big")
    advances = [program[start + 4 * glyph :][:2] for glyph in used]
    assert [int.from_bytes(advance, "big") for advance in advances] == widths
