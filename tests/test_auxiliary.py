"""Training from nothing: the same numbers as the library's class, and what stands where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.images.views import make_views
from deepseek_ocr.model.loader import load_network
from deepseek_ocr.model.network import Network
from deepseek_ocr.model.prompts import Codec
from deepseek_ocr.settings import CropSettings
from deepseek_ocr.training.data.batches import IGNORED, Batch, collate, encode_example
from deepseek_ocr.training.finetune import objective
from deepseek_ocr.training.finetune.optimizer import Stepper
from deepseek_ocr.training.pocket import auxiliary, curriculum, page_pools
from deepseek_ocr.training.pocket.auxiliary import AuxiliaryObjective, Lessons
from deepseek_ocr.training.synthetic import synthetic_pages
from deepseek_ocr.training.synthetic.phrases import CHARACTERS
from deepseek_ocr.training.synthetic.recipes import Recipe
from tests.conftest import POCKET

PAGE = synthetic_pages.make_page(Recipe(effects=0.0, dark=0.0), 7)


@pytest.mark.parametrize("view", [256, 512, 640, 1024])
def test_a_page_meets_the_network_as_it_does_when_it_is_read(
    network: Network, codec: Codec, view: int
) -> None:
    crop = CropSettings(base_size=view, image_size=view, crop_mode=False)
    views = make_views(PAGE.image, crop)
    batch = collate([encode_example(codec, views, "Free OCR.", "Two lines\nof text", 2048)], 2)
    with torch.no_grad():
        expected = objective.Objective(network)(batch)[0] / batch.taught
    pixels = ((batch.global_views + 1) * 127.5).round().to(torch.uint8)
    nowhere = torch.full((*batch.ids.shape, 2), IGNORED)
    slots = torch.zeros(1, view // 16, view // 8, dtype=torch.long)
    taught = AuxiliaryObjective(network, torch.float32)
    known = vars(batch) | {"global_views": pixels, "slots": slots, "places": nowhere}
    taught(Lessons(**known))
    assert taught.parts["text"] == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize(("x", "y"), [(0, 0), (5, 2), (7, 7)])
def test_patches_and_cells_lie_where_the_page_does(network: Network, x: int, y: int) -> None:
    """What is changed on the page changes SAM's features most in the patch that shows it."""
    taught = AuxiliaryObjective(network, torch.float32)
    page = torch.full((1, 3, 512, 512), 255, dtype=torch.uint8)
    marked = page.clone()
    ids = torch.empty(1, 0, dtype=torch.long)
    marked[:, :, y * 64 + 20 : y * 64 + 28, x * 64 + 20 : x * 64 + 28] = 0
    with torch.no_grad():
        before, after = (
            taught._encoded(Batch(ids, ids, one, None, (0,), ((1, 1),)))[1]
            for one in (page, marked)
        )
    change = (after - before).abs().sum(-1)[0]
    row, column = divmod(int(change.argmax()), change.shape[1])
    assert (column // 4, row // 4) == (x, y)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["lines", "full", "article", "table", "chart"])
def test_every_character_of_the_text_is_where_it_is_said_to_be(kind: str, seed: int) -> None:
    recipe = Recipe(kinds={kind: 1.0}, largest=40, effects=0.0, dark=0.0)
    page = synthetic_pages.make_page(recipe, seed)
    assert "\n".join("".join(c for c, _, _ in line) for line in page.glyphs) == page.annotation.text
    grey = np.asarray(page.image.convert("L")).astype(int)
    ground = np.median(grey)
    for line in page.glyphs:
        for character, x, y in line:
            # Marks like a comma or a quote lie above or below the middle of a line.
            around = grey[max(0, int(y) - 20) : int(y) + 24, max(0, int(x) - 4) : int(x) + 5]
            assert character == " " or np.abs(around - ground).max() > 40, (character, x, y)


def test_characters_move_with_a_page_that_is_turned() -> None:
    straight, turned = (synthetic_pages.make_page(Recipe(effects=share), 7) for share in (0.0, 1.0))
    for page, lines_are_level in ((straight, True), (turned, False)):
        longest = max(page.glyphs, key=len)
        assert (len({round(y, 3) for _, _, y in longest}) == 1) == lines_are_level


def test_slots_hold_the_characters_that_stand_in_them() -> None:
    lines = [[("A", 4.0, 8.0), ("b", 12.0, 8.0), (" ", 20.0, 8.0)], [("c", 500.0, 511.0)]]
    slots = auxiliary.slots_of(lines, (512, 512), 512)
    assert slots.shape == (32, 64)
    assert slots[0, 0] == 1 + CHARACTERS.index("A")
    assert slots[0, 1] == 1 + CHARACTERS.index("b")
    assert slots[31, 62] == 1 + CHARACTERS.index("c")
    assert int((slots != auxiliary.NOTHING).sum()) == 3
    doubled = auxiliary.slots_of(lines, (512, 512), 1024)
    assert doubled[1, 1] == 1 + CHARACTERS.index("A")
    beyond = auxiliary.slots_of([[("A", -9.0, 8.0), ("b", 8.0, 600.0)]], (512, 512), 512)
    assert int(beyond.sum()) == 0


def test_tokens_stand_where_their_first_character_does_and_breaks_where_lines_end() -> None:
    lines = [[("a", 8.0, 16.0), (",", 40.0, 16.0), (" ", 48.0, 16.0)], [("b", 80.0, 160.0)]]
    lengths = [1, 2, 1, 1]  # "a", ", ", "\n", "b"
    places = auxiliary.places_of("a, \nb", lines, (512, 512), lengths)
    assert places.tolist() == [[1, 2], [5, 2], [6, 2], [10, 20]]


def test_numbers_of_a_box_stand_at_its_corners_and_tags_nowhere() -> None:
    lines = [[("9", 8.0, 16.0), ("9", 40.0, 16.0)]]
    answer = "<|ref|>text<|/ref|><|det|>[[0, 99, 500, 999]]<|/det|>\n99"
    places = auxiliary.places_of(answer, lines, (512, 512), [1] * len(answer)).tolist()
    numbers = answer.index("0, 99, 500")
    assert places[numbers : numbers + 5] == [[0, 6]] * 5
    assert places[numbers + 7 : numbers + 15] == [[32, 63]] * 8
    assert places[-2:] == [[1, 2], [5, 2]]
    assert sum(place != [IGNORED, IGNORED] for place in places) == 5 + 8 + 2


def test_a_pages_bytes_are_what_the_network_sees_of_it(codec: Codec) -> None:
    (page,) = page_pools.pages_of(PAGE, "ocr", 640, codec)
    crop = CropSettings(base_size=640, image_size=640, crop_mode=False)
    seen = auxiliary.normalized(page.example.views.global_view)
    torch.testing.assert_close(seen, make_views(PAGE.image, crop).global_view, atol=1e-6, rtol=0)


def test_labels_of_places_lie_on_the_tokens_of_the_text(codec: Codec) -> None:
    (page,) = page_pools.pages_of(PAGE, "ocr", 512, codec)
    known = page.places[:, 0] != IGNORED
    text = codec.decode(page.example.ids[known].tolist())
    assert text == PAGE.annotation.text
    (asked,) = PAGE.annotation.reference
    (located,) = page_pools.pages_of(PAGE, "locate", 512, codec)
    known = located.places[:, 0] != IGNORED
    assert codec.decode(located.example.ids[known].tolist()).startswith(asked.text)


def test_an_empty_page_teaches_to_end_at_once(codec: Codec) -> None:
    empty = synthetic_pages.make_page(Recipe(kinds={"blank": 1.0}), 1)
    for task in ("ocr", "markdown"):
        (page,) = page_pools.pages_of(empty, task, 512, codec)
        assert page.example.labels[page.example.labels != IGNORED].tolist() == [min(codec.end_ids)]
        assert not bool((page.places != IGNORED).any())
        assert not bool(page.slots.any())
    assert page_pools.pages_of(empty, "locate", 512, codec) == []


def test_empty_pages_alone_have_a_loss(network: Network, codec: Codec) -> None:
    empty = synthetic_pages.make_page(Recipe(kinds={"blank": 1.0}), 1)
    lessons = page_pools.lessons_of(page_pools.pages_of(empty, "ocr", 512, codec), 2)
    taught = AuxiliaryObjective(network, torch.float32)
    loss, _ = taught(lessons)
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert taught.parts["cells"] == taught.parts["patches"] == 0.0


def test_pages_that_are_not_read_are_for_the_encoders_alone(codec: Codec) -> None:
    read = curriculum.PageSource(Recipe(), 512)
    stage = replace(curriculum.STAGES[4], sources=(read, replace(read, reads=False)), batch=1)
    pools = [page_pools.pool(stage, codec, 2, 1, number) for number in range(6)]
    lengths = [batch.ids.shape[1] for batches in pools for batch in batches]
    assert 0 < lengths.count(0) < len(lengths)


@pytest.mark.usefixtures("own_accelerator")
@pytest.mark.parametrize(
    ("number", "losses"),
    [(0, {"cells", "patches"}), (1, {"text", "cells", "patches", "here", "next"})],
)
def test_every_part_of_the_loss_falls(codec: Codec, number: int, losses: set[str]) -> None:
    torch.manual_seed(0)
    network = load_network(POCKET, "cpu", torch.float32).train().requires_grad_(True)
    taught = AuxiliaryObjective(network, torch.float32)
    stepper = Stepper(taught, Accelerator(), orthogonal=True)
    stage = replace(curriculum.STAGES[number], pages=4, batch=1)
    lessons: Lessons = page_pools.pool(stage, codec, 2, 1, 0)[0]
    parts = []
    for _ in range(16):
        stepper.step([lessons], 2e-3)
        parts.append(taught.parts)
    assert set(parts[0]) == losses
    for name in losses:
        assert parts[-1][name] < 0.9 * parts[0][name], name


def test_heads_outlast_a_stage(network: Network, tmp_path: Path) -> None:
    first, second = AuxiliaryObjective(network), AuxiliaryObjective(network)
    first.save_heads(tmp_path / "heads.safetensors")
    second.load_heads(tmp_path / "heads.safetensors")
    assert torch.equal(second.cell_head.weight, first.cell_head.weight.bfloat16().float())


@pytest.mark.parametrize("content", [None, b"nonsense", "a model's"])
def test_a_file_without_heads_is_refused(
    network: Network, tmp_path: Path, content: bytes | str | None
) -> None:
    file = tmp_path / "heads.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        file.write_bytes((POCKET / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="leave out --heads"):
        AuxiliaryObjective(network).load_heads(file)
