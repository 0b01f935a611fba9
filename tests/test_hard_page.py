"""The bundled model reads a hard page, and what it read stands in every format."""

from __future__ import annotations

import json
from pathlib import Path

import pypdfium2
import pytest
from PIL import Image, ImageDraw, ImageFont

from deepseek_ocr import presets
from deepseek_ocr.documents.inputs import find
from deepseek_ocr.documents.pipeline import read_documents
from deepseek_ocr.documents.plan import Plan
from deepseek_ocr.documents.renderer import Renderer
from deepseek_ocr.documents.run_store import Store
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.formats import FORMATS
from deepseek_ocr.settings import DecodeSettings
from tests.viewers import seen_in_html, seen_in_markdown, without_space

LINES = ("4. Apple", "7. Lemon", "16. August", "+ 3.50", "2*3*4 = 24", "# 12 Main Street")


@pytest.fixture(scope="module")
def folder(pocket: OcrEngine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page in every format."""
    home = tmp_path_factory.mktemp("hard")
    page = Image.new("RGB", (512, 512), "white")
    pen = ImageDraw.Draw(page)
    for at, line in enumerate(LINES):
        pen.text((40, 30 + 70 * at), line, font=ImageFont.load_default(36), fill="black")
    page.save(home / "page.png")
    plan = Plan(
        prompt=presets.prompt_for("markdown"),
        attempts=presets.attempts(presets.crop_for("tiny"), DecodeSettings(max_new_tokens=300), 0),
        formats=tuple(FORMATS),
    )
    with Store(home / "out") as store, Renderer() as renderer:
        read_documents(find([str(home / "page.png")]).inputs, [pocket], plan, store, renderer)
    return home / "out" / "page"


@pytest.fixture
def read(folder: Path) -> str:
    """The characters that the model read, less its tags."""
    (page,) = json.loads((folder / "page.json").read_text())["pages"]
    return "".join(without_space(region["text"]) for region in page["regions"])


def test_the_model_reads_numbers_and_signs(read: str) -> None:
    for what in ("4.", "Apple", "7", "Lemon", "16", "August", "+3", "2*3*4", "#12Main"):
        assert what in read


@pytest.mark.parametrize("name", ["md", "html", "txt", "json", "regions", "mmd", "searchable-pdf"])
def test_what_was_read_stands_in_the_file(folder: Path, read: str, name: str) -> None:
    seen = {"md": _of_markdown, "html": _of_html, "txt": _of_text, "json": _of_json,
            "regions": _of_regions, "mmd": _of_official,
            "searchable-pdf": _of_pdf}[name]  # fmt: skip
    assert seen(folder) == read


def test_every_line_is_drawn_as_a_region(folder: Path) -> None:
    regions = (folder / "page.regions.jsonl").read_text().splitlines()
    with pypdfium2.PdfDocument(folder / "page_layouts.pdf") as pdf:
        assert len(pdf) == 1
        drawn = pdf[0].render(scale=1).to_pil().convert("RGB")
    colours = {colour for _, colour in drawn.getcolors(1 << 24) or []}
    assert len(regions) >= 4
    assert any(max(colour) - min(colour) > 60 for colour in colours)  # the boxes


def _of_markdown(folder: Path) -> str:
    return seen_in_markdown((folder / "page.md").read_text())


def _of_html(folder: Path) -> str:
    return seen_in_html((folder / "page.html").read_text().partition("</a>")[2])


def _of_text(folder: Path) -> str:
    return without_space((folder / "page.txt").read_text())


def _of_json(folder: Path) -> str:
    (page,) = json.loads((folder / "page.json").read_text())["pages"]
    return seen_in_markdown(page["markdown"])


def _of_regions(folder: Path) -> str:
    lines = (folder / "page.regions.jsonl").read_text().splitlines()
    return "".join(seen_in_markdown(json.loads(line)["markdown"]) for line in lines)


def _of_official(folder: Path) -> str:
    return without_space((folder / "page.mmd").read_text().partition("<--- Page Split")[0])


def _of_pdf(folder: Path) -> str:
    with pypdfium2.PdfDocument(folder / "page.pdf") as pdf:
        return without_space(pdf[0].get_textpage().get_text_range())
