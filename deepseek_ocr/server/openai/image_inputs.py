"""Pictures of a request: from data URIs, and from addresses where the server allows them."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

from deepseek_ocr.errors import ImageError
from deepseek_ocr.images.image_loading import check_pixels, open_frames
from deepseek_ocr.images.limits import ImageLimits
from deepseek_ocr.server.api_errors import ApiError
from deepseek_ocr.server.data_uri import decode_base64, is_base64_uri
from deepseek_ocr.server.server_state import Caller

P = ParamSpec("P")
Made = TypeVar("Made")

_AT_ONCE = 2**16
"""Characters and bytes up to which a picture is decoded and looked at on the event loop: that takes
a fraction of a millisecond, to another thread and back takes more beside one that computes."""


async def pictures(caller: Caller, images: Sequence[tuple[str, str]]) -> list[bytes]:
    """The bytes of the pictures at the addresses of `images`, each with where it stood; all are
    pictures by their heads and no larger than allowed.

    Raises `ApiError` 400 (`param` says where it stood), 413 and 429, `ImageError` and
    `ImageTooLargeError`.
    """
    fetcher = caller.state.fetcher
    allowance = fetcher.allowance(caller.hold) if fetcher else None
    found = []
    for url, param in images:
        scheme = url[:8].lower()
        if scheme.startswith("data:"):
            data = await _away(len(url), _from_data_uri, url, param)
        elif not scheme.startswith(("http://", "https://")):
            raise ApiError(
                400, "A picture must be a data URI (data:image/jpeg;base64,…); paths and other "
                "addresses are refused.", "invalid_image", param,
            )  # fmt: skip
        elif fetcher is None or allowance is None:
            raise ApiError(
                400, "Addresses are not fetched by this server (it runs without --allow-urls); "
                "send the picture itself as data:image/jpeg;base64,…", "url_not_allowed", param,
            )  # fmt: skip
        else:
            data = await fetcher.fetch(url, param, allowance)
        await _away(len(data), _check_head, data, caller.state.limits)
        found.append(data)
    return found


async def _away(size: int, work: Callable[P, Made], *args: P.args, **named: P.kwargs) -> Made:
    """What `work` makes: at once of something small, else in another thread."""
    if size <= _AT_ONCE:
        return work(*args, **named)
    return await asyncio.to_thread(work, *args, **named)


def _check_head(data: bytes, limits: ImageLimits) -> None:
    """Look at a picture's head alone: is it one, and of how many pixels? Raises `ImageError` and
    `ImageTooLargeError`."""
    if data.startswith(b"%PDF-"):
        raise ApiError(400, "This is a PDF; documents go to /v1/ocr.", "invalid_image", "image_url")
    if not data:
        raise ImageError("The image is empty (zero bytes); check where it came from.")
    with open_frames(io.BytesIO(data), "The image", limits) as image:
        check_pixels(image, "The image", limits)


def _from_data_uri(url: str, param: str) -> bytes:
    if not is_base64_uri(url):
        raise ApiError(400, "A data URI must read data:image/jpeg;base64,…", "invalid_image", param)
    try:
        return decode_base64(url)
    except ValueError as error:
        message = "The picture's base64 is damaged; encode it again."
        raise ApiError(400, message, "invalid_image", param) from error
