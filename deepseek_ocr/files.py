"""Files that appear under their name whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def part_of(path: Path) -> Path:
    """Where `path` is written until it is whole: hidden beside it, the same name every time.

    What a killed run left there is removed by the next and never piles up.
    """
    return path.with_name(f".{path.name}.part")


@contextmanager
def appearing(path: Path) -> Iterator[BinaryIO]:
    """A stream whose bytes become the file `path` when the block ends without an error.

    A process killed at any moment leaves in `path` what it held before or all of the new. After a
    power cut it may hold neither: this is for what can be made again, a page's record for one.
    A symbolic link in the part's place is removed, not followed. Raises `OSError`
    if the disk is full or the folder read-only.
    """
    part = part_of(path)
    part.unlink(missing_ok=True)
    try:
        with part.open("xb") as stream:
            yield stream
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """The same, on the disk before the name is: it outlasts a power cut too."""
    with appearing(path) as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put the new name itself on the disk, where the system can (Windows opens no folders)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
