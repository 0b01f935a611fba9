"""Files and folders appear whole or not at all; what is read is bounded."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deepseek_ocr.errors import FileWriteError, InputError
from deepseek_ocr.files import (
    atomic_write,
    part_path,
    read_json,
    recover_folder,
    replace_folder,
    write_files,
)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_write(path) as stream:
            stream.write(b"half of the n")
            stream.flush()
            assert (path.read_text(), part_path(path).read_text()) == ("old", "half of the n")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [path.read_text(), *tmp_path.iterdir()] == ["old", path]


def test_a_link_laid_where_a_file_is_being_written_is_not_followed(tmp_path: Path) -> None:
    path, other = tmp_path / "out" / "a.txt", tmp_path / "other.txt"
    path.parent.mkdir()
    other.write_text("untouched")
    part_path(path).symlink_to(other)
    with atomic_write(path) as stream:
        stream.write(b"new")
    assert (path.is_symlink(), path.read_text(), other.read_text()) == (False, "new", "untouched")
    assert [*path.parent.iterdir()] == [path]


def test_files_written_together_keep_their_old_content_if_one_cannot_be(tmp_path: Path) -> None:
    first, second = tmp_path / "new" / "first.txt", tmp_path / "second"
    write_files({first: b"old"})
    second.mkdir()
    with pytest.raises(FileWriteError, match=r"second cannot be written: .*; make room"):
        write_files({second: b"a folder has its name", first: b"new"})
    assert first.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["first.txt", "new", "second"]
    write_files({first: b"new", tmp_path / "third.txt": b"new"})
    assert [path.read_bytes() for path in (first, tmp_path / "third.txt")] == [b"new", b"new"]


def test_a_folder_whose_replacement_was_stopped_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an error between the two renames, and by a kill, after which the next look does it."""
    target = tmp_path / "state"
    with replace_folder(target) as staging:
        (staging / "old").write_text("kept")
    replace = os.replace

    def fail_second(source: Path, into: Path) -> None:
        if Path(source).name.endswith(".part"):
            raise OSError(28, "No space left on device")
        replace(source, into)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail_second)
        with pytest.raises(FileWriteError, match="No space"), replace_folder(target) as staging:
            (staging / "new").write_text("x")
    assert [path.name for path in target.iterdir()] == ["old"]
    target.rename(tmp_path / ".state.old")
    recover_folder(target)
    assert [path.name for path in tmp_path.rglob("*")] == ["state", "old"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"[1, 2, 3]", "more than 8 bytes"), (b"[1", "not valid JSON"), (b"\xff", "not UTF-8")],
)
def test_json_that_cannot_be_read_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "data.json"
    with pytest.raises(InputError, match=r"data\.json does not exist"):
        read_json(path)
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"data\.json .*{reason}"):
        read_json(path, 8)
