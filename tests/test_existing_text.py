"""Pages that have text before they are read: kept alone, replaced, or added to."""

from __future__ import annotations

import json
from pathlib import Path

import pikepdf
import pypdfium2
import pytest
from pikepdf import Array, Dictionary, Name

from deepseek_ocr.documents.renderer import Renderer
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.formats.export import WrittenFiles, write
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.formats.writing import PdfPages, WriteOptions
from deepseek_ocr.settings import ExistingText, one_of
from tests.output_fixtures import Block, document_of, grounded, make_pdf, record_of, renderer

SQUARE = b"0.3 g 60 60 200 100 re f "
VISIBLE = b"BT /F1 24 Tf 120 500 Td (Printed) Tj ET "
LAYER = b"BT 3 Tr /F1 24 Tf 120 400 Td (Earlier) Tj 0 -30 Td (reading) ' 2 1 (again) \" ET "
STAMP = b"BT 0 Tr /F1 12 Tf 20 20 Td (A1) Tj ET "
NEW = "fresh words"


def detected(path: Path) -> list[str | None]:
    """What the rendering process says of the text of each page."""
    with Renderer() as pages:
        document = pages.open(path)
        found = [pages.render(document, at + 1).own_text for at in range(document.pages)]
    return [*found]


def read(path: Path, *known: str | None) -> list[PageRecord]:
    """Records of pages of `path` of which the text `known` was found; all say the same."""
    text = grounded([Block("text", (100, 700, 900, 760), NEW)])
    size = renderer(path)(1).size
    return [
        record_of(at, text, size, points=(595, 842), own_text=one)
        for at, one in enumerate(known, start=1)
    ]


def written(
    folder: Path, source: Path, records: list[PageRecord], mode: ExistingText
) -> WrittenFiles:
    document = document_of(records, source)
    formats = ["json", "searchable-pdf"]
    return write(
        document, formats, folder / "out", renderer(source), WriteOptions(existing_text=mode)
    )


def text_of_page(path: Path, page: int = 1) -> list[str]:
    with pypdfium2.PdfDocument(path) as pdf:
        return pdf[page - 1].get_textpage().get_text_range().split()


@pytest.mark.parametrize(
    ("contents", "kind"),
    [
        (SQUARE, "none"),
        (SQUARE + b"BT /F1 9 Tf (   ) Tj ET", "none"),
        (SQUARE + VISIBLE, "visible"),
        (SQUARE + LAYER, "invisible"),
        (SQUARE + LAYER + STAMP, "invisible"),
        (b"BT 3 Tr /F1 9 Tf 20 20 Td (A1) Tj ET " + b"0 Tr " + VISIBLE, "visible"),
        (b"", "none"),
    ],
)
def test_the_renderer_tells_what_text_a_page_has(
    tmp_path: Path, contents: bytes, kind: str
) -> None:
    assert detected(make_pdf(tmp_path / "s.pdf", contents=contents)) == [kind]


def test_pages_with_text_keep_it_alone_by_default(tmp_path: Path) -> None:
    source = make_pdf(tmp_path / "s.pdf", pages=3, contents=SQUARE + VISIBLE)
    done = written(tmp_path, source, read(source, "visible", "invisible", "none"), "skip")
    assert done.pdfs["searchable-pdf"] == PdfPages(skipped=(1, 2))
    path = done.files[1]
    assert [text_of_page(path, page) for page in (1, 2)] == [["Printed"]] * 2
    assert sorted(text_of_page(path, 3)) == ["Printed", "fresh", "words"]
    told = json.loads(done.files[0].read_text())["pdfs"]
    assert told == {
        "searchable-pdf": {"skipped": [1, 2], "replaced": [], "redrawn": [], "rebuilt": [],
                           "reasons": []}
    }  # fmt: skip


def test_the_default_is_to_skip(tmp_path: Path) -> None:
    source = make_pdf(tmp_path / "s.pdf", contents=VISIBLE)
    document = document_of(read(source, "visible"), source)
    done = write(document, ["searchable-pdf"], tmp_path / "out", renderer(source))
    assert done.pdfs["searchable-pdf"].skipped == (1,)


def test_a_page_that_failed_or_is_not_known_does_not_count(tmp_path: Path) -> None:
    source = make_pdf(tmp_path / "s.pdf", pages=2, contents=VISIBLE)
    failed = PageRecord(1, error="It took too long.", own_text="visible")
    records = [failed, read(source, None, None)[1]]
    assert written(tmp_path, source, records, "skip").pdfs["searchable-pdf"] == PdfPages()


def test_both_adds_what_was_read(tmp_path: Path) -> None:
    source = make_pdf(tmp_path / "s.pdf", contents=VISIBLE)
    done = written(tmp_path, source, read(source, "visible"), "both")
    assert done.pdfs["searchable-pdf"] == PdfPages()
    assert sorted(text_of_page(done.files[1])) == ["Printed", "fresh", "words"]


def test_replace_takes_an_invisible_layer_out_and_keeps_what_one_sees(tmp_path: Path) -> None:
    source = make_pdf(tmp_path / "s.pdf", contents=SQUARE + b"q " + LAYER + b"Q " + STAMP)
    assert detected(source) == ["invisible"]
    done = written(tmp_path, source, read(source, "invisible"), "replace")
    assert done.pdfs["searchable-pdf"] == PdfPages(replaced=(1,))
    assert sorted(text_of_page(done.files[1])) == ["A1", "fresh", "words"]
    assert renderer(done.files[1])(1).tobytes() == renderer(source)(1).tobytes()


