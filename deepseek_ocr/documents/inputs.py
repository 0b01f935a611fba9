"""What there is to read: which files, what each is called, which of its pages.

No file is read further than its first bytes: a folder of ten thousand is listed in no time.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from deepseek_ocr.errors import DocumentError, SettingsError
from deepseek_ocr.images.limits import PICTURE_SUFFIXES

SUFFIXES = PICTURE_SUFFIXES | {".pdf", ".zip"}
"""Files that are taken from folders; one that is named itself is taken whatever its suffix."""

MAX_BYTES = 4 * 2**30
"""Largest file that is opened, and the most that is taken from standard input."""

LONGEST_CHOICE = 1000
"""Characters of the text that chooses pages."""

_HEAD = 1024
"""Bytes within which a PDF says that it is one."""

_LONGEST_NAME = 100
"""Bytes of an output folder's name: what every file system takes, endings included."""

_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d|manifest.*)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Input:
    """A file to read.

    - `key`: how it is known wherever the job runs: its path below the folder that was named, with
      forward slashes; unique within a listing
    - `error`: why there is nothing to open, where that is known already
    - `label`: what people call it, where that is not its path
    """

    path: Path
    key: str
    error: str | None = None
    label: str = ""

    def __str__(self) -> str:
        return self.label or shown(self.path)


@dataclass(frozen=True)
class Listing:
    """The inputs in order, and the files of folders that are no pages by their names."""

    inputs: tuple[Input, ...]
    left_out: tuple[Path, ...] = ()


@dataclass(frozen=True)
class PageSelection:
    """Which pages to read, as (first, last) from 1, negative from the end; empty is all of them."""

    ranges: tuple[tuple[int, int], ...] = ()

    def of(self, count: int) -> list[int]:
        """The chosen numbers among 1 to `count`, in order, each once."""
        if not self.ranges:
            return list(range(1, count + 1))
        from_start = [tuple(at if at > 0 else count + 1 + at for at in one) for one in self.ranges]
        chosen: list[int] = []
        for begin, end in sorted(from_start):
            after = chosen[-1] if chosen else 0
            chosen.extend(range(max(begin, after + 1), min(end, count) + 1))
        return chosen


_ITEM = re.compile(r"(-?\d{1,9})(?:(-)(-?\d{1,9})?)?")


def parse_pages(text: str) -> PageSelection:
    """`1-3,7,-1` as a selection: pages count from 1, negative ones from the end; `5-` is the rest.
    Raises `SettingsError` for anything else, and beyond `LONGEST_CHOICE` characters."""
    if len(text) > LONGEST_CHOICE:
        raise SettingsError(f"Choose pages in at most {LONGEST_CHOICE} characters, as in 1-3,7,-1.")
    ranges = []
    for item in text.split(","):
        match = _ITEM.fullmatch(item.strip())
        first = int(match[1]) if match and match[1] else 0
        if match is None or first == 0 or match[3] in ("0", "-0"):
            what = f"There are no pages {item.strip()[:40]!r}; write 1-3,7,-1"
            how = "negative numbers from the end, 5- is everything from the fifth on."
            raise SettingsError(f"{what}: pages count from 1, {how}")
        last = int(match[3]) if match[3] else (-1 if match[2] else first)
        ranges.append((first, last))
    return PageSelection(tuple(ranges))


@dataclass(frozen=True)
class Shard:
    """The `index`-th (from 1) of `count` parts of the inputs."""

    index: int = 1
    count: int = 1

    def has(self, key: str) -> bool:
        """True where the input `key` is in this part: by its hash, equal on every machine."""
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index - 1


