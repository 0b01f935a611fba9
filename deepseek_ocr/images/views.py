"""From a picture to the square views that the network sees.

Everything here must match the official preprocessing to the pixel, so resizing is Pillow's
and the arithmetic is plain; `tests/golden/preprocess.json` holds what the official code gave.
"""

from __future__ import annotations

import functools
import io
import os
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from einops import rearrange
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from deepseek_ocr.errors import ImageError, ImageTooLargeError
from deepseek_ocr.images.colors import to_rgb
from deepseek_ocr.settings import CELL, CropSettings

if TYPE_CHECKING:
    import torch

Source = str | os.PathLike[str] | bytes | BinaryIO | Image.Image

Size = tuple[int, int]
"""Width and height, px."""

Pixels = np.ndarray[Any, Any]

PADDING = (127, 127, 127)
"""Colour around a padded view: the official mean 0.5 in 8 bits."""

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "HEIF", "AVIF", "JPEG2000", "PPM")
"""What Pillow may try: the formats pages come in, none that starts another program (EPS does)."""

LARGEST_STRETCHED = 640
"""Without tiles, views up to this side in pixels stretch the page, larger ones pad it: a fixed
number in the official code."""

MIN_TILES, MAX_TILES = 2, 9
"""Fewest and most tiles of one page in the official code."""


@dataclass(frozen=True)
class ImageLimits:
    """Refused before decoding: more bytes in the file, more pixels in the picture.

    178,956,970 px is the bound at which Pillow refuses to open a picture, so a larger `max_pixels`
    has no effect on files.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 178_956_970


@dataclass(frozen=True)
class Views:
    """What the network sees of one page, normalised to [-1, 1], float32.

    - `global_view`: `[3, S, S]`
    - `tiles`: `[n, 3, T, T]`, row by row; n is 0 where the page has none
    - `grid`: tiles as (columns, rows); (1, 1) where there are none
    """

    global_view: torch.Tensor
    tiles: torch.Tensor
    grid: tuple[int, int]

    @property
    def token_count(self) -> int:
        """Vision tokens these views become: tiles, global view, separator."""
        cells = self.global_view.shape[-1] // CELL
        count = cells * (cells + 1) + 1
        if len(self.tiles):
            columns, rows = self.grid
            cells = self.tiles.shape[-1] // CELL
            count += (columns * cells + 1) * rows * cells
        return count


def open_image(source: Source, limits: ImageLimits | None = None) -> Image.Image:
    """Open a picture as RGB, upright (EXIF), first frame, from a path, bytes, stream or image.

    `info["more_pages"]` of what is returned is True where a TIFF holds further pages.

    Transparency, palettes, CMYK, grey, 16-bit and floating point become 8-bit RGB. The size is
    checked before any pixel is decoded.

    Raises `ImageTooLargeError` beyond `limits`, `ImageError` for anything that is no picture.
    """
    limits = limits or ImageLimits()
    if isinstance(source, Image.Image):
        return _decode(source, "The image", limits)
    data, name = _read(source, limits)
    if data.getvalue().startswith(b"%PDF-"):
        raise ImageError(
            f"{name} is a PDF, a document of many pages; give it to deepseek-ocr read, or make "
            "pictures of its pages with deepseek_ocr.documents.renderer."
        )
    with _open(data, name, limits) as image:
        return _decode(image, name, limits)


def open_frames(file: Path | BinaryIO, name: str, limits: ImageLimits | None = None) -> Image.Image:
    """Open a picture without decoding it: `seek` chooses a frame, `open_image` decodes it.

    `name` is what messages call it. Raises as `open_image`.
    """
    return _open(file, name, limits or ImageLimits())


def _open(file: BinaryIO | Path, name: str, limits: ImageLimits) -> Image.Image:
    try:
        with _quiet:
            return Image.open(file, formats=_formats())
    except Image.DecompressionBombError as error:
        raise ImageTooLargeError(
            f"{name} has more than the {limits.max_pixels:,} pixels allowed; scale it down (the "
            "model sees at most about 1920 x 1920 of them)."
        ) from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not a picture that can be opened; use JPEG, PNG, WebP, HEIC, TIFF, BMP, "
            "GIF, JPEG 2000, AVIF or PPM."
        ) from error
    except Exception as error:
        raise _damaged(name, error) from error


def _decode(image: Image.Image, name: str, limits: ImageLimits) -> Image.Image:
    check_pixels(image, name, limits)
    try:
        with _quiet:
            more_pages = isinstance(image, TiffImageFile) and bool(image.tag_v2.next)
            page = to_rgb(image)
            page.info["more_pages"] = more_pages
            return page
    except Exception as error:  # decoders of damaged files raise whatever they tripped over
        raise _damaged(name, error) from error


class _Quiet:
    """Without Pillow's warnings: of half the bound enforced here, of odd metadata.

    What Python warns of belongs to the whole process, and pages are opened in several threads: the
    first in sets it, the last out puts it back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._kept = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._kept = warnings.catch_warnings()
                self._kept.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *error: Any) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._kept.__exit__(*error)


_quiet = _Quiet()


def _damaged(name: str, error: Exception) -> ImageError:
    return ImageError(f"{name} is damaged or incomplete ({error}); save or download it again.")


