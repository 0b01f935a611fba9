"""Files and folders that appear under their names whole or not at all, and bounded reading."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from deepseek_ocr.errors import FileWriteError, InputError

LARGEST_FILE = 2 * 2**30
"""Bytes of a text or JSON file that are read at most."""


def part_path(path: Path) -> Path:
    """The hidden file beside `path` in which it is written until it is complete. The name is the
    same every time, so the next run removes what a killed one left."""
    return path.with_name(f".{path.name}.part")


NOT_TEXT = re.compile("[\0\ud800-\udfff]")
"""Characters that UTF-8 files and JSON cannot keep: null, and halves of surrogate pairs."""


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A stream whose bytes become the file `path` when the block ends without an error.

    A process killed at any moment leaves the old content or all of the new. With `sync` that also
    holds after a power cut; without, it is faster, for what can be made again. If a symbolic link
    is in the place of the part, it is removed, not followed. Raises `OSError` if the disk is full
    or the folder read-only.
    """
    part = part_path(path)
    part.unlink(missing_ok=True)
    try:
        with part.open("xb") as stream:
            yield stream
            if sync:
                _sync_stream(stream)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if sync and os.name != "nt":  # Windows opens no folders
        sync_path(path.parent)


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Raise an `OSError` of the block as a `FileWriteError` that names `path` and what to do."""
    try:
        yield
    except OSError as error:
        what = f"{path} cannot be written: {error.strerror or error}"
        raise FileWriteError(f"{what}; make room, or choose another output folder.") from error


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write each content to its file; all of them are on the disk before the first gets its name.
    Missing folders are made. Raises `FileWriteError`; no partial file is left."""
    with ExitStack() as stack:
        for path, data in reversed([*contents.items()]):  # the first entered is the last renamed
            stack.enter_context(explain_write_errors(path))
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(atomic_write(path))
            stream.write(data)
            _sync_stream(stream)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to the file `path`, whole or not at all. Raises `FileWriteError`."""
    write_files({path: data})


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, whole or not at all. Raises `FileWriteError`."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON to `path`, whole or not at all. Raises `FileWriteError`."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """`value` as indented JSON in UTF-8. Raises `ValueError` for numbers that JSON lacks."""
    text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    return text.encode("utf-8", "replace")


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """An empty folder that replaces `folder` when the block ends without an error. Raises
    `FileWriteError`; the old content of `folder` then stays."""
    staging, old = part_path(folder), _old_path(folder)
    with explain_write_errors(folder):
        recover_folder(folder)
        try:
            for leftover in (staging, old):
                shutil.rmtree(leftover, ignore_errors=True)
            staging.mkdir(parents=True)
            yield staging
            if folder.exists():
                os.replace(folder, old)
            os.replace(staging, folder)
        finally:
            recover_folder(folder)
            for leftover in (staging, old):
                shutil.rmtree(leftover, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put back the old folder if `replace_folder` was stopped between its two renames. Several
    processes may call this at once; one of them does it. Raises `OSError`."""
    old = _old_path(folder)
    if old.exists() and not folder.exists():
        with suppress(FileNotFoundError):
            os.replace(old, folder)


def _old_path(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def sync_path(path: Path) -> None:
    """Put the content of a file, or the names in a folder, on the disk. Raises `OSError`."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_stream(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def read_text(path: Path, limit: int = LARGEST_FILE) -> str:
    """The UTF-8 text of a file of at most `limit` bytes; a byte order mark is dropped. Raises
    `InputError` for a file that is missing, larger, or of another encoding."""
    try:
        if not path.is_file():  # also keeps out pipes and devices that never end
            raise InputError(f"{path} does not exist or is not a file; check the path.")
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise InputError(f"{path} has more than {limit:,} bytes; split it.")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); convert it.") from error


def read_json(path: Path, limit: int = LARGEST_FILE) -> Any:
    """What the JSON file `path` holds. Raises `InputError`; see `read_text`."""
    text = read_text(path, limit)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}).") from error
