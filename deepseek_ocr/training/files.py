"""Reading and writing the files of a run: bounded when read, whole or not at all when written."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepseek_ocr.errors import InputError, OcrError

STATE = "state"
"""Folder in a run's output from which it can go on."""

LARGEST_FILE = 2 * 2**30
"""Bytes of a JSON file that are read at most: a few hundred thousand annotated pages."""


class OutputError(OcrError):
    """A result cannot be written: the disk is full, or the folder is not ours."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says about writing to `path` into an `OutputError` that helps."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}; make room, or choose "
            "another output folder."
        ) from error


def write_all(contents: Mapping[Path, bytes]) -> None:
    """Put each content into its file: all of them are on the disk before the first gets its name.

    Raises `OutputError`; nothing half-written is left.
    """
    staged: dict[Path, str] = {}
    try:
        for path, data in contents.items():
            with writing(path):
                _stage(path, data, staged)
        for path, temporary in staged.items():
            with writing(path):
                os.replace(temporary, path)
    finally:
        for temporary in staged.values():
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _stage(path: Path, data: bytes, staged: dict[Path, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staged[path] = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(staged[path], 0o666 & ~_umask())


def write_bytes(path: Path, data: bytes) -> None:
    """Put `data` into `path`, whole or not at all. Raises `OutputError`."""
    write_all({path: data})


def write_text(path: Path, text: str) -> None:
    """Put `text` as UTF-8 into `path`, whole or not at all. Raises `OutputError`."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: Path, value: object) -> None:
    """Put `value` as JSON into `path`, whole or not at all. Raises `OutputError`."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: object) -> bytes:
    """`value` as indented JSON in UTF-8."""
    return (json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n").encode(
        "utf-8", "replace"
    )


def read_text(path: Path, most: int = LARGEST_FILE) -> str:
    """The UTF-8 text of a file of at most `most` bytes; a byte order mark is dropped.

    Raises `InputError` for a file that is missing, larger, or of another encoding.
    """
    try:
        if not path.is_file():  # also keeps out pipes and devices that never end
            raise InputError(f"{path} does not exist or is not a file; check the path.")
        with path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise InputError(f"{path} has more than {most:,} bytes; split it.")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}); convert it.") from error


def read_json(path: Path, most: int = LARGEST_FILE) -> Any:
    """What the JSON file `path` holds. Raises `InputError`, see `read_text`."""
    text = read_text(path, most)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}).") from error


def _umask() -> int:
    """What the user takes away from new files; the system has no way to ask without setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