def test_replace_exchanges_a_layer_of_our_own(tmp_path: Path) -> None:
    source = make_pdf(tmp_path / "s.pdf", contents=SQUARE)
    first = written(tmp_path, source, read(source, "none"), "skip").files[1]
    again = tmp_path / "again.pdf"
    first.rename(again)
    assert detected(again) == ["invisible"]
    record = record_of(1, "second", points=(595, 842), own_text="invisible")
    done = written(tmp_path, again, [record], "replace")
    assert text_of_page(done.files[1]) == ["second"]


def test_replace_makes_a_picture_of_a_page_with_visible_text(tmp_path: Path) -> None:
    source = make_pdf(tmp_path / "s.pdf", pages=2, contents=SQUARE + VISIBLE)
    done = written(tmp_path, source, read(source, "visible", "none"), "replace")
    assert done.pdfs["searchable-pdf"] == PdfPages(replaced=(1,), redrawn=(1,))
    assert text_of_page(done.files[1]) == NEW.split()
    assert sorted(text_of_page(done.files[1], 2)) == ["Printed", "fresh", "words"]
    with pikepdf.open(done.files[1]) as pdf:
        assert "/Page" in pdf.pages[0].obj.Resources.XObject
        assert [float(side) for side in pdf.pages[0].mediabox] == [0, 0, 595, 842]


def with_form(path: Path, before: bytes, form: bytes, pages: int = 1) -> Path:
    """A PDF whose pages share one form that draws text."""
    make_pdf(path, pages=pages, contents=SQUARE + before + b" /Layer Do " + STAMP)
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        layer = pdf.make_indirect(
            pikepdf.Stream(pdf, form, Type=Name.XObject, Subtype=Name.Form,
                           BBox=Array([0, 0, 595, 842]),
                           Resources=Dictionary(Font=pdf.pages[0].obj.Resources.Font))
        )  # fmt: skip
        for page in pdf.pages:
            page.obj.Resources.XObject = Dictionary(Layer=layer)
        pdf.save(path)
    return path


def test_replace_looks_into_forms_and_leaves_those_of_other_pages(tmp_path: Path) -> None:
    source = with_form(tmp_path / "s.pdf", b"", LAYER, pages=2)
    done = written(tmp_path, source, read(source, "invisible", "none"), "replace")
    assert done.pdfs["searchable-pdf"] == PdfPages(replaced=(1,))
    assert sorted(text_of_page(done.files[1])) == ["A1", "fresh", "words"]
    assert "Earlier" in text_of_page(done.files[1], 2)
    assert renderer(done.files[1])(1).tobytes() == renderer(source)(1).tobytes()


def test_a_form_takes_the_render_mode_of_its_page(tmp_path: Path) -> None:
    source = with_form(tmp_path / "s.pdf", b"3 Tr", VISIBLE)
    done = written(tmp_path, source, read(source, "invisible"), "replace")
    assert sorted(text_of_page(done.files[1])) == ["A1", "fresh", "words"]
    assert renderer(done.files[1])(1).tobytes() == renderer(source)(1).tobytes()


def test_a_form_that_draws_itself_is_given_up(tmp_path: Path) -> None:
    source = with_form(tmp_path / "s.pdf", b"", LAYER + b"/Layer Do")
    with pikepdf.open(source, allow_overwriting_input=True) as pdf:
        form = pdf.pages[0].obj.Resources.XObject.Layer
        form.Resources.XObject = Dictionary(Layer=form)
        pdf.save(source)
    done = written(tmp_path, source, read(source, "invisible"), "replace")
    assert done.pdfs["searchable-pdf"] == PdfPages(replaced=(1,), redrawn=(1,))


@pytest.mark.parametrize(
    "contents",
    [
        b"BT 3 Tr /F1 24 Tf 120 400 Td (Earlier) Tj 0 Tr (Printed) Tj ET",
        b"BT 3 Tr /F1 24 Tf 120 400 Td (Earlier) Tj 0 Tr [(Printed)] TJ ET",
    ],
)
def test_text_that_stands_behind_invisible_text_is_not_moved(
    tmp_path: Path, contents: bytes
) -> None:
    source = make_pdf(tmp_path / "s.pdf", contents=contents)
    done = written(tmp_path, source, read(source, "invisible"), "replace")
    assert done.pdfs["searchable-pdf"].redrawn == (1,)
    assert text_of_page(done.files[1]) == NEW.split()


def test_inline_pictures_survive_a_replacement(tmp_path: Path) -> None:
    inline = b"q 50 0 0 50 300 300 cm BI /W 2 /H 2 /BPC 8 /CS /G ID \x00\x80\xc0\xff EI Q "
    source = make_pdf(tmp_path / "s.pdf", contents=SQUARE + inline + LAYER)
    done = written(tmp_path, source, read(source, "invisible"), "replace")
    assert done.pdfs["searchable-pdf"] == PdfPages(replaced=(1,))
    assert renderer(done.files[1])(1).tobytes() == renderer(source)(1).tobytes()


def test_the_words_of_the_setting() -> None:
    words = ["skip", "replace", "both"]
    assert [one_of(ExistingText, "existing_text", word) for word in words] == words
    with pytest.raises(SettingsError, match="skip, replace, both"):
        one_of(ExistingText, "existing_text", "keep")
