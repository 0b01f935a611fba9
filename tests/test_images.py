"""Pages become views exactly as the official code makes them, and bad files are refused."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from deepseek_ocr import presets
from deepseek_ocr.errors import ImageError, ImageTooLargeError
from deepseek_ocr.images.image_loading import open_image
from deepseek_ocr.images.limits import ImageLimits
from deepseek_ocr.images.views import choose_grid, make_views
from deepseek_ocr.settings import CropSettings
from tests.conftest import GOLDEN, reference

CASES = json.loads((GOLDEN / "preprocess.json").read_text())["cases"]

TOLERANCE = 2e-3
"""Of figures rounded to three decimals from half precision."""


def probes(view: torch.Tensor) -> list[float]:
    side = view.shape[-1]
    rows = [side * i // 8 + side // 16 for i in (0, 2, 4, 6)]
    columns = [side * j // 8 + side // 16 for j in range(8)]
    return [view[c, y, x].half().item() for c in (0, 2) for y in rows for x in columns]


def same_view(view: torch.Tensor, golden: dict[str, Any]) -> bool:
    ours = [*view.mean((1, 2)).tolist(), *view.std((1, 2)).tolist(), *probes(view)]
    theirs = [*golden["mean"], *golden["std"], *golden["probe"]]
    return len(ours) == len(theirs) and np.allclose(ours, theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['preset']}-{case['image']}")
def test_views_match_the_official_preprocessing(case: dict[str, Any]) -> None:
    page = open_image(GOLDEN / "images" / case["image"])
    views = make_views(page, presets.crop_for(case["preset"]))
    assert list(views.grid) == case["crop_grid"]
    assert views.token_count == case["vision_tokens"]
    assert list(views.global_view.shape[1:]) == case["global_size"]
    assert len(views.tiles) == case["n_tiles"]
    assert views.global_view.dtype == torch.float32
    assert same_view(views.global_view, case["global_view"])
    assert all(
        same_view(tile, golden) for tile, golden in zip(views.tiles, case["tiles"], strict=True)
    )


def test_grids_and_counts_of_real_pages() -> None:
    for page in json.loads(reference("real", "pages.json").read_text()):
        views = make_views(open_image(reference("real", page["fixture"])), CropSettings())
        for mode in page["modes"].values():
            assert [list(views.grid)] == mode["images_spatial_crop"]
            assert views.token_count == mode["n_image_tokens"]


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (641, 1)])
def test_extreme_shapes_still_give_views(preset: str, size: tuple[int, int]) -> None:
    views = make_views(Image.new("RGB", size, "white"), presets.crop_for(preset))
    assert torch.isfinite(views.global_view).all()
    assert len(views.tiles) in (0, views.grid[0] * views.grid[1])


def test_grid_prefers_more_tiles_on_ties_only_for_large_pages() -> None:
    assert choose_grid(900, 900, 640) == (2, 2)
    assert choose_grid(1920, 1920, 640) == (3, 3)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (30, 20), (200, 10, 10))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_each_format_opens_from_bytes_stream_path_and_image(kind: str, tmp_path: Path) -> None:
    data = encoded(RED, kind)
    path = tmp_path / "page"
    path.write_bytes(data)
    for source in (data, io.BytesIO(data), path, str(path), Image.open(io.BytesIO(data))):
        page = open_image(source)
        assert (page.mode, page.size) == ("RGB", (30, 20))
        assert np.abs(np.asarray(page).astype(int) - (200, 10, 10)).max() < 12


def test_first_frame_of_a_moving_gif() -> None:
    data = encoded(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (30, 20), "blue")])
    assert np.asarray(open_image(data))[0, 0, 0] > 150


@pytest.mark.parametrize("pages", [1, 3])
def test_further_pages_of_a_tiff_are_noticed(pages: int) -> None:
    data = encoded(RED, "TIFF", save_all=True, append_images=[RED] * (pages - 1))
    assert open_image(data).info["more_pages"] is (pages > 1)


def test_heic_opens() -> None:
    """What phones of Apple take."""
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(RED).save(buffer)
    assert open_image(buffer.getvalue()).size == (30, 20)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    grey = np.asarray(open_image(encoded(Image.fromarray(ramp), "PNG")))[..., 0]
    assert grey[0, 0] == 0
    assert grey[-1, -1] == 255
    assert 126 <= grey[8, 0] <= 130


def test_floating_point_grey_with_nan_opens() -> None:
    values = np.array([[0.0, 1.0], [0.5, np.nan]], dtype=np.float32)
    assert np.asarray(open_image(Image.fromarray(values)))[..., 0].tolist() == [[0, 255], [128, 0]]


def test_black_text_on_a_see_through_ground_stays_readable() -> None:
    page = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    page.paste((0, 0, 0, 255), (5, 5, 10, 10))
    pixels = np.asarray(open_image(page))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[7, 7].tolist() == [0, 0, 0]


def test_white_text_on_a_see_through_ground_stays_readable() -> None:
    page = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
    page.paste((255, 255, 255, 255), (5, 5, 10, 10))
    pixels = np.asarray(open_image(page))
    assert (pixels[0, 0, 0], pixels[7, 7, 0]) == (0, 255)


@pytest.mark.parametrize("mode", ["I;16", "RGBA"])
def test_odd_pixel_formats_cost_little_memory_on_top(mode: str) -> None:
    """A small file of many pixels must not take many times the memory of its pixels."""
    import tracemalloc

    side = 3000
    image = Image.new(mode, (side, side))
    data = encoded(image, "PNG")
    assert len(data) < 100_000
    tracemalloc.start()
    try:
        open_image(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * side * side  # numpy's share; Pillow's own buffers are not traced


def test_rotated_photo_comes_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encoded(RED, "JPEG", exif=exif)).size == (20, 30)


def test_a_raw_stream_may_give_its_bytes_in_pieces() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 1, 10))

    assert open_image(Slow(encoded(RED, "PNG"))).size == (30, 20)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a" * 300, "cannot be read"),
        (b"", "empty"),
        (b"GIF89a", "damaged|not a picture"),
        (b"not an image at all", "not a picture"),
        (b"%PDF-1.7\n", "is a PDF.*deepseek-ocr read"),
        ("https://example.org/page.jpg", "addresses are not fetched"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a picture"),
        (encoded(RED, "PNG")[:60], "damaged"),
        (encoded(Image.effect_noise((200, 200), 90), "JPEG")[:900], "damaged"),
        (png_header(100, 100), "damaged"),
        ("no/such/file.png", "does not exist"),
        ("/dev/zero", "is not a file"),
        (str(GOLDEN), "is a folder"),
        pytest.param(io.StringIO("text"), "binary mode", id="text stream"),
        (42, "int"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_input_is_refused_with_a_reason(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        open_image(source)


def test_too_many_pixels_are_refused_before_decoding() -> None:
    with pytest.raises(ImageTooLargeError, match="pixels"):
        open_image(png_header(20_000, 20_000))
    with pytest.raises(ImageTooLargeError, match="30 x 20"):
        open_image(RED, ImageLimits(max_pixels=100))


def test_too_many_bytes_are_refused(tmp_path: Path) -> None:
    limits = ImageLimits(max_bytes=1000)
    (tmp_path / "page.png").write_bytes(bytes(1001))
    for source in (bytes(1001), io.BytesIO(bytes(5000)), tmp_path / "page.png"):
        with pytest.raises(ImageTooLargeError, match="larger than"):
            open_image(source, limits)
