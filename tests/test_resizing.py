"""The compiled resizing gives Pillow's pixels, whatever the sizes; nobody else's are allowed."""

from __future__ import annotations

import logging
import random
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from deepseek_ocr.images.views import by_pillow, make_views
from deepseek_ocr.kernels import choice, compiling, resizing
from deepseek_ocr.settings import CropSettings


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel is used for small pictures too."""
    monkeypatch.setattr(resizing, "WORTH", 0)


needs_compiler = pytest.mark.skipif(
    compiling.library("resizing") is None, reason="needs a C++ compiler"
)


@needs_compiler
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize("seed", range(8))
def test_every_pixel_is_the_one_that_pillow_makes(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(12):
        before = rng.randint(1, 400), rng.randint(1, 400)
        after = [(rng.randint(1, 500), rng.randint(1, 500)) for _ in range(2)]
        after.append((before[0], rng.randint(1, 500)))
        image = noise(*before, seed)
        for ours, theirs in zip(
            resizing.by_kernel(image, after), by_pillow(image, after), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs, f"{before} to {after}")


@needs_compiler
@pytest.mark.usefixtures("any_size")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((300, 40), (300, 40)),  # nothing to do
        ((100, 1000), (90, 100)),  # columns first
        ((1000, 100), (100, 90)),  # rows first
        ((3, 2), (200, 300)),
        ((700, 1), (1, 1)),
    ],
)
def test_every_order_of_directions(before: tuple[int, int], after: tuple[int, int]) -> None:
    image = noise(*before)
    np.testing.assert_array_equal(
        resizing.by_kernel(image, [after])[0], by_pillow(image, [after])[0]
    )


@needs_compiler
@pytest.mark.usefixtures("any_size")
def test_black_and_white_stay_within_a_byte() -> None:
    pixels = np.zeros((90, 90, 3), np.uint8)
    pixels[::2, 1::2] = 255
    image = Image.fromarray(pixels)
    for size in ((31, 31), (200, 180)):
        np.testing.assert_array_equal(
            resizing.by_kernel(image, [size])[0], by_pillow(image, [size])[0]
        )


def test_a_scan_has_the_same_views() -> None:
    page = noise(1240, 1754)
    assert page.width * page.height >= resizing.WORTH
    ours, theirs = (
        make_views(page, CropSettings(), resizing.by_kernel),
        make_views(page, CropSettings()),
    )
    assert ours.grid == theirs.grid
    assert torch.equal(ours.tiles, theirs.tiles)
    assert torch.equal(ours.global_view, theirs.global_view)


def test_it_is_used_only_where_it_is_known_to_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resizing.choose(choice.parse("auto")) is resizing.by_kernel
    assert resizing.choose(choice.parse("auto,-compiled")) is by_pillow
    assert resizing.choose(choice.parse("plain")) is by_pillow
    monkeypatch.setattr(PIL, "__version__", "14.0.0")
    assert resizing.choose(choice.parse("auto")) is by_pillow


@pytest.mark.usefixtures("any_size")
def test_without_a_compiler_pillow_does_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiling.library.cache_clear()
    image = noise(50, 60)
    try:
        with caplog.at_level(logging.WARNING):
            ours = resizing.by_kernel(image, [(20, 30)])[0]
    finally:
        compiling.library.cache_clear()
    np.testing.assert_array_equal(ours, by_pillow(image, [(20, 30)])[0])
    assert "no C++ compiler" in caplog.text
