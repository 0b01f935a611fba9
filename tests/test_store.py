"""What a run keeps on disk: whose folder, what is done, the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_ocr.documents.inputs import Input, Shard, output_names
from deepseek_ocr.documents.run_store import (
    Store,
    checkpoint_digest,
    file_digest,
    read_manifests,
    settings_digest,
)
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.formats.records import PageRecord


def claimed(folder: Path, paths: list[Path]) -> dict[str, str]:
    """Path → name, as a run over `paths` finds it."""
    inputs = [Input(path, path.name if len(paths) == 1 else path.as_posix()) for path in paths]
    names = output_names(inputs)
    with Store(folder) as store:
        return {
            str(found.path): store.claim(found, names[found.key], file_digest(found.path))
            for found in inputs
        }


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_two_inputs_of_one_name_get_folders_of_their_own_in_every_run(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a/scan.pdf", "1"), write(tmp_path / "b/scan.pdf", "2")
    names = claimed(tmp_path / "out", [first, second])
    assert len(set(names.values())) == 2
    assert claimed(tmp_path / "out", [second, first]) == names


def test_an_input_keeps_its_name_when_others_of_its_name_come_later(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a/scan.pdf", "1"), write(tmp_path / "b/scan.pdf", "2")
    assert claimed(tmp_path / "out", [first]) == {str(first): "scan"}
    assert claimed(tmp_path / "out", [second])[str(second)] != "scan"
    both = claimed(tmp_path / "out", [first, second])
    assert both[str(first)] == "scan"
    assert both[str(second)] != "scan"


def test_a_file_that_changes_keeps_its_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.pdf", "1")
    assert claimed(tmp_path / "out", [path]) == {str(path): "scan"}
    write(path, "2")
    assert claimed(tmp_path / "out", [path]) == {str(path): "scan"}


def test_the_same_file_at_another_place_is_known_again(tmp_path: Path) -> None:
    here, there = write(tmp_path / "here/scan.pdf", "1"), write(tmp_path / "there/scan.pdf", "1")
    assert claimed(tmp_path / "out", [here])[str(here)] == "scan"
    assert claimed(tmp_path / "out", [there])[str(there)] == "scan"


def test_a_damaged_claim_is_nobodys(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.pdf", "1")
    write(tmp_path / "out/.pages/scan/source.json", '{"pa')
    assert claimed(tmp_path / "out", [path])[str(path)] == "scan"


# --- records ------------------------------------------------------------------------------------

FOUND = Input(Path("in/scan.pdf"), "in/scan.pdf")
RECORD = PageRecord(3, text="text", finish_reason="stop")


def test_a_page_is_done_with_the_same_content_and_settings_only(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        assert store.done("scan", 3, "content", "settings") is None
        _home(store)
        store.keep(FOUND, "scan", RECORD, "content", "settings")
        assert store.done("scan", 3, "content", "settings") == RECORD
        assert store.done("scan", 3, "other", "settings") is None
        assert store.done("scan", 3, "content", "other") is None
        assert store.done("scan", 4, "content", "settings") is None
        failed = PageRecord(4, error="The page is damaged.")
        store.keep(FOUND, "scan", failed, "content", "settings")
        assert store.done("scan", 4, "content", "settings") is None
        assert [record.number for record in store.pages("scan", [3, 4])] == [3, 4]
        store.forget("scan")
        assert store.done("scan", 3, "content", "settings") is None


def _home(store: Store) -> None:
    store.record_path("scan", 1).parent.mkdir(parents=True, exist_ok=True)


def kept(folder: Path) -> Path:
    """A store with one page."""
    with Store(folder) as store:
        _home(store)
        store.keep(FOUND, "scan", RECORD, "content", "settings")
        return store.record_path("scan", 3)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_record_is_read_again_whatever_happened_to_it(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("store")
    path = kept(folder)
    whole = path.read_bytes()
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    damaged = whole[:start] + data.draw(st.binary(max_size=8)) + whole[end:]
    path.write_bytes(damaged)
    with Store(folder) as store:
        record = store.done("scan", 3, "content", "settings")
    # What cannot be told from a good record has another text at most.
    assert record is None or record.number == 3
    if record is None:
        assert damaged != whole
    shutil.rmtree(folder)


def test_records_are_loaded_one_at_a_time(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        pages = store.pages("scan", range(1, 3001))
        assert len(pages) == len(pages[10:]) + 10 == 3000  # none of them is there


# --- manifest -----------------------------------------------------------------------------------


def test_the_manifest_has_a_line_for_every_page_and_is_only_added_to(tmp_path: Path) -> None:
    kept(tmp_path)
    before = (tmp_path / "manifest.jsonl").read_bytes()
    with Store(tmp_path) as store:
        store.list_done(FOUND, "scan", RECORD, "content", "settings")  # is listed already
        store.list_failed(Input(Path("b.pdf"), "b.pdf"), "b.pdf is locked.")
    after = (tmp_path / "manifest.jsonl").read_bytes()
    assert after.startswith(before)
    first, second = read_manifests(tmp_path)
    assert (first["page"], first["outcome"], first["input"]) == (3, "read", "content")
    assert (second["source"], second["outcome"]) == ("b.pdf", "failed")
    assert second["reason"] == "b.pdf is locked."


@settings(deadline=None, max_examples=40)
@given(cut=st.integers(0, 400))
def test_a_torn_line_costs_that_line_only(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    kept(folder)
    manifest = folder / "manifest.jsonl"
    line = manifest.read_bytes()
    manifest.write_bytes(line + line[:cut])
    with Store(folder) as store:
        store.keep(FOUND, "scan", PageRecord(4, text="x"), "content", "settings")
    lines = list(read_manifests(folder))
    assert [found["page"] for found in lines] == ([3, 3, 4] if cut >= len(line) - 1 else [3, 4])
    shutil.rmtree(folder)


def test_a_page_whose_line_was_lost_is_listed_by_the_next_run(tmp_path: Path) -> None:
    kept(tmp_path)
    (tmp_path / "manifest.jsonl").write_bytes(b"")
    with Store(tmp_path) as store:
        record = store.done("scan", 3, "content", "settings")
        assert record is not None
        store.list_done(FOUND, "scan", record, "content", "settings")
    assert [line["page"] for line in read_manifests(tmp_path)] == [3]


def test_parts_have_manifests_of_their_own_and_know_each_others(tmp_path: Path) -> None:
    with Store(tmp_path, Shard(1, 2)) as one, Store(tmp_path, Shard(2, 2)) as two:
        _home(one)
        one.keep(FOUND, "scan", RECORD, "content", "settings")
        two.keep(FOUND, "scan", PageRecord(4), "content", "settings")
    assert {path.name for path in tmp_path.glob("manifest*")} == {
        "manifest.1-of-2.jsonl", "manifest.2-of-2.jsonl",
    }  # fmt: skip
    assert [line["page"] for line in read_manifests(tmp_path)] == [3, 4]
    with Store(tmp_path) as store:
        store.list_done(FOUND, "scan", RECORD, "content", "settings")
    assert len(list(read_manifests(tmp_path))) == 2


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(SettingsError, match="Another run"):
        Store(tmp_path)
    Store(tmp_path).close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    write(tmp_path / "file", "")
    with pytest.raises(SettingsError, match="choose another folder"):
        Store(tmp_path / "file" / "out")


# --- outputs and hashes -------------------------------------------------------------------------


def test_outputs_are_written_again_when_anything_changed_or_is_gone(tmp_path: Path) -> None:
    kept(tmp_path)
    output = write(tmp_path / "scan" / "scan.md", "text")
    with Store(tmp_path) as store:
        stamp = store.stamp("scan", [3], {"formats": ["md"]})
        assert not store.is_written("scan", stamp)
        store.mark_written("scan", stamp, [output])
        assert store.is_written("scan", stamp)
        assert stamp != store.stamp("scan", [3], {"formats": ["html"]})
        store.keep(FOUND, "scan", PageRecord(3, text="new"), "content", "settings")
        assert stamp != store.stamp("scan", [3], {"formats": ["md"]})
        output.unlink()
        assert not store.is_written("scan", stamp)


def test_checkpoints_are_told_apart_by_their_weights(tmp_path: Path) -> None:
    for name, weights in (("a", b"1" * 5000), ("b", b"1" * 4999 + b"2"), ("c", b"1" * 5000)):
        write(tmp_path / name / "config.json", "{}")
        (tmp_path / name / "model.safetensors").write_bytes(weights)
        write(tmp_path / name / "README.md", name)
    one, other, same = (checkpoint_digest(tmp_path / name) for name in "abc")
    assert one == same != other


def test_settings_are_told_apart_and_their_order_is_not() -> None:
    assert settings_digest({"a": 1, "b": [2]}) == settings_digest({"b": [2], "a": 1})
    assert settings_digest({"a": 1}) != settings_digest({"a": 2})
