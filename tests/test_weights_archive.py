"""Tars that nobody vouches for: what is copied out of them, and what they are refused for."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.weights import tar_archive
from tests.weights_world import FILES, ROOT, checkpoint_files, tar_of

CONTENT = {"config.json": b"{}", "model.safetensors": b"weights"}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder to copy into; all that lies outside of it must stay as it is."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def copy_out(tar: bytes, out: Path) -> list[str]:
    """Copy from `tar` and list what is there afterwards."""
    path = out.parent / "part.tar"
    path.write_bytes(tar)
    tar_archive.copy_out(path, out)
    return sorted(found.name for found in out.iterdir())


def member(
    name: str, kind: bytes = tarfile.REGTYPE, size: int = 0, link: str = ""
) -> tarfile.TarInfo:
    """A member as a hand-made tar may have it."""
    made = tarfile.TarInfo(name)
    made.type, made.size, made.linkname = kind, size, link
    return made


def refused(tar: bytes, out: Path, message: str) -> None:
    """The tar is refused, and nothing is to be found outside of the folder."""
    with pytest.raises(CheckpointError, match=message):
        copy_out(tar, out)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "part.tar"]


def test_only_data_is_copied_out(out: Path) -> None:
    files = checkpoint_files()
    folder = member("sub", tarfile.DIRTYPE)
    nested = member("sub/other.json", size=2)
    tar = tar_of(files, (folder, b""), (nested, b"{}"), (member("README.md", size=1), b"x"))
    assert copy_out(tar, out) == sorted(FILES)
    assert all((out / name).read_bytes() == files[name] for name in FILES)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_common_form_is_read(out: Path, form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name, content in CONTENT.items():
            made = member(f"./{name}", size=len(content))
            made.mtime = 0 if form == tarfile.USTAR_FORMAT else 0.5  # PAX: a header of its own
            tar.addfile(made, io.BytesIO(content))
        if form != tarfile.USTAR_FORMAT:
            tar.addfile(member(f"{'long' * 50}.txt"))
    assert copy_out(buffer.getvalue(), out) == sorted(CONTENT)


@pytest.mark.parametrize(
    "name", ["../evil.json", "/evil.json", "a/../../evil.json", "..", "c:evil.json", "a\\evil.json"]
)
def test_climbing_names(out: Path, name: str) -> None:
    refused(tar_of(CONTENT, (member(name, size=2), b"{}")), out, "leaves its folder")


def test_a_climbing_name_in_an_extended_header(out: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        made = member("config.json", size=2)
        made.pax_headers = {"path": "../evil.json"}
        tar.addfile(made, io.BytesIO(b"{}"))
    refused(buffer.getvalue(), out, "leaves its folder")


@pytest.mark.parametrize(
    ("kind", "link"),
    [
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "model.safetensors"),
        (tarfile.LNKTYPE, "../part.tar"),
        (tarfile.CHRTYPE, ""),
        (tarfile.BLKTYPE, ""),
        (tarfile.FIFOTYPE, ""),
        (tarfile.GNUTYPE_SPARSE, ""),
        (b"Z", ""),
    ],
)
def test_links_devices_and_unknown_kinds(out: Path, kind: bytes, link: str) -> None:
    refused(tar_of(CONTENT, (member("x.json", kind, link=link), b"")), out, "no plain file")


def test_a_link_to_write_through(out: Path) -> None:
    tar = tar_of({}, (member("x.json", tarfile.SYMTYPE, link="../evil.json"), b""))
    second = tar_of({}, (member("x.json", size=2), b"{}"))
    refused(tar[:512] + second, out, "no plain file")


def test_a_hole_declared_in_an_extended_header(out: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        made = member("config.json", size=512)
        made.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "config.json",
            "GNU.sparse.realsize": str(2**40),
        }
        tar.addfile(made, io.BytesIO(b"1\n0\n1\n".ljust(512, b"\0")))
    refused(buffer.getvalue(), out, "with holes|no plain file|damaged")


def test_the_same_file_twice(out: Path) -> None:
    refused(tar_of(CONTENT, (member("config.json", size=2), b"[]")), out, "twice")


def test_more_members_than_any_checkpoint_has(out: Path) -> None:
    many = [(member(f"{number}.json"), b"") for number in range(1001)]
    refused(tar_of({}, *many), out, "over 1000 members")


def test_a_json_file_larger_than_any(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_archive, "LARGEST_JSON", 100)
    refused(tar_of({"config.json": b" " * 101}), out, "has 101 bytes; refused")


@pytest.mark.parametrize("size", [2**33 - 1, 2**60])
def test_a_size_beyond_the_end(out: Path, size: int) -> None:
    header = member("model.safetensors", size=size).tobuf(tarfile.GNU_FORMAT)
    refused(header + bytes(2048), out, "ends in the middle")


def test_a_negative_size(out: Path) -> None:
    header = bytearray(member("model.safetensors").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 12
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    refused(bytes(header) + bytes(2048), out, "states -1 bytes")


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_names_that_would_fill_the_memory(out: Path, kind: bytes) -> None:
    """`tarfile` reads such a header whole; in 400 MB of memory these 4 GB would not fit."""
    tar = out.parent / "part.tar"
    header = member("x", kind, size=2**32).tobuf(tarfile.GNU_FORMAT)
    with tar.open("wb") as file:  # a file with a hole: no disk is used
        file.write(header)
        file.truncate(len(header) + 2**32 + 1024)
    code = (
        "import pathlib, resource, sys\n"
        "from deepseek_ocr.weights import tar_archive\n"
        "resource.setrlimit(resource.RLIMIT_AS, (400 * 2**20,) * 2)\n"
        "tar_archive.copy_out(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tar), str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "deepseek_ocr.errors.CheckpointError: the tar" in done.stderr
    assert "MemoryError" not in done.stderr


@pytest.mark.parametrize("kept", [0, 100, 512, 600, 1024, 1500])
def test_a_tar_that_was_cut_off(out: Path, kept: int) -> None:
    refused(tar_of(CONTENT)[:kept], out, "the tar")


def test_a_tar_without_an_end(out: Path) -> None:
    refused(tar_of(CONTENT)[:2048], out, "the tar is damaged")


@pytest.mark.parametrize("junk", [b"<html>" * 500, b"\x1f\x8b" + bytes(2000), b"\xff" * 4096])
def test_what_is_no_tar(out: Path, junk: bytes) -> None:
    refused(junk, out, "the tar is damaged")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_tar_is_not_unpacked(out: Path, mode: str) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        tar.addfile(member("config.json", size=2**20), io.BytesIO(bytes(2**20)))
    refused(buffer.getvalue(), out, "the tar is damaged")


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(b"18 size=999999999\n", id="larger than the tar"),
        pytest.param(b"11 size=-9\n", id="negative"),
        pytest.param(b"0 path=x\n", id="no length"),
    ],
)
def test_an_extended_header_that_lies(out: Path, record: bytes) -> None:
    header = member("x", tarfile.XHDTYPE, size=len(record)).tobuf(tarfile.GNU_FORMAT)
    lying = header + record.ljust(512, b"\0") + tar_of(CONTENT)
    refused(lying, out, "disagree|the tar is damaged|has 999999999 bytes")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_file_that_is_named_over_and_over(out: Path, kind: bytes) -> None:
    """`tarfile` calls itself for every such header, so many of them exhaust its stack."""
    one = member("x", kind, size=512).tobuf(tarfile.GNU_FORMAT) + b"15 path=a.json\n".ljust(
        512, b"\0"
    )
    refused(one * 400 + tar_of(CONTENT), out, "over and over")


def test_content_that_an_extended_header_turns_into_headers(out: Path) -> None:
    """A stated size of nought would make `tarfile` read the file's content as headers."""
    hidden = member("hidden", tarfile.GNUTYPE_LONGNAME, size=2**31).tobuf(tarfile.GNU_FORMAT)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        made = tarfile.TarInfo("foo.py")
        made.size = len(hidden)
        made.pax_headers = {"size": "0"}
        tar.addfile(made, io.BytesIO(hidden))
    refused(buffer.getvalue(), out, "disagree|damaged|size")