def parse_shard(text: str) -> Shard:
    """`2/8` as the second of eight parts. Raises `SettingsError` for anything else."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise SettingsError(f"{text!r} is no part; write i/n, the i-th of n, such as 1/4.")
    return Shard(int(match[1]), int(match[2]))


def find(arguments: Iterable[str]) -> Listing:
    """The files that `arguments` name: files, folders (with all below them) and glob patterns. What
    cannot be found is an input too, with its `error`."""
    inputs: list[Input] = []
    left_out: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if argument.startswith(("http://", "https://")):
            what = f"{argument} is an address, and addresses are not fetched here"
            advice = "download the file, for example with: curl -fsSLo page.jpg ADDRESS"
            inputs.append(Input(path, argument, f"{what}; {advice}"))
        elif os.path.exists(path):  # False for a name too long, or with a null byte
            _take(path, inputs, left_out)
        elif glob.has_magic(argument):
            matches = sorted(glob.glob(argument, recursive=True))
            for match in matches:
                _take(Path(match), inputs, left_out)
            if not matches:
                inputs.append(Input(path, argument, f"No file fits the pattern {argument}."))
        else:
            error = f"{shown(path)} does not exist; check the path."
            inputs.append(Input(path, path.as_posix(), error))
    return Listing(tuple(_with_unique_keys(inputs)), tuple(left_out))


def _take(path: Path, inputs: list[Input], left_out: list[Path]) -> None:
    """Add a file, or all files below a folder that are pages by their names."""
    if not path.is_dir():
        inputs.append(Input(path, path.as_posix()))
        return
    root = Path(os.path.abspath(path))
    for file in _walk(path):
        if file.suffix.lower() in SUFFIXES:
            key = f"{root.name}/{file.relative_to(path).as_posix()}"
            inputs.append(Input(file, key))
        else:
            left_out.append(file)


def _walk(folder: Path) -> Iterator[Path]:
    """Files below `folder` in order; hidden ones and links to folders are not followed."""
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(here, name)


def _with_unique_keys(inputs: Sequence[Input]) -> list[Input]:
    """Two folders of one name may hold files of one name: those go by their whole paths."""
    absolute = [os.path.abspath(found.path) for found in inputs]
    homes: dict[str, set[str]] = {}
    for found, path in zip(inputs, absolute, strict=True):
        homes.setdefault(found.key, set()).add(path)
    return [
        found if len(homes[found.key]) == 1 else Input(found.path, Path(path).as_posix())
        for found, path in zip(inputs, absolute, strict=True)
    ]


def each_once(inputs: Iterable[Input]) -> list[Input]:
    """`inputs` without the files that were named before."""
    return list({os.path.abspath(found.path): found for found in inputs}.values())


def output_names(inputs: Sequence[Input]) -> dict[str, str]:
    """The folder name of each input's outputs, by key: its stem, made safe.

    Inputs of one stem get a hash of their key behind it, so that a name does not depend on their
    order, nor on the part (`Shard`) in which they are read.
    """
    stems = {found.key: safe_name(found.path.stem) for found in inputs}
    shared = Counter(stem.casefold() for stem in stems.values())
    return {
        key: stem if shared[stem.casefold()] == 1 else with_hash(stem, key)
        for key, stem in stems.items()
    }


def with_hash(name: str, key: str) -> str:
    """`name` and eight digits that stand for `key`."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{name}-{digest[:8]}"


def safe_name(text: str) -> str:
    """`text` as the name of a folder on every system: never hidden, an option, or empty."""
    name = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode())
    name = _UNSAFE.sub("_", name).strip(" .").lstrip("-")
    name = name.encode()[:_LONGEST_NAME].decode(errors="ignore").strip(" .")
    if _RESERVED.fullmatch(name):
        name = f"{name}_"
    return name or "document"


def shown(path: Path | str) -> str:
    """A path as text that can be printed and written, whatever bytes its name is made of."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def may_have_pages(path: Path) -> bool:
    """True where the file begins as a PDF, a zip or a TIFF does: it may hold several pages."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return kind_of(head) != "picture" or head.startswith((b"II", b"MM"))


def kind_of(head: bytes) -> Literal["pdf", "zip", "picture"]:
    """What a file is by its first bytes."""
    if b"%PDF-" in head[:_HEAD]:
        return "pdf"
    return "zip" if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) else "picture"


def spool(stream: BinaryIO, folder: Path) -> Input:
    """Standard input as a file in `folder`, named after its content. Raises `DocumentError` where
    it is empty or beyond `MAX_BYTES`."""
    digest, size = hashlib.sha256(), 0
    path = folder / "stdin"
    with path.open("wb") as file:
        while piece := stream.read(1 << 20):
            size += len(piece)
            if size > MAX_BYTES:
                what = f"Standard input gives more than {MAX_BYTES >> 30} GiB"
                raise DocumentError(f"{what}; save it to a file and split it.")
            digest.update(piece)
            file.write(piece)
    if not size:
        raise DocumentError("Standard input is empty; check what was piped in.")
    name = f"stdin-{digest.hexdigest()[:8]}"
    return Input(path.rename(folder / name), name, label="-")