def _read(
    source: str | os.PathLike[str] | bytes | BinaryIO, limits: ImageLimits
) -> tuple[io.BytesIO, str]:
    """The bytes behind `source`, no more than allowed, and what to call it in messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), "The image"
    elif isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ImageError(
            f"{source} is an address, and addresses are not fetched here; download the picture, "
            "for example with: curl -fsSLo page.jpg ADDRESS"
        )
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        name = str(path)
        try:
            if not path.is_file():  # also keeps out pipes and devices that never end
                what = "is a folder" if path.is_dir() else "does not exist or is not a file"
                raise ImageError(f"{name} {what}; give the path of a picture.")
            with path.open("rb") as file:
                data = file.read(limits.max_bytes + 1)
        except OSError as error:
            raise ImageError(f"{name} cannot be read: {error.strerror}.") from error
    elif hasattr(source, "read"):
        data, name = _read_stream(source, limits.max_bytes + 1), "The image"
    else:
        raise ImageError(
            f"An image cannot be made from {type(source).__name__}; "
            "give a path, bytes, a binary stream or a PIL image."
        )
    if not data:
        raise ImageError(f"{name} is empty (zero bytes); check where it came from.")
    if len(data) > limits.max_bytes:
        raise ImageTooLargeError(
            f"{name} is larger than {limits.max_bytes / 2**20:.0f} MiB; compress or scale it down."
        )
    return io.BytesIO(data), name


def _read_stream(stream: BinaryIO, most: int) -> bytes:
    """Up to `most` bytes; a raw stream may give fewer at a time than it is asked for."""
    pieces: list[bytes] = []
    left = most
    while left:
        piece = stream.read(left)
        if not piece:
            break
        if not isinstance(piece, bytes):
            raise ImageError("The image stream gave text; open it in binary mode.")
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces)


def check_pixels(image: Image.Image, name: str, limits: ImageLimits) -> None:
    """Look at the size that a picture's head gives, before anything of it is decoded.

    Raises `ImageTooLargeError`, and `ImageError` where a side is empty.
    """
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"{name} is {width} x {height} px, more than the {limits.max_pixels:,} px allowed; "
            "scale it down (the model sees at most about 1920 x 1920 px of it)."
        )
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels; check where it came from.")


@functools.cache
def _formats() -> list[str]:
    """Those of `FORMATS` that this Pillow can read; HEIC comes from `pillow-heif`."""
    from pillow_heif import register_heif_opener

    register_heif_opener()
    Image.init()  # Pillow knows only a few formats before
    return [name for name in FORMATS if name in Image.OPEN]


def _resize(image: Image.Image, sizes: Sequence[Size]) -> list[Pixels]:
    """An RGB picture resized to each of `sizes`, bicubic: `[height, width, 3]`, 8 bits."""
    image.load()
    with ThreadPoolExecutor(len(sizes)) as pool:  # Pillow lets other threads run while it resizes
        return list(pool.map(lambda size: np.asarray(image.resize(size)), sizes))


def make_views(image: Image.Image, crop: CropSettings) -> Views:
    """Cut an RGB page into its views as the official code does (see `CropSettings`)."""
    import torch  # late, so that a process that only opens pictures stays small

    width, height = image.size
    if crop.crop_mode:
        grid, tiled = (1, 1), []
        if max(image.size) > crop.image_size:
            grid = choose_grid(width, height, crop.image_size)
            tiled = [(grid[0] * crop.image_size, grid[1] * crop.image_size)]
        fitted, *page = _resize(image, [_fit(width, height, crop.base_size), *tiled])
        views = _normalise(_pad(fitted, crop.base_size), (1, 1))
        tiles = torch.empty(0, 3, crop.image_size, crop.image_size)
        return Views(views[0], _normalise(page[0], grid) if page else tiles, grid)
    side = crop.image_size
    stretched = side <= LARGEST_STRETCHED
    square = _resize(image, [(side, side) if stretched else _fit(width, height, side)])[0]
    views = _normalise(_pad(square, side), (1, 1))
    return Views(views[0], torch.empty(0, 3, side, side), (1, 1))


def choose_grid(width: int, height: int, side: int) -> tuple[int, int]:
    """Crop grid (columns, rows) of 2 to 9 tiles whose shape is closest to the page's.

    On ties the larger grid wins if the page has more than half as many pixels as its tiles.
    """
    grids = [
        (columns, rows)
        for columns in range(1, MAX_TILES + 1)
        for rows in range(1, MAX_TILES + 1)
        if MIN_TILES <= columns * rows <= MAX_TILES
    ]
    best, best_difference = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        difference = abs(width / height - columns / rows)
        roomy = width * height > 0.5 * side * side * columns * rows
        if difference < best_difference or (difference == best_difference and roomy):
            best, best_difference = (columns, rows), difference
    return best


def _fit(width: int, height: int, side: int) -> Size:
    """The largest size of this shape within a square of `side` px; one pixel of a page so thin
    that it would be scaled to nothing."""
    if width > height:
        return side, max(1, round(height / width * side))
    return max(1, round(width / height * side)), side


def _pad(pixels: Pixels, side: int) -> Pixels:
    """A page fitted into a square of `side` px, in its middle, with grey around it."""
    height, width, _ = pixels.shape
    if (width, height) == (side, side):
        return pixels
    padded = np.full((side, side, 3), PADDING, np.uint8)
    left, top = round((side - width) * 0.5), round((side - height) * 0.5)
    padded[top : top + height, left : left + width] = pixels
    return padded


def _normalise(pixels: Pixels, grid: tuple[int, int]) -> torch.Tensor:
    """RGB pixels cut into `grid` (columns, rows), row by row: `[n, 3, H, W]` float32 in [-1, 1]
    (mean 0.5, deviation 0.5)."""
    import torch

    columns, rows = grid
    cut = "(rows h) (columns w) c -> (rows columns) c h w"
    planes = rearrange(torch.tensor(pixels), cut, columns=columns, rows=rows).contiguous()
    return planes.float().div_(255).sub_(0.5).div_(0.5)
