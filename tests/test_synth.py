"""Synthetic pages: the same page for the same seed, and an annotation that tells the truth."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from deepseek_ocr.cli.main import main
from deepseek_ocr.errors import InputError, SettingsError
from deepseek_ocr.training.data.annotations import parse_annotation
from deepseek_ocr.training.data.samples import load_samples
from deepseek_ocr.training.synthetic import fonts, layouts, recipes, synthetic_pages
from deepseek_ocr.training.synthetic.recipes import CLEAN_LINES, MIXED, Recipe
from deepseek_ocr.training.synthetic.synthetic_pages import make_page
from tests.training_fixtures import save_samples


def synth(arguments: list[str]) -> int:
    """The exit status of `deepseek-ocr synth`."""
    return main(["synth", *arguments])


ALL_FONTS = replace(MIXED, font_set="all")


def ink(image: Image.Image) -> np.ndarray:
    """Where the page is unlike its ground."""
    grey = np.asarray(image.convert("L")).astype(int)
    return np.abs(grey - np.median(grey)) > 60


@pytest.mark.parametrize("kind", recipes.KINDS)
def test_the_same_seed_gives_the_same_page(kind: str) -> None:
    recipe = replace(ALL_FONTS, kinds={kind: 1.0}, effects=0.5)
    first, again, other = (make_page(recipe, seed) for seed in ("a", "a", "b"))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.annotation == again.annotation
    assert first.image.tobytes() != other.image.tobytes()
    assert kind == "blank" or first.annotation != other.annotation


@pytest.mark.parametrize("kind", ["lines", "article", "table", "chart"])
def test_boxes_hold_the_ink_and_little_else(kind: str) -> None:
    recipe = replace(ALL_FONTS, kinds={kind: 1.0}, effects=0.0, dark=0.0)
    for seed in range(12):
        page = make_page(recipe, seed)
        marks = ink(page.image)
        covered = np.zeros_like(marks)
        for region in page.annotation.regions:
            left, top, right, bottom = (round(v * 512 / 999) for v in region.boxes[0])
            box = marks[max(0, top - 1) : bottom + 2, max(0, left - 1) : right + 2]
            assert box.any(), f"nothing is printed in {region}"
            columns = np.flatnonzero(box.any(axis=0))
            if region.label == "text":
                assert columns[0] <= 12
                assert columns[-1] >= box.shape[1] - 14
            covered[max(0, top - 4) : bottom + 5, max(0, left - 4) : right + 5] = True
        assert (marks & ~covered).sum() <= marks.sum() * 0.02


def test_a_turned_page_has_turned_boxes() -> None:
    straight = (100.0, 100.0, 300.0, 120.0)
    turned = synthetic_pages._turned_box(straight, 2.0, (512, 512))
    image = Image.new("L", (512, 512), 255)
    image.paste(0, (100, 100, 300, 120))
    marks = np.asarray(image.rotate(2.0, Image.Resampling.BICUBIC, fillcolor=255)) < 128
    rows, columns = np.flatnonzero(marks.any(axis=1)), np.flatnonzero(marks.any(axis=0))
    found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert np.abs(np.array(found) - np.array(turned)).max() <= 1.5


def boxes_of(blocks: list[layouts.Block]) -> list[layouts.PixelBox]:
    return [box for block in blocks for box in (block.box, *(box for _, box in block.lines))]


def is_within(box: layouts.PixelBox, size: tuple[int, int]) -> bool:
    return min(box[:2]) >= 0 and box[2] <= size[0] and box[3] <= size[1]


@pytest.mark.parametrize("size", [(512, 2048), (2048, 512), (64, 64)])
@pytest.mark.parametrize("angle", [2.0, -2.0])
def test_no_print_is_turned_off_the_page(size: tuple[int, int], angle: float) -> None:
    width, height = size
    corner = (4.0, 4.0, 60.0, 24.0)
    other = (width - 60.0, height - 24.0, width - 4.0, height - 4.0)
    blocks = [layouts.Block("text", box, "a", (("a", box),)) for box in (corner, other)]
    turned = synthetic_pages._angle_that_fits(angle, blocks, size)
    assert 0 < turned / angle <= 1
    boxes = boxes_of([synthetic_pages._turned(block, turned, size) for block in blocks])
    assert all(is_within(box, size) for box in boxes)


def test_a_turn_that_fits_is_made_as_drawn_and_one_that_cannot_fit_is_not_made() -> None:
    inside = layouts.Block("text", (12.0, 12.0, 500.0, 40.0), "a")
    assert synthetic_pages._angle_that_fits(1.9, [inside], (512, 512)) == 1.9
    edge = layouts.Block("text", (0.0, 0.0, 512.0, 40.0), "a")
    assert synthetic_pages._angle_that_fits(1.9, [edge], (512, 512)) == 0.0
    assert synthetic_pages._angle_that_fits(1.9, [], (512, 512)) == 1.9


def test_what_a_tall_page_is_said_to_hold_is_on_it() -> None:
    recipe = replace(ALL_FONTS, size=(512, 2048), kinds={"full": 1.0}, effects=1.0, dark=0.0)
    for seed in range(6):
        page = make_page(recipe, seed)
        assert all(0 <= x <= 512 and 0 <= y <= 2048 for line in page.glyphs for _, x, y in line)


@pytest.mark.parametrize(("smallest", "largest"), [(4, 8), (10, 12), (24, 48)])
def test_charts_on_a_small_page_can_be_read_or_are_none(smallest: int, largest: int) -> None:
    families = synthetic_pages._families("all")
    recipe = Recipe(smallest=smallest, largest=largest, random_share=0.0)
    drawn = 0
    for seed in range(300):
        rng = Random(seed)
        canvas = layouts.Canvas((64, 64), 0, 255, margin=4)
        canvas.top = rng.randint(4, 50)
        face = rng.choice(families[rng.choice(list(families))])
        blocks, figure = layouts.chart(canvas, rng, face, recipe)
        assert bool(blocks) == bool(figure)
        if not blocks:
            assert canvas.glyphs == []
            continue
        drawn += 1
        texts = [text for text, _ in blocks[0].lines]
        boxes = [box for _, box in blocks[0].lines]
        assert all(texts)
        assert all(is_within(box, (64, 64)) for box in boxes)
        values = sorted(box for text, box in blocks[0].lines if text.isdecimal())
        assert all(one[2] <= other[0] + 1 for one, other in pairwise(values))
    assert drawn or smallest > 12


def test_every_task_has_its_annotation() -> None:
    recipe = replace(ALL_FONTS, kinds={"chart": 1.0})
    annotation = make_page(recipe, 1).annotation
    assert annotation.text
    assert annotation.figure
    assert annotation.figure.startswith("| ")
    assert annotation.regions[-1].label == "image"
    table = make_page(replace(recipe, kinds={"table": 1.0}), 1).annotation
    assert table.regions[-1].text.startswith("<table><tr><td>")
    assert table.reference
    assert table.reference[0].text in (table.text or "")


def test_an_empty_page_has_an_empty_text() -> None:
    page = make_page(replace(ALL_FONTS, kinds={"blank": 1.0}, effects=0.0), 1)
    assert not ink(page.image).any()
    assert (page.annotation.text, page.annotation.regions, page.glyphs) == ("", (), ())


def test_clean_lines_are_as_promised() -> None:
    for seed in range(30):
        page = make_page(replace(CLEAN_LINES, font_set="all"), seed)
        lines = (page.annotation.text or "").splitlines()
        assert 1 <= len(lines) <= 6
        assert all(len(line) <= 22 for line in lines)
        assert page.image.size == (512, 512)


def test_a_folder_of_pages_is_a_data_set(tmp_path: Path) -> None:
    status = synth(
        ["--output", str(tmp_path), "--pages", "5", "--seed", "9", "--fonts", "all",
         "--processes", "2"]
    )  # fmt: skip
    assert status == 0
    pictures = sorted(tmp_path.glob("*.png"))
    assert [path.stem for path in pictures] == [f"{n:06d}" for n in range(1, 6)]
    for picture in pictures:
        parse_annotation(json.loads(picture.with_suffix(".json").read_text()))
    alone = tmp_path / "alone"
    list(synthetic_pages.write_pages(alone, ALL_FONTS, [3], seed=9, processes=1))
    assert (alone / "000003.png").read_bytes() == pictures[2].read_bytes()


def test_annotations_survive_the_list_of_samples(tmp_path: Path) -> None:
    from deepseek_ocr.training.data.samples import Sample

    page = make_page(ALL_FONTS, 4)
    page.image.save(tmp_path / "a.png")
    save_samples(
        tmp_path, tmp_path / "list.json", [Sample(tmp_path / "a.png", page.annotation, "a")]
    )
    samples, rejections = load_samples(tmp_path, tmp_path / "list.json")
    assert not rejections
    assert samples[0].annotation == page.annotation


def test_held_out_fonts_are_never_trained_on() -> None:
    everything = {face.path for face in fonts.typefaces("all")}
    trained = {face.path for face in fonts.typefaces("train")}
    assert all(not face.family.startswith(fonts.HELD_OUT) for face in fonts.typefaces("train"))
    held_out = everything - trained
    if held_out:
        assert {face.path for face in fonts.typefaces("held-out")} == held_out
    else:
        with pytest.raises(InputError, match="apt install"):
            fonts.typefaces("held-out")


def test_print_that_never_fits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_pages, "_attempt", lambda recipe, rng: None)
    with pytest.raises(SettingsError, match="choose smaller print"):
        make_page(Recipe(), 1)


def test_a_page_too_small_for_a_chart_has_none() -> None:
    tiny = Recipe(size=(64, 64), smallest=24, largest=24, kinds={"chart": 1.0}, font_set="all")
    assert make_page(tiny, 1).annotation.figure is None


def test_a_page_without_room_for_bars_has_no_chart() -> None:
    face = fonts.typefaces("all")[0]
    recipe = Recipe(smallest=10, largest=10, random_share=0.0)
    tall = layouts.height_of(fonts.sized(face, 10))
    for room in range(2 * tall, 3 * tall + 14):
        canvas = layouts.Canvas((512, 64), 0, 255, margin=0)
        canvas.top = 64 - room
        blocks, _ = layouts.chart(canvas, Random(1), face, recipe)
        assert bool(blocks) == (room >= max(3 * tall, 2 * tall + 14))


def test_small_pages_of_charts_are_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = synth(
        ["--output", str(tmp_path), "--pages", "60", "--size", "64x64", "--font-sizes", "10", "12",
         "--kinds", "chart", "--fonts", "all", "--processes", "1"]
    )  # fmt: skip
    assert status == 0, capsys.readouterr().err
    found = [parse_annotation(json.loads(path.read_text())) for path in tmp_path.glob("*.json")]
    assert len(found) == 60
    assert any(annotation.figure for annotation in found)


def test_titles_are_marked_in_markdown_and_plain_in_text() -> None:
    for seed in range(20):
        known = make_page(Recipe(kinds={"article": 1.0}), seed).annotation
        for region in known.regions:
            assert region.text.startswith("# ") == (region.label == "title")
            if region.label == "title":
                assert region.text.removeprefix("# ") in (known.text or "").split("\n")
                return
    pytest.fail("no article has a title")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kinds": {"poem": 1.0}}, "Page kinds are"),
        ({"kinds": {}}, "Page kinds are"),
        ({"smallest": 60, "largest": 50}, "Font sizes"),
        ({"largest": 900}, "Font sizes"),
    ],
)
def test_recipes_nobody_can_follow_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        replace(Recipe(), **change)  # type: ignore[arg-type]


def test_the_command_line_complains_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert synth(["--output", str(tmp_path / "file"), "--pages", "1", "--fonts", "all"]) == 2
    assert "deepseek-ocr: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        synth(["--output", str(tmp_path), "--size", "9x9"])
    assert "64 to 4096" in capsys.readouterr().err


def few_pages(folder: Path, pages: int, *more: str) -> list[str]:
    return ["--output", str(folder), "--pages", str(pages), "--fonts", "all", *more]


def test_empty_pages_are_no_choice_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        synth(few_pages(tmp_path, 1, "--kinds", "blank"))
    assert "invalid choice: 'blank'" in capsys.readouterr().err


def test_older_pages_in_the_folder_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert synth(few_pages(tmp_path, 3, "--processes", "1")) == 0
    assert "from before" not in capsys.readouterr().err
    assert synth(few_pages(tmp_path, 1, "--processes", "1")) == 0
    said = capsys.readouterr().err
    assert f"{tmp_path} holds 2 more pages from before; choose an empty --output" in said


def test_an_interrupted_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(recipe: Recipe, seed: str) -> synthetic_pages.SynthPage:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic_pages, "make_page", interrupted)
    assert synth(few_pages(tmp_path, 1, "--processes", "1")) == 130
    assert "deepseek-ocr: interrupted; " in capsys.readouterr().err


def killed(*_: object) -> None:
    """Stands in for the work of a process that the system ends."""
    os._exit(9)


def test_a_process_that_dies_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(synthetic_pages, "_write_page", killed)
    assert synth(few_pages(tmp_path, 2, "--processes", "2")) == 2
    assert "fewer --processes" in capsys.readouterr().err


@pytest.mark.parametrize("table", [b"name", b"cmap"])
def test_a_font_that_cannot_be_read_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: bytes
) -> None:
    good = fonts.typefaces("all")[0].path
    data = good.read_bytes()
    # A table's entry in the directory is tag, checksum, offset and length, four bytes each.
    length = data.index(table, 12) + 12
    (tmp_path / "short.ttf").write_bytes(data[:length] + b"\0\0\0\3" + data[length + 4 :])
    (tmp_path / "empty.ttf").write_bytes(b"")
    (tmp_path / f"whole{good.suffix}").write_bytes(data)
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path),))
    found = {face.path.stem for face in fonts._installed.__wrapped__()}
    assert found == {"whole"}


def test_without_installed_fonts_those_of_matplotlib_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path),))
    found = fonts._installed.__wrapped__()
    assert {"DejaVu Sans", "DejaVu Serif"} <= {face.family for face in found}


def test_where_only_other_fonts_are_installed_they_are_offered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    face = fonts.Typeface("Lato", "Regular", Path("lato.ttf"))
    monkeypatch.setattr(fonts, "_installed", lambda: (face,))
    with pytest.raises(InputError, match=r"--fonts all\), or .*README\.md.*apt install"):
        fonts.typefaces("train")
    monkeypatch.setattr(fonts, "_installed", lambda: ())
    with pytest.raises(InputError) as raised:
        fonts.typefaces("train")
    assert "--fonts all" not in str(raised.value)
    assert "training/README.md" in str(raised.value)
