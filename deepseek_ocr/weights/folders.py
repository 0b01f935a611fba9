"""Is this folder a whole checkpoint? Its record of sizes and sums, and the checks against it.

A folder that this program made holds `complete.json`, written last, before the folder got its
name. It lists every file with its size and SHA-256: sizes are compared at each start (no time at
all), sums on demand.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.files import atomic_write, json_bytes
from deepseek_ocr.weights.tar_archive import LARGEST_JSON

RECORD = "complete.json"

ESSENTIAL = ("config.json", "tokenizer.json")
"""What the program cannot do without, besides the safetensors."""

_INDEX = "model.safetensors.index.json"
SHA256 = re.compile(r"[0-9a-f]{64}")
"""A sum as it is written in records and by hubs."""


class Condition(Enum):
    """What may be found under the name of a checkpoint."""

    ABSENT = "not here"
    READY = "ready"
    DAMAGED = "damaged"
    """Made by this program and changed since."""
    UNRECORDED = "complete, but placed by hand: no sums are on record"
    INCOMPLETE = "not a whole checkpoint, and not made by this program"


@dataclass(frozen=True)
class FolderState:
    """The condition of a folder, and why."""

    condition: Condition
    detail: str = ""

    @property
    def is_whole(self) -> bool:
        """True if the folder can be loaded."""
        return self.condition in (Condition.READY, Condition.UNRECORDED)


@dataclass(frozen=True)
class FileSum:
    """Size in bytes and SHA-256 (hexadecimal) of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class ChecksumRecord:
    """Where the files of a folder came from, and what each of them is."""

    source: str
    revision: str
    files: Mapping[str, FileSum]


def examine(folder: Path) -> FolderState:
    """The state of `folder`, by sizes and headers; nothing is hashed."""
    try:
        if not folder.is_dir():
            if folder.exists() or folder.is_symlink():
                return FolderState(Condition.INCOMPLETE, "it is no folder.")
            return FolderState(Condition.ABSENT)
        if not any(folder.iterdir()):
            return FolderState(Condition.ABSENT)
        recorded = (folder / RECORD).exists()
        try:
            if recorded:
                check_sizes(folder, read_record(folder))
            else:
                check_complete(folder, ESSENTIAL)
        except CheckpointError as error:
            return FolderState(Condition.DAMAGED if recorded else Condition.INCOMPLETE, str(error))
    except OSError as error:
        return FolderState(Condition.INCOMPLETE, f"it cannot be read: {error.strerror}.")
    return FolderState(Condition.READY if recorded else Condition.UNRECORDED)


def check_complete(folder: Path, names: Sequence[str]) -> None:
    """Check that `folder` has `names` and its weights, all of them readable to their end. Raises
    `CheckpointError` naming the first file that is missing or damaged."""
    for name in names:
        _check_file(folder / name)
    for name in weight_files(folder):
        _check_file(folder / name)


def _check_file(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path.name} is missing.")
    if path.suffix == ".json":
        _read_json(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="numpy"):
                pass  # compares the header's offsets with the size of the file
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path.name} is damaged or cut off ({error}).") from error


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files of `folder`: those in its index, or all `model*`. Raises
    `CheckpointError` if there are none, or the index points elsewhere."""
    if not (folder / _INDEX).exists():
        names = sorted(path.name for path in folder.glob("model*.safetensors"))
        if not names:
            raise CheckpointError("model*.safetensors is missing.")
        return names
    index = _read_json(folder / _INDEX)
    try:
        names = sorted(set(index["weight_map"].values()))
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{_INDEX} lists no files.") from error
    if not names or not all(_is_plain(name) and name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{_INDEX} names files that are none of this folder's; refused.")
    return names


def data_files(folder: Path) -> list[Path]:
    """The JSON and safetensors files at the root of `folder`, without a record."""
    paths = [*folder.glob("*.json"), *folder.glob("*.safetensors")]
    return sorted(path for path in paths if path.is_file() and path.name != RECORD)


def make_record(folder: Path, source: str, revision: str = "") -> ChecksumRecord:
    """A record of the `data_files` of `folder`, hashing them all."""
    files = {path.name: _file_sum(path) for path in data_files(folder)}
    return ChecksumRecord(source, revision, files)


def write_record(folder: Path, record: ChecksumRecord) -> None:
    """Mark `folder` as complete, all at once: half a record would make it count as damaged."""
    with atomic_write(folder / RECORD) as stream:
        stream.write(json_bytes({"format": 1, **asdict(record)}))


def read_record(folder: Path) -> ChecksumRecord:
    """The record of `folder`. Raises `CheckpointError` if it is damaged, and `OSError` if it cannot
    be opened, which is no sign of damage."""
    (folder / RECORD).open("rb").close()
    raw = _read_json(folder / RECORD)
    try:
        files = {name: FileSum(file["size"], file["sha256"]) for name, file in raw["files"].items()}
        record = ChecksumRecord(str(raw["source"]), str(raw["revision"]), files)
        known = raw["format"] == 1
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{RECORD} is damaged.") from error
    valid = all(_is_plain(name) and _is_valid(entry) for name, entry in files.items())
    if not known or not valid or not set(ESSENTIAL) <= files.keys():
        raise CheckpointError(f"{RECORD} is damaged.")
    return record


def check_sizes(folder: Path, record: ChecksumRecord) -> None:
    """Raises `CheckpointError` naming each file of `record` that is missing or of another size."""
    problems = []
    for name, entry in record.files.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (size := path.stat().st_size) != entry.size:
            problems.append(f"{name} has {size} bytes instead of {entry.size}")
    for name in set(weight_files(folder)) - record.files.keys():
        problems.append(f"{name} is not on record")
    if problems:
        raise CheckpointError(f"{'; '.join(problems)}.")


def check_sums(folder: Path, record: ChecksumRecord) -> None:
    """Raises `CheckpointError` naming each file of `record` whose content has changed."""
    check_sizes(folder, record)
    changed = [name for name, entry in record.files.items() if _file_sum(folder / name) != entry]
    if changed:
        raise CheckpointError(f"the content of {', '.join(changed)} has changed.")


def _file_sum(path: Path) -> FileSum:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileSum(os.fstat(file.fileno()).st_size, digest)


def _is_valid(entry: FileSum) -> bool:
    size_fits = type(entry.size) is int and entry.size >= 0
    return size_fits and isinstance(entry.sha256, str) and bool(SHA256.fullmatch(entry.sha256))


def _is_plain(name: object) -> bool:
    """Is `name` the name of a file in the folder itself?"""
    if not isinstance(name, str) or name in ("", ".."):
        return False
    return PurePath(name).name == name and "\\" not in name and "\0" not in name


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise CheckpointError(f"{path.name} has over {LARGEST_JSON} bytes.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is damaged: it is not JSON.") from error
