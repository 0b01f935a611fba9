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
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.weights.tar_archive import LARGEST_JSON

RECORD = "complete.json"

ESSENTIAL = ("config.json", "tokenizer.json")
"""What the program cannot do without, besides the safetensors."""

_INDEX = "model.safetensors.index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Condition(Enum):
    """What may be found under the name of a checkpoint."""

    ABSENT = "not here"
    READY = "ready"
    DAMAGED = "damaged"
    """Made by this program and changed since."""
    UNRECORDED = "complete, but placed by hand: no sums are on record"
    INCOMPLETE = "not a whole checkpoint, and not made by this program"


@dataclass(frozen=True)
class State:
    """The condition of a folder, and why."""

    condition: Condition
    detail: str = ""


@dataclass(frozen=True)
class Entry:
    """Size in bytes and SHA-256 (hexadecimal) of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Record:
    """Where the files of a folder came from, and what each of them is."""

    source: str
    revision: str
    files: Mapping[str, Entry]


def examine(folder: Path) -> State:
    """The state of `folder`, by sizes and headers; nothing is hashed."""
    try:
        if not folder.is_dir():
            there = folder.exists() or folder.is_symlink()
            return (
                State(Condition.INCOMPLETE, "it is no folder.")
                if there
                else State(Condition.ABSENT)
            )
        if not any(folder.iterdir()):
            return State(Condition.ABSENT)
        if not (folder / RECORD).exists():
            return _examine_unrecorded(folder)
        check_sizes(folder, read_record(folder))
    except CheckpointError as error:
        return State(Condition.DAMAGED, str(error))
    except OSError as error:
        return State(Condition.INCOMPLETE, f"it cannot be read: {error.strerror}.")
    return State(Condition.READY)


def _examine_unrecorded(folder: Path) -> State:
    try:
        check_complete(folder, ESSENTIAL)
    except CheckpointError as error:
        return State(Condition.INCOMPLETE, str(error))
    return State(Condition.UNRECORDED)


def check_complete(folder: Path, names: Sequence[str]) -> None:
    """See that `folder` has `names` and its weights, all of them readable to their end.

    Raises `CheckpointError` naming the first file that is missing or damaged.
    """
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
    """Names of the safetensors files of `folder`: those in its index, or all `model*`.

    Raises `CheckpointError` where there are none, or the index points elsewhere.
    """
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
    if not names or not all(_plain(name) and name.endswith(".safetensors") for name in names):
        raise CheckpointError(f"{_INDEX} names files that are none of this folder's; refused.")
    return names


def data_files(folder: Path) -> list[Path]:
    """The JSON and safetensors files at the root of `folder`, without a record."""
    paths = [*folder.glob("*.json"), *folder.glob("*.safetensors")]
    return sorted(path for path in paths if path.is_file() and path.name != RECORD)


def make_record(folder: Path, source: str, revision: str) -> Record:
    """A record of the `data_files` of `folder`, hashing them all."""
    files = {path.name: _entry(path) for path in data_files(folder)}
    return Record(source, revision, files)


def write_record(folder: Path, record: Record) -> None:
    """Mark `folder` as complete, all at once: half a record would make it count as damaged."""
    files = {
        name: {"size": entry.size, "sha256": entry.sha256} for name, entry in record.files.items()
    }
    text = {"format": 1, "source": record.source, "revision": record.revision, "files": files}
    part = folder / f"{RECORD}.part"
    part.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    part.replace(folder / RECORD)


def read_record(folder: Path) -> Record:
    """The record of `folder`; raises `CheckpointError` where it is damaged.

    And `OSError` where it cannot be opened, which is no sign of damage.
    """
    (folder / RECORD).open("rb").close()
    raw = _read_json(folder / RECORD)
    try:
        files = {name: Entry(file["size"], file["sha256"]) for name, file in raw["files"].items()}
        record = Record(str(raw["source"]), str(raw["revision"]), files)
        known = raw["format"] == 1
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{RECORD} is damaged.") from error
    honest = all(_plain(name) and _honest(entry) for name, entry in files.items())
    if not known or not honest or not set(ESSENTIAL) <= files.keys():
        raise CheckpointError(f"{RECORD} is damaged.")
    return record


def check_sizes(folder: Path, record: Record) -> None:
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


def check_sums(folder: Path, record: Record) -> None:
    """Raises `CheckpointError` naming each file of `record` whose content has changed."""
    check_sizes(folder, record)
    changed = [name for name, entry in record.files.items() if _entry(folder / name) != entry]
    if changed:
        raise CheckpointError(f"the content of {', '.join(changed)} has changed.")


def _entry(path: Path) -> Entry:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Entry(os.fstat(file.fileno()).st_size, digest)


def _honest(entry: Entry) -> bool:
    size_fits = isinstance(entry.size, int) and not isinstance(entry.size, bool) and entry.size >= 0
    return size_fits and isinstance(entry.sha256, str) and bool(_SHA256.fullmatch(entry.sha256))


def _plain(name: object) -> bool:
    """Is `name` the name of a file in the folder itself?"""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and (PurePath(name).name == name and "\\" not in name and "\0" not in name)
    )


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise CheckpointError(f"{path.name} has over {LARGEST_JSON} bytes.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} is damaged: it is not JSON.") from error
