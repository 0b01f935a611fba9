"""The PDFs: original pages kept, regions and text where they belong, in every script."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy
import pikepdf
import pypdfium2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from deepseek_ocr.errors import OutputError
from deepseek_ocr.formats import bidi, pdf_builder
from deepseek_ocr.formats.export import write
from deepseek_ocr.formats.layout_pdf import colour_of
from deepseek_ocr.formats.pdf_images import page_size
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.formats.text_placement import place
from deepseek_ocr.grounding.parser import Box
from tests.conftest import need
from tests.output_fixtures import (
    SCRIPTS,
    Block,
    blank,
    document_of,
    grounded,
    make_pdf,
    record_of,
    renderer,
    text_in,
    words_of,
)

MEDIA, CROP = (700, 900), (50, 30, 600, 800)
MARKED = b"BT /F1 24 Tf 120 500 Td (Landmark) Tj ET q 0.5 0 0 0.5 100 100 cm"
"""A word, and a state that is never restored."""


def searchable(
    folder: Path, source: Path, *pages: PageRecord, render: Callable[[int], Image.Image] = blank
) -> Path:
    return write(document_of(pages, source), ["searchable-pdf"], folder / "out", render).files[0]


def drawn(
    folder: Path, source: Path, *pages: PageRecord, render: Callable[[int], Image.Image] = blank
) -> Path:
    return write(document_of(pages, source), ["pdf"], folder / "out", render).files[0]


def all_text(path: Path) -> str:
    need("pdftotext")
    done = subprocess.run(["pdftotext", path, "-"], capture_output=True, check=True, text=True)
    marks = dict.fromkeys(map(ord, "\u200e\u200f\u202a\u202b\u202c"))
    return "".join(done.stdout.translate(marks).split())


def ink(image: Image.Image, colour: tuple[float, float, float] | None = None) -> Box:
    """The box in 0-999 of what is dark, or of what has `colour` (0-1)."""
    pixels = numpy.asarray(image.convert("RGB")).astype(int)
    wanted = (0, 0, 0) if colour is None else tuple(255 * part for part in colour)
    rows, columns = numpy.nonzero(abs(pixels - numpy.array(wanted)).max(axis=2) < 60)
    across, down = 999 / image.width, 999 / image.height
    return (round(columns.min() * across), round(rows.min() * down),
            round((columns.max() + 1) * across), round((rows.max() + 1) * down))  # fmt: skip


@pytest.mark.parametrize("extra", [0, 90, 180, 270])
@pytest.mark.parametrize("turn", [0, 90, 180, 270])
def test_text_lies_on_what_was_read_however_the_page_is_turned(
    tmp_path: Path, turn: int, extra: int
) -> None:
    source = make_pdf(tmp_path / "s.pdf", 1, MEDIA, turn, CROP, MARKED)
    shown = renderer(source)(1)
    picture = shown.rotate(-extra, expand=True)
    box = ink(picture)
    record = record_of(1, grounded([Block("text", box, "Invisible")]), picture.size,
                       points=(shown.width / 2, shown.height / 2), rotation=extra)  # fmt: skip
    done = searchable(tmp_path, source, record)
    words = {word: place for word, *place in words_of(done)}
    seen, unseen = words["Landmark"], words["Invisible"]
    # The reader turns the page as it was turned for reading, so its boxes are those of the record.
    assert (unseen[0], unseen[2]) == pytest.approx((box[0], box[2]), abs=8)
    assert box[1] - 8 <= unseen[1] < unseen[3] <= box[3] + 8
    centre = [(a + b) / 2 for a, b in zip(seen[:2], seen[2:], strict=True)]
    assert box[0] <= centre[0] <= box[2]
    assert box[1] <= centre[1] <= box[3]
    # Drawn regions too; and the page's own content is untouched and upright.
    drawing = renderer(drawn(tmp_path, source, record))(1).crop((0, 0, *picture.size))
    left, top, right, bottom = ink(drawing, colour_of("text"))
    assert (left, bottom) == pytest.approx((box[0], box[3]), abs=6)
    assert right >= box[2] - 6  # a label may be wider than its box
    assert top <= box[1]  # and stands above


@pytest.mark.parametrize("script", SCRIPTS)
def test_text_in_every_script_is_found_inside_its_region(tmp_path: Path, script: str) -> None:
    blocks = [Block("text", (100, 100, 800, 180), SCRIPTS[script]),
              Block("text", (120, 500, 500, 700), SCRIPTS[script])]  # fmt: skip
    source = make_pdf(tmp_path / "s.pdf")
    done = searchable(tmp_path, source, record_of(1, grounded(blocks), points=(595, 842)))
    wanted = "".join(SCRIPTS[script].split())
    for block in blocks:
        assert sorted(text_in(done, block.box)) == sorted(wanted)
    assert all_text(done) == wanted * 2
    with pypdfium2.PdfDocument(done) as pdf:
        first = SCRIPTS[script].split()[0]
        if not bidi.is_right_to_left(first) and script not in ("chinese", "japanese", "astral"):
            assert pdf[0].get_textpage().search(first).get_next() is not None


def test_a_searchable_page_looks_as_before(tmp_path: Path) -> None:
    source = make_pdf(tmp_path / "s.pdf", contents=MARKED)
    done = searchable(tmp_path, source, record_of(1, "Free text\nof the page"))
    assert renderer(done)(1).tobytes() == renderer(source)(1).tobytes()


def test_tables_are_placed_row_by_row(tmp_path: Path) -> None:
    table = "<table><tr><td>Bread</td><td>2.50</td></tr><tr><td>Salt</td><td>1.10</td></tr></table>"
    record = record_of(1, grounded([Block("table", (100, 100, 900, 300), table)]))
    done = searchable(tmp_path, make_pdf(tmp_path / "s.pdf"), record)
    places = {word: (left, top) for word, left, top, *_ in words_of(done)}
    assert places["Bread"][0] == pytest.approx(places["Salt"][0], abs=2)
    assert places["2.50"][0] == pytest.approx(places["1.10"][0], abs=2)
    assert 510 < places["2.50"][0] < 560  # the first column has the wider words
    assert places["Salt"][1] - places["Bread"][1] == pytest.approx(100, abs=5)


def test_text_without_regions_is_spread_over_the_page(tmp_path: Path) -> None:
    lines = [f"Line {number} of the page" for number in range(20)]
    done = searchable(tmp_path, make_pdf(tmp_path / "s.pdf"), record_of(1, "\n".join(lines)))
    tops = [top for word, _, top, *_ in words_of(done) if word == "Line"]
    assert len(tops) == 20
    assert tops == sorted(tops)
    assert (tops[0], tops[-1]) == (pytest.approx(50, abs=15), pytest.approx(905, abs=25))


def test_only_pages_of_the_document_in_its_order(tmp_path: Path) -> None:
    source = make_pdf(tmp_path / "s.pdf", pages=5)
    pages = [record_of(number, f"text {number}") for number in (2, 4)]
    done = searchable(tmp_path, source, *pages, PageRecord(5, error="Rendering took too long."))
    with pikepdf.open(done) as pdf:
        assert len(pdf.pages) == 3
    assert all_text(done) == "text2text4"


def test_failed_pages_stay_and_say_why(tmp_path: Path) -> None:
    source = make_pdf(tmp_path / "s.pdf", contents=MARKED)
    failed = PageRecord(1, error="The page took too long; give it more with --timeout.")
    assert "Thepagetooktoolong" in all_text(drawn(tmp_path, source, failed))
    assert all_text(searchable(tmp_path, source, failed)) == "Landmark"


def unreadable(number: int) -> Image.Image:
    raise RuntimeError("the renderer crashed")


def test_a_source_the_library_cannot_open_becomes_pictures(tmp_path: Path) -> None:
    source = tmp_path / "broken.pdf"
    source.write_bytes(b"%PDF-1.4 nothing else")
    failed = PageRecord(2, points=(300, 200), error="It crashed.")
    done = searchable(tmp_path, source, record_of(1, "words"), record_of(3, "more"), render=blank)
    assert all_text(done) == "wordsmore"

    def crashes_on_2(number: int) -> Image.Image:
        return unreadable(number) if number == 2 else blank(number)

    done = drawn(tmp_path, source, record_of(1, "words"), failed, render=crashes_on_2)
    with pypdfium2.PdfDocument(done) as pdf:
        assert len(pdf) == 2
        assert pdf[1].get_width() == pytest.approx(300)
    with pytest.raises(OutputError, match=r"searchable-pdf could not be written: .*crashed"):
        searchable(tmp_path, source, record_of(1, "words"), render=unreadable)


def test_encrypted_sources_open_with_their_password(tmp_path: Path) -> None:
    lock = pikepdf.Encryption(owner="owner", user="secret")
    source = make_pdf(tmp_path / "s.pdf", contents=MARKED, encryption=lock)
    document = document_of([record_of(1, "words")], source)
    (done,) = write(document, ["searchable-pdf"], tmp_path, blank, password="secret").files
    assert sorted(all_text(done)) == sorted("Landmarkwords")
    with pikepdf.open(done) as pdf:
        assert not pdf.is_encrypted


@pytest.mark.parametrize(
    "spoil",
    [
        {"/MediaBox": pikepdf.Array([0, 0, 0, 0])},
        {"/MediaBox": pikepdf.Array([0, 0])},
        {"/MediaBox": pikepdf.Name.Odd},
        {"/CropBox": pikepdf.Array([5000, 5000, 6000, 6000])},
        {"/CropBox": pikepdf.Array([pikepdf.Name.A, 0, 10, 10])},
        {"/Rotate": 45},
        {"/Rotate": pikepdf.Name.Odd},
        {"/Rotate": -90},
        {"/Contents": 7},
        {"/Contents": pikepdf.Array([7])},
        {"/Resources": 7},
        {"/Resources": pikepdf.Dictionary(Font=7)},
        {"/Annots": 7},
        {"/Annots": pikepdf.Array([7])},
    ],
    ids=str,
)
def test_odd_pages_are_written_all_the_same(
    tmp_path: Path, spoil: dict[str, pikepdf.Object]
) -> None:
    source = make_pdf(tmp_path / "s.pdf", contents=MARKED)
    with pikepdf.open(source, allow_overwriting_input=True) as pdf:
        for name, value in spoil.items():
            pdf.pages[0].obj[name] = value
        pdf.save(source)
    record = record_of(1, grounded([Block("text", (10, 10, 500, 500), "words")]))
    document = document_of([record], source)
    for path in write(document, ["pdf", "searchable-pdf"], tmp_path, blank).files:
        with pypdfium2.PdfDocument(path) as pdf:
            assert len(pdf) == 1
    assert "words" in all_text(path)


def photo(folder: Path, kind: str, mode: str) -> Path:
    gradient = Image.linear_gradient("L").resize((300, 400))
    path = folder / f"photo.{kind}"
    picture = gradient.convert(mode)
    if mode == "RGB":
        picture.paste((200, 30, 90), (50, 60, 120, 160))
    picture.save(path, dpi=(100, 100))
    return path


@pytest.mark.parametrize(
    ("kind", "mode", "packed"),
    [("jpg", "RGB", "/DCTDecode"), ("jpg", "L", "/DCTDecode"), ("png", "RGB", "/FlateDecode"),
     ("png", "L", "/FlateDecode"), ("tif", "1", "/FlateDecode")],
)  # fmt: skip
def test_pictures_become_pages_without_loss(
    tmp_path: Path, kind: str, mode: str, packed: str
) -> None:
    source = photo(tmp_path, kind, mode)
    with Image.open(source) as file:
        upright = file.convert("RGB")
        upright.info["dpi"] = (100.0, 100.0)
        if kind == "jpg":
            upright.info["stored_jpeg"] = mode
    record = record_of(1, grounded([Block("text", (100, 100, 900, 200), "words")]), upright.size)
    done = searchable(tmp_path, source, record, render=lambda number: upright)
    with pikepdf.open(done) as pdf:
        image = pdf.pages[0].obj.Resources.XObject.Page
        assert str(image.Filter) == packed
        assert [float(side) for side in pdf.pages[0].mediabox[2:]] == [216.0, 288.0]
        if kind == "jpg":
            assert image.read_raw_bytes() == source.read_bytes()
        kept = pikepdf.PdfImage(image).as_pil_image().convert("RGB")
        assert kept.tobytes() == upright.tobytes()
    assert text_in(done, (100, 100, 900, 200)) == "words"


def test_frames_are_put_on_disk_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pdf_builder, "_PART_PAGES", 3)
    pages = [record_of(number, f"frame {number}") for number in range(1, 9)]
    done = searchable(tmp_path, Path("scan.tif"), *pages)
    assert all_text(done) == "".join(f"frame{number}" for number in range(1, 9))
    assert [path.name for path in done.parent.iterdir()] == ["scan.pdf"]


@pytest.mark.parametrize(("dpi", "width"), [(None, 100), (300, 48), (0.001, 100), (1e9, 100)])
def test_size_of_a_picture_on_paper(dpi: float | None, width: float) -> None:
    image = blank()
    if dpi is not None:
        image.info["dpi"] = (dpi, dpi)
    assert page_size(image)[0] == pytest.approx(width)
    assert max(page_size(Image.new("1", (100_000, 10)))) == pytest.approx(14_400)


def test_the_legend_names_every_label_in_its_colour(tmp_path: Path) -> None:
    labels = ["title", "text", "a/b <script>", "标题", "(x) \\ y"]
    blocks = [Block(label, (100, 100 + 100 * at, 800, 180 + 100 * at), "x") for at, label in
              enumerate(labels)]  # fmt: skip
    done = drawn(tmp_path, make_pdf(tmp_path / "s.pdf"), record_of(1, grounded(blocks)))
    found = all_text(done)
    for shown in ("title(1)", "text(1)", "a/b<script>(1)", "??(1)", "(x)\\y(1)", "1title", "2text"):
        assert shown in found
    with pypdfium2.PdfDocument(done) as pdf:
        assert pdf[0].get_height() > 842
    assert len({colour_of(label) for label in labels}) == len(labels)


HOSTILE_BLOCK = st.builds(
    lambda label, box, text: f"<|ref|>{label}<|/ref|><|det|>[[{box}]]<|/det|>{text}",
    st.text(max_size=20),
    st.lists(st.integers(-(10**8), 10**8) | st.just("NaN"), min_size=3, max_size=5).map(
        lambda box: ", ".join(map(str, box))
    )
    | st.sampled_from(["900, 900, 100, 100", "5, 5, 5, 5", "0, 0, 999, 0", "0,0,9,9],[9,9,0,0"]),
    st.text(max_size=60) | st.sampled_from(["\t\t", "א\u202e(1)", "e\u0301" * 9, "\x00\x1b[0m"]),
)


@settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(blocks=st.lists(HOSTILE_BLOCK, max_size=8), turn=st.sampled_from([0, 90, 180, 270]))
def test_any_reading_can_be_written(tmp_path: Path, blocks: list[str], turn: int) -> None:
    source = make_pdf(tmp_path / "s.pdf", rotate=turn)
    record = record_of(1, "\n".join(blocks), points=(595, 842), rotation=turn)
    formats = ["pdf", "searchable-pdf", "md", "html", "json", "txt", "mmd", "regions"]
    paths = write(document_of([record], source), formats, tmp_path / "out", blank).files
    for path in paths[:2]:
        with pypdfium2.PdfDocument(path) as pdf:
            pdf[0].render(scale=0.2)
    assert {path.name for path in tmp_path.iterdir()} == {"s.pdf", "out"}
    assert {path.parent for path in paths} == {tmp_path / "out"}


def test_thousands_of_boxes(tmp_path: Path) -> None:
    boxes = ", ".join(
        f"[{at % 900}, {at % 800}, {at % 900 + 50}, {at % 800 + 20}]" for at in range(3000)
    )
    record = record_of(1, f"<|ref|>x<|/ref|><|det|>[{boxes}]<|/det|>words")
    source = make_pdf(tmp_path / "s.pdf")
    write(document_of([record], source), ["pdf", "searchable-pdf"], tmp_path, blank)
    assert all_text(tmp_path / "scan.pdf") == "xwords"


@given(st.text(max_size=60))
def test_visual_order_loses_no_character(line: str) -> None:
    assert sorted(bidi.visual_order(line)) == sorted(line)


@pytest.mark.parametrize(
    ("logical", "visual"),
    [
        ("abc 12", "abc 12"),
        ("אבג", "גבא"),
        ("אבג 123 דה", "הד 123 גבא"),
        ("abc אבג def", "abc גבא def"),
        ("אבג abc דה", "הד abc גבא"),
        ("السعر 12.50 ريال", "لاير 12.50 رعسلا"),
    ],
)
def test_visual_order_follows_the_standard(logical: str, visual: str) -> None:
    assert bidi.visual_order(logical) == visual


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text("ab cd漢\tא", max_size=80), max_size=6), st.tuples(*[st.floats(0, 500)] * 4)
)
def test_lines_stay_within_their_box(lines: list[str], sides: tuple[float, ...]) -> None:
    left, right = sorted(sides[:2])
    top, bottom = sorted(sides[2:])
    placed = list(place(lines, (left, top, right, bottom)))
    for line in placed:
        assert top - 0.01 <= line.y - 0.8 * line.size
        assert line.y + 0.2 * line.size <= max(bottom, top + 1) + 0.01
        assert left - 0.01 <= line.x <= max(right, left + 1) + 0.01
