"""JSON and safetensors out of a tar that nobody vouches for.

The tar is refused as a whole if it holds a link, a device, a hole, or a name that climbs: an honest
checkpoint has none of these. Everything else in it, Python above all, is left where it is.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path, PurePosixPath, PureWindowsPath

from deepseek_ocr.errors import CheckpointError

LARGEST_JSON = 64 * 2**20
"""Bytes; the tokenizer, the largest of them, has under 10 MB."""

_MOST_MEMBERS = 1000
_LONGEST_NAME = 64 * 1024
_MOST_NAMES = 4
_SUFFIXES = (".json", ".safetensors")
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_NAMES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME)
"""Pseudo-members that carry the name (and other properties) of the next one."""


def copy_out(tar: Path, folder: Path) -> None:
    """Copy the JSON and safetensors files at the root of `tar` into the empty `folder`. Raises
    `CheckpointError` where the tar is damaged, compressed, or holds what it must not, and `OSError`
    where the disk is full."""
    try:
        places = _check_headers(tar)
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                # Compared before the next header is read: from a place of the tar's own choosing.
                if not member.isdir() and (member.offset_data, member.size) not in places:
                    raise CheckpointError(f"the headers of {member.name} in the tar disagree.")
                if name := _wanted(member):
                    _copy(archive, member, folder / name)
    except (tarfile.TarError, ValueError, ArithmeticError, EOFError, RecursionError) as error:
        raise CheckpointError(f"the tar is damaged ({error}).") from error


def _check_headers(tar: Path) -> set[tuple[int, int]]:
    """Walk the tar from header to header before `tarfile` allocates what a header asks for.

    Returns where each content begins, and its size. Raises `CheckpointError`.
    """
    end = tar.stat().st_size
    places: set[tuple[int, int]] = set()
    names_in_a_row = 0
    with tar.open("rb") as file:
        for _ in range(_MOST_MEMBERS):
            block = file.read(tarfile.BLOCKSIZE)
            if block == bytes(tarfile.BLOCKSIZE):
                return places
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if header.type == tarfile.DIRTYPE:
                continue
            _check_kind(header)
            names_in_a_row = names_in_a_row + 1 if header.type in _NAMES else 0
            if names_in_a_row > _MOST_NAMES:
                raise CheckpointError("the tar names one file over and over; refused.")
            blocks = -(-header.size // tarfile.BLOCKSIZE)
            places.add((file.tell(), header.size))
            following = file.tell() + blocks * tarfile.BLOCKSIZE
            if header.type in _NAMES and b"GNU.sparse" in file.read(header.size):
                raise CheckpointError("the tar holds a file with holes; refused.")
            if following > end:
                raise CheckpointError("the tar ends in the middle of a file.")
            file.seek(following)
    raise CheckpointError(f"the tar has over {_MOST_MEMBERS} members; refused.")


def _check_kind(header: tarfile.TarInfo) -> None:
    if header.type not in (*_FILES, *_NAMES):
        what = "which is no plain file (a link, a device)"
        raise CheckpointError(f"the tar holds {header.name!r}, {what}; refused.")
    if header.size < 0 or (header.type in _NAMES and header.size > _LONGEST_NAME):
        raise CheckpointError(f"the tar states {header.size} bytes for a name; refused.")


def _wanted(member: tarfile.TarInfo) -> str | None:
    """The plain name under which to keep `member`, or None; raises `CheckpointError`."""
    path = PurePosixPath(member.name)
    strange = PureWindowsPath(member.name)
    if path.is_absolute() or strange.drive or "\\" in member.name or ".." in path.parts:
        raise CheckpointError(f"the tar holds {member.name!r}, which leaves its folder; refused.")
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        raise CheckpointError(f"the tar holds {member.name!r}, which is no plain file; refused.")
    if len(path.parts) != 1 or path.suffix not in _SUFFIXES:
        return None
    if path.suffix == ".json" and member.size > LARGEST_JSON:
        raise CheckpointError(f"{member.name} in the tar has {member.size} bytes; refused.")
    return path.name


def _copy(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = archive.extractfile(member)
    if source is None:
        raise CheckpointError(f"{member.name} in the tar has no content.")
    try:
        with source, target.open("xb") as copy:
            shutil.copyfileobj(source, copy, 2**20)
    except FileExistsError as error:
        raise CheckpointError(f"the tar holds {member.name} twice; refused.") from error
