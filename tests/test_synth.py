"""Synthetic pages: the same page for the same seed, and an annotation that tells the truth."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deepseek_ocr.errors import InputError, SettingsError
from training import fonts, synth
from training.samples import load_samples, parse_annotation, save_samples
from training.synth import CLEAN_LINES, MIXED, Recipe, make_page

ALL_FONTS = replace(MIXED, font_set="all")


def ink(image: Image.Image) -> np.ndarray:
    """Where the page is unlike its ground."""
    grey = np.asarray(image.convert("L")).astype(int)
    return np.abs(grey - np.median(grey)) > 60


@pytest.mark.parametrize("kind", synth.KINDS)
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
    turned = synth._turned_box(straight, 2.0, (512, 512))
    image = Image.new("L", (512, 512), 255)
    image.paste(0, (100, 100, 300, 120))
    marks = np.asarray(image.rotate(2.0, Image.Resampling.BICUBIC, fillcolor=255)) < 128
    rows, columns = np.flatnonzero(marks.any(axis=1)), np.flatnonzero(marks.any(axis=0))
    found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert np.abs(np.array(found) - np.array(turned)).max() <= 1.5


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
    status = synth.main(
        ["--output", str(tmp_path), "--pages", "5", "--seed", "9", "--fonts", "all",
         "--processes", "2"]
    )  # fmt: skip
    assert status == 0
    pictures = sorted(tmp_path.glob("*.png"))
    assert [path.stem for path in pictures] == [f"{n:06d}" for n in range(1, 6)]
    for picture in pictures:
        parse_annotation(json.loads(picture.with_suffix(".json").read_text()))
    alone = tmp_path / "alone"
    list(synth.write_pages(alone, ALL_FONTS, [3], seed=9, processes=1))
    assert (alone / "000003.png").read_bytes() == pictures[2].read_bytes()


def test_annotations_survive_the_list_of_samples(tmp_path: Path) -> None:
    from training.samples import Sample

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
    monkeypatch.setattr(synth, "_attempt", lambda recipe, rng: None)
    with pytest.raises(SettingsError, match="choose smaller print"):
        make_page(Recipe(), 1)


def test_a_page_too_small_for_a_chart_has_none() -> None:
    tiny = Recipe(size=(64, 64), smallest=64, largest=64, kinds={"chart": 1.0})
    assert make_page(tiny, 1).annotation.figure is None


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
    assert synth.main(["--output", str(tmp_path / "file"), "--pages", "1", "--fonts", "all"]) == 2
    assert "synth: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        synth.main(["--output", str(tmp_path), "--size", "9x9"])
    assert "64 to 4096" in capsys.readouterr().err
