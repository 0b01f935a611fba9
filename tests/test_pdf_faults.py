"""PDFs are written whatever is wrong with the original, without a word from the libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pikepdf
import pypdfium2
import pytest
from PIL import Image

from deepseek_ocr.documents.renderer import Renderer
from deepseek_ocr.errors import OutputError
from deepseek_ocr.formats import markdown, searchable_pdf
from deepseek_ocr.formats.export import write
from deepseek_ocr.formats.pdf_images import LONGEST_SIDE, page_size
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.formats.writing import PdfPages
from tests.conftest import ROOT
from tests.output_fixtures import Block, blank, document_of, grounded, make_pdf, record_of, renderer

WORD = b"BT /F1 24 Tf 20 100 Td (Landmark) Tj ET"
PAGE = (
    b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R /Resources "
    b"<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>"
)
CATALOG = b"<< /Type /Catalog /Pages 2 0 R >>"
CONTENTS = b"<< /Length %d >>\nstream\n%s\nendstream" % (len(WORD), WORD)
ONE_PAGE = b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>"
ATTACHMENTS_ENCRYPTED = (
    b"<< /Filter /Standard /V 4 /R 4 /Length 128 /P -1028 /StmF /Identity /StrF /Identity "
    b"/EFF /StdCF /CF << /StdCF << /AuthEvent /EFOpen /CFM /AESV2 /Length 16 >> >> "
    b"/O <" + b"ab" * 32 + b"> /U <" + b"cd" * 32 + b"> >>"
)


def raw_pdf(path: Path, objects: list[bytes], trailer: bytes = b"") -> Path:
    """A PDF of the objects as they are, which the library that writes PDFs would mend."""
    data, places = b"%PDF-1.6\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    path.write_bytes(
        data + b"xref\n0 %d\n0000000000 65535 f \n" % size + table
        + b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n"
        % (size, trailer, len(data))
    )  # fmt: skip
    return path


def with_encrypted_attachments(folder: Path) -> Path:
    objects = [CATALOG, ONE_PAGE, PAGE, CONTENTS, ATTACHMENTS_ENCRYPTED]
    name = b"<" + b"11" * 16 + b">"
    trailer = b"/Encrypt 5 0 R /ID [%s %s]" % (name, name)
    return raw_pdf(folder / "attached.pdf", objects, trailer)


def with_pages_in_a_circle(folder: Path) -> Path:
    pages = b"<< /Type /Pages /Kids [3 0 R 2 0 R] /Count 1 >>"
    return raw_pdf(folder / "circle.pdf", [CATALOG, pages, PAGE, CONTENTS])


def with_orphaned_field(folder: Path) -> Path:
    path = make_pdf(folder / "form.pdf", contents=WORD)
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        field = pikepdf.Dictionary(Type=pikepdf.Name.Annot, Subtype=pikepdf.Name.Widget,
                                   FT=pikepdf.Name.Tx, T="name",
                                   Rect=pikepdf.Array([10, 10, 90, 30]))  # fmt: skip
        pdf.pages[0].obj.Annots = pikepdf.Array([pdf.make_indirect(field)])
        pdf.Root.AcroForm = pikepdf.Dictionary(Fields=pikepdf.Array([]))
        with pytest.warns(pikepdf.PageCopyWarning):
            pdf.save(path)
    return path


def with_metadata(folder: Path, xmp: bytes) -> Path:
    path = make_pdf(folder / "metadata.pdf", contents=WORD)
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        pdf.Root.Metadata = pikepdf.Stream(pdf, xmp, Type=pikepdf.Name.Metadata,
                                           Subtype=pikepdf.Name.XML)  # fmt: skip
        pdf.save(path, fix_metadata_version=False)
    return path


def words_in(path: Path) -> str:
    with pypdfium2.PdfDocument(path) as pdf:
        return " ".join(page.get_textpage().get_text_range() for page in pdf)


RECORD = record_of(1, grounded([Block("text", (100, 100, 900, 300), "words")]), (600, 400),
                   points=(300, 200))  # fmt: skip


@pytest.mark.parametrize("make", [with_encrypted_attachments, with_pages_in_a_circle])
def test_what_only_the_renderer_opens_is_rebuilt_and_told(tmp_path: Path, make: object) -> None:
    assert callable(make)
    source = make(tmp_path)
    document = document_of([RECORD], source)
    written = write(document, ["json", "pdf", "searchable-pdf"], tmp_path / "o", renderer(source))
    assert [path.name for path in written.files] == ["scan.json", "scan_layouts.pdf", "scan.pdf"]
    assert words_in(tmp_path / "o" / "scan.pdf") == "words"
    with pypdfium2.PdfDocument(tmp_path / "o" / "scan.pdf") as pdf:
        assert pdf[0].get_size() == pytest.approx((300, 200))
    told = json.loads((tmp_path / "o" / "scan.json").read_text())["pdfs"]
    for name in ("pdf", "searchable-pdf"):
        pages = written.pdfs[name]
        assert pages.rebuilt == (1,)
        (reason,) = pages.reasons
        assert "original" in reason
        assert told[name]["rebuilt"] == [1]
        assert told[name]["reasons"] == [reason]


def test_one_unusable_page_is_rebuilt_and_the_others_kept(tmp_path: Path) -> None:
    source = make_pdf(tmp_path / "s.pdf", pages=3, contents=WORD)
    with pikepdf.open(source, allow_overwriting_input=True) as pdf:
        pdf.pages[1].obj.Resources = pikepdf.Dictionary(Font=7)
        pdf.save(source)
    document = document_of([record_of(number, "words") for number in (1, 2, 3)], source)
    written = write(document, ["searchable-pdf"], tmp_path, blank)
    assert written.pdfs["searchable-pdf"].rebuilt == (2,)
    with pypdfium2.PdfDocument(written.files[0]) as pdf:
        found = ["Landmark" in page.get_textpage().get_text_range() for page in pdf]
    assert found == [True, False, True]


@pytest.mark.parametrize("xmp", [b"<x:xmpmeta", b"no XML at all", b"<a:b/>", b"\xff\xfe\x00"])
def test_broken_metadata_is_no_obstacle(tmp_path: Path, xmp: bytes) -> None:
    source = with_metadata(tmp_path, xmp)
    written = write(document_of([RECORD], source), ["searchable-pdf", "pdf"], tmp_path, blank)
    assert written.pdfs["searchable-pdf"] == written.pdfs["pdf"]
    with pikepdf.open(written.files[0]) as pdf:
        assert pdf.Root.Metadata.read_bytes() == xmp


def test_a_form_field_outside_the_form_is_no_obstacle(tmp_path: Path) -> None:
    source = with_orphaned_field(tmp_path)
    record = record_of(1, "words", points=(595, 842))
    written = write(document_of([record], source), ["searchable-pdf"], tmp_path / "o", blank)
    assert written.pdfs["searchable-pdf"] == PdfPages()


@pytest.mark.parametrize("height", [28_801, 33_073, 65_000])
def test_a_page_of_a_long_picture_keeps_within_the_longest_side(height: int) -> None:
    width, tall = page_size(Image.new("1", (300, height)))
    assert tall == LONGEST_SIDE
    assert width == pytest.approx(300 * 14_400 / height)


def test_a_long_picture_is_written(tmp_path: Path) -> None:
    picture = Image.new("L", (300, 33_073), "white")
    record = record_of(1, grounded([Block("text", (0, 500, 999, 510), "words")]), picture.size)
    document = document_of([record], Path("long.png"))
    (done,) = write(document, ["searchable-pdf"], tmp_path, lambda number: picture).files
    assert words_in(done) == "words"
    with pikepdf.open(done) as pdf:
        assert float(pdf.pages[0].mediabox[3]) == 14_400


def test_a_long_page_that_must_be_rebuilt_is_written(tmp_path: Path) -> None:
    record = PageRecord(1, 600, 40, (30_000.0, 2000.0), text="words", finish_reason="stop")
    source = with_pages_in_a_circle(tmp_path)
    document = document_of([record], source)
    picture = Image.new("L", (600, 40), "white")
    (done,) = write(document, ["searchable-pdf"], tmp_path, lambda number: picture).files
    with pikepdf.open(done) as pdf:
        assert [float(side) for side in pdf.pages[0].mediabox[2:]] == [14_400, 960]


# --- formats that fail --------------------------------------------------------------------------


def test_one_format_that_fails_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("out of ink")

    monkeypatch.setattr(markdown, "write_markdown", breaks)
    (tmp_path / "scan.pdf").mkdir()  # a folder where the file must be
    document = document_of([RECORD], Path("photo.jpg"))
    with pytest.raises(OutputError) as caught:
        write(document, ["md", "txt", "searchable-pdf", "json"], tmp_path, blank)
    error = caught.value
    assert set(error.formats) == {"md", "searchable-pdf"}
    assert "out of ink" in error.formats["md"]
    assert [path.name for path in error.files] == ["scan.txt", "scan.json"]
    assert all(path.is_file() for path in error.files)
    message = str(error)
    assert "md could not be written: " in message
    assert "searchable-pdf could not be written: " in message
    assert "Written: scan.txt, scan.json." in message


def test_a_fault_of_the_text_layer_is_not_taken_for_one_of_the_original(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> None:
        raise ValueError("a fault of ours")

    monkeypatch.setattr(searchable_pdf, "page_lines", breaks)
    source = make_pdf(tmp_path / "s.pdf")
    with pytest.raises(OutputError, match="a fault of ours"):
        write(document_of([RECORD], source), ["searchable-pdf"], tmp_path, renderer(source))


# --- what libraries would say -------------------------------------------------------------------

WRITE = """
import sys
from pathlib import Path
from deepseek_ocr.formats.export import write
from deepseek_ocr.formats.records import DocumentRecord, PageRecord
from deepseek_ocr.documents.renderer import Renderer
source = Path(sys.argv[1])
with Renderer() as renderer:
    document = renderer.open(source)
    page = renderer.render(document, 1)
    record = PageRecord(1, *page.image.size, page.points, text="words", finish_reason="stop")
    write(DocumentRecord("scan", source, document.kind, [record], {}), ["pdf", "searchable-pdf"],
          Path(sys.argv[2]), lambda number: renderer.render(document, number).image)
