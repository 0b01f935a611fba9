"""What `read` says of the pages of its PDFs: on screen, in the manifest, in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pikepdf
import pytest
from pikepdf import Dictionary, Name

from deepseek_ocr import configuration
from deepseek_ocr.documents.run_store import read_manifests
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.server.jobs.document_options import as_fields, document_plan
from tests import papers
from tests.command_line import read_options_of
from tests.scripted import Server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def add_text(path: Path, page: int, mode: int) -> None:
    """Add a word in white and render mode `mode` to a page, which looks as before."""
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        own = pdf.pages[page - 1]
        font = Dictionary(Type=Name.Font, Subtype=Name.Type1, BaseFont=Name.Helvetica)
        own.obj.Resources.Font = Dictionary(W=font)
        drawing = b"q 1 g BT %d Tr /W 4 Tf 2 2 Td (Own) Tj ET Q" % mode
        own.contents_add(pikepdf.Stream(pdf, drawing), prepend=False)
        pdf.save(path)


def written_line(folder: Path) -> dict[str, Any]:
    (line,) = [line for line in read_manifests(folder) if line["outcome"] == "written"]
    return line


def test_pages_with_text_are_counted_and_told(server: Server, tmp_path: Path) -> None:
    path = papers.pdf(tmp_path / "a.pdf", [1, 2, 3])
    add_text(path, 1, mode=0)
    add_text(path, 3, mode=3)
    command = ["a.pdf", "-o", "out", "--format", "json,searchable-pdf"]
    status, _, err = server.run(*command, cwd=tmp_path)
    assert status == 0, err
    assert "a.pdf, searchable-pdf: pages 1, 3 kept the text of the original alone" in err
    assert "2 pages of searchable PDFs kept the text of the original alone (--existing-text)" in err
    line = written_line(tmp_path / "out")
    assert (line["source"], line["document"], line["page"]) == ("a.pdf", "a", None)
    assert line["files"] == ["a.json", "a.pdf"]
    assert line["pdfs"]["searchable-pdf"]["skipped"] == [1, 3]
    told = json.loads((tmp_path / "out" / "a" / "a.json").read_text())["pdfs"]
    assert told["searchable-pdf"]["skipped"] == [1, 3]

    status, _, err = server.run(*command, "--existing-text", "replace", cwd=tmp_path)
    assert status == 0, err
    assert "0 pages read" in err
    assert "an invisible text layer was replaced on page 3" in err
    assert "page 1 redrawn as a picture to replace visible text" in err
    assert "2 pages of searchable PDFs got new text for the old" in err


def test_rebuilt_pages_are_told_with_the_reason(server: Server, tmp_path: Path) -> None:
    path = papers.pdf(tmp_path / "a.pdf", [1])
    with pikepdf.open(path, allow_overwriting_input=True) as pdf:
        # A page tree that is a child of itself, which the renderer passes over.
        tree = pdf.Root.Pages
        tree.Kids.append(tree)
        pdf.save(path)
    status, _, err = server.run(
        "a.pdf", "-o", "out", "--format", "searchable-pdf,pdf", cwd=tmp_path
    )
    assert status == 0, err
    assert "a.pdf, searchable-pdf: page 1 rebuilt from pictures, because the original" in err
    assert "1 page of PDFs rebuilt from pictures" in err
    assert written_line(tmp_path / "out")["pdfs"]["pdf"]["rebuilt"] == [1]


def test_a_format_that_fails_is_named_and_the_others_are_there(
    server: Server, tmp_path: Path
) -> None:
    papers.pdf(tmp_path / "a.pdf", [1])
    (tmp_path / "out" / "a" / "a.pdf").mkdir(parents=True)  # a folder where the file must be
    command = ["a.pdf", "-o", "out", "--format", "searchable-pdf,json"]
    status, _, err = server.run(*command, cwd=tmp_path)
    assert status == 1
    assert "a.pdf: searchable-pdf could not be written: " in err
    assert "Written: a.json." in err
    assert "1 document could not be written" in err
    assert (tmp_path / "out" / "a" / "a.json").is_file()
    (tmp_path / "out" / "a" / "a.pdf").rmdir()
    status, _, err = server.run(*command, cwd=tmp_path)
    assert status == 0, err


# --- where the setting comes from ---------------------------------------------------------------


def test_the_flag_comes_before_the_environment_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.toml"
    file.write_text('existing_text = "both"\n')
    command = ["a.pdf", "-o", "out", "--config", str(file)]
    assert read_options_of(*command).settings.existing_text == "both"
    monkeypatch.setenv("DEEPSEEK_OCR_EXISTING_TEXT", "replace")
    assert read_options_of(*command).settings.existing_text == "replace"
    assert read_options_of(*command, "--existing-text", "skip").settings.existing_text == "skip"
    assert configuration.load(environ={}, path=file).existing_text == "both"


def test_another_word_is_refused() -> None:
    with pytest.raises(SettingsError, match="skip, replace, both"):
        configuration.load({"existing_text": "keep"}, {})
    with pytest.raises(SettingsError, match="skip, replace, both"):
        document_plan({"existing_text": "keep"}, configuration.ServerSettings())


def test_the_server_takes_it_as_a_field() -> None:
    given = as_fields({"existing_text": "both"})
    made = document_plan(given, configuration.ServerSettings())
    assert made.options.existing_text == "both"
    assert document_plan({}, configuration.ServerSettings()).options.existing_text == "skip"
