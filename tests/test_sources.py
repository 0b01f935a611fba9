"""What there is to read, what it is called, which of its pages."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ocr.documents import inputs as sources
from deepseek_ocr.documents.inputs import (
    Input,
    Shard,
    each_once,
    find,
    output_names,
    parse_pages,
    parse_shard,
    safe_name,
    shown,
    spool,
)
from deepseek_ocr.errors import DocumentError, SettingsError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1-3,7,-1", [1, 2, 3, 7, 10]),
        ("5-", [5, 6, 7, 8, 9, 10]),
        ("-3--1", [8, 9, 10]),
        ("2--8", [2, 3]),
        ("3,1,2,2", [1, 2, 3]),
        ("9-400000000", [9, 10]),
        ("11", []),
        ("-11", []),
    ],
)
def test_pages_are_chosen_from_either_end(text: str, numbers: list[int]) -> None:
    assert parse_pages(text).of(10) == numbers


@pytest.mark.parametrize("text", ["", "0", "x", "1-0", "1,,2", "--2", "1.5", "1-2-3", "-"])
def test_pages_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"1-3,7,-1"):
        parse_pages(text)


def test_a_choice_of_pages_that_goes_on_for_ever_is_refused() -> None:
    with pytest.raises(SettingsError, match="at most 1000 characters"):
        parse_pages("1-," * 1_000_000)
    with pytest.raises(SettingsError) as told:
        parse_pages("x" * 900)
    assert len(str(told.value)) < 250
    assert len(parse_pages("1-," * 300 + "1").of(100_000)) == 100_000


def test_folders_are_listed_in_order_and_what_is_no_page_is_told(tmp_path: Path) -> None:
    touch(tmp_path, "in/b.pdf", "in/a/z.JPG", "in/a/notes.txt", "in/.hidden/x.pdf", "in/.x.pdf")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    listing = find([str(tmp_path / "in")])
    assert [found.key for found in listing.inputs] == ["in/b.pdf", "in/a/z.JPG"]
    assert [path.name for path in listing.left_out] == ["notes.txt"]


def test_a_file_that_is_named_is_taken_whatever_its_suffix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "scan", "a b.pdf", "ü.pdf", "-x.pdf", "[1].pdf")
    monkeypatch.chdir(tmp_path)
    names = ["scan", "a b.pdf", "ü.pdf", "-x.pdf", "[1].pdf"]
    listing = find(names)
    assert [(found.key, found.error) for found in listing.inputs] == [(n, None) for n in names]


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/1.pdf", "a/b/2.pdf", "a/b/3.txt")
    monkeypatch.chdir(tmp_path)
    assert [found.key for found in find(["a/**/*.pdf"]).inputs] == ["a/1.pdf", "a/b/2.pdf"]
    (nothing,) = find(["a/*.tiff"]).inputs
    assert "No file fits" in str(nothing.error)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.pdf", "does not exist"),
        ("https://example.org/x.pdf", "not fetched"),
        ("x" * 5000, "does not exist"),
        ("a\0b", "does not exist"),
    ],
)
def test_what_is_not_there_is_an_input_with_the_reason(name: str, reason: str) -> None:
    (found,) = find([name]).inputs
    assert reason in str(found.error)


def test_a_file_named_twice_is_one_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "in/a.pdf")
    monkeypatch.chdir(tmp_path)
    assert len(each_once(find(["in/a.pdf", "in", "./in/a.pdf"]).inputs)) == 1


def test_folders_of_one_name_keep_their_files_apart(tmp_path: Path) -> None:
    touch(tmp_path, "x/in/a.pdf", "y/in/a.pdf", "y/in/b.pdf")
    inputs = find([str(tmp_path / "x" / "in"), str(tmp_path / "y" / "in")]).inputs
    keys = [found.key for found in inputs]
    assert len(set(keys)) == 3
    assert "in/b.pdf" in keys


# --- names --------------------------------------------------------------------------------------


def names_of(*paths: str) -> dict[str, str]:
    return output_names([Input(Path(path), path) for path in paths])


def test_outputs_are_named_after_the_file() -> None:
    assert names_of("a/scan.pdf", "a/My Letter.tiff", "ü.png") == {
        "a/scan.pdf": "scan", "a/My Letter.tiff": "My Letter", "ü.png": "ü",
    }  # fmt: skip


def test_inputs_of_one_stem_get_names_that_depend_on_nothing_else() -> None:
    names = names_of("a/scan.pdf", "b/SCAN.png", "c.pdf")
    assert names["c.pdf"] == "c"
    assert len({name.casefold() for name in names.values()}) == 3
    assert names == dict(reversed(names_of("c.pdf", "b/SCAN.png", "a/scan.pdf").items()))


@given(st.text(st.characters(codec=None), max_size=300))
def test_every_name_becomes_one_safe_folder(text: str) -> None:
    name = safe_name(text)
    assert name
    assert name not in (".", "..")
    assert name[0] not in ".- "
    assert name[-1] not in ". "
    assert not set(name) & set('<>:"/\\|?*\0\n')
    assert len(name.encode()) <= 101
    assert Path("out", name).parent == Path("out")
    assert safe_name(name) == name


@pytest.mark.parametrize("text", ["con", "NUL", "Com1.x", "manifest", "manifest.1-of-2.jsonl"])
def test_reserved_names_are_changed(text: str) -> None:
    assert safe_name(text) == f"{text}_"


def test_a_name_that_is_no_text_can_be_shown() -> None:
    assert shown(os.fsdecode(b"a\xff.pdf")) == "a\\xff.pdf"


# --- parts --------------------------------------------------------------------------------------


@given(st.lists(st.text(), unique=True), st.integers(1, 9))
def test_every_input_is_in_exactly_one_part(keys: list[str], count: int) -> None:
    for key in keys:
        assert sum(Shard(index, count).has(key) for index in range(1, count + 1)) == 1


def test_parts_are_of_like_size_and_the_same_everywhere() -> None:
    keys = [f"in/{number}.pdf" for number in range(1000)]
    sizes = [sum(Shard(index, 4).has(key) for key in keys) for index in range(1, 5)]
    assert min(sizes) > 200
    assert sizes == [252, 245, 247, 256]  # must never change: runs on other machines rely on it


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/2"])
def test_parts_that_mean_nothing_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="i/n"):
        parse_shard(text)


# --- standard input -----------------------------------------------------------------------------


def test_standard_input_is_a_file_named_after_its_content(tmp_path: Path) -> None:
    one = spool(io.BytesIO(b"%PDF-1.7 one"), tmp_path)
    other = spool(io.BytesIO(b"%PDF-1.7 other"), tmp_path)
    assert one.path.read_bytes() == b"%PDF-1.7 one"
    assert one.key != other.key
    assert str(one) == "-"


def test_standard_input_has_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 10)
    with pytest.raises(DocumentError, match="split"):
        spool(io.BytesIO(bytes(11)), tmp_path)
    with pytest.raises(DocumentError, match="empty"):
        spool(io.BytesIO(), tmp_path)