"""


def with_broken_exif(folder: Path) -> Path:
    path = folder / "exif.jpg"
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\x00" + b"\x12\x01\x03\x00\xff\xff\xff\xff" * 9
    Image.new("RGB", (80, 60), "white").save(path, exif=exif)
    return path


@pytest.mark.parametrize(
    "make",
    [with_encrypted_attachments, with_pages_in_a_circle, with_orphaned_field, with_broken_exif,
     lambda folder: with_metadata(folder, b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a:b/>')],
    ids=["attachments", "circle", "form", "exif", "metadata"],
)  # fmt: skip
def test_libraries_say_nothing_on_standard_error(tmp_path: Path, make: object) -> None:
    assert callable(make)
    command = [sys.executable, "-c", WRITE, str(make(tmp_path)), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scan.pdf", "scan_layouts.pdf"}


# --- pictures, which only the rendering process decodes -----------------------------------------


@pytest.mark.parametrize("turned", [False, True])
def test_the_rendering_process_finds_jpegs_to_be_kept_as_they_are(
    tmp_path: Path, turned: bool
) -> None:
    path = tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    Image.linear_gradient("L").resize((300, 400)).save(path, dpi=(100, 100), exif=exif)
    with Renderer() as pages:
        opened = pages.open(path)
        image = pages.render(opened, 1).image
    record = record_of(1, "words", image.size)
    (done,) = write(
        document_of([record], path), ["searchable-pdf"], tmp_path, lambda _: image
    ).files
    with pikepdf.open(done) as pdf:
        sides = [float(side) for side in pdf.pages[0].mediabox[2:]]
        picture = pdf.pages[0].obj.Resources.XObject.Page
        kept = picture.read_raw_bytes() == path.read_bytes()
    assert sides == ([288, 216] if turned else [216, 288])
    assert kept is not turned
