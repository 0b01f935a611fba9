"""The record of sizes and sums: what is noticed at start, what only by hashing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.weights import folders, registry
from deepseek_ocr.weights.folders import Condition
from tests.weights_steps import cut, point_elsewhere
from tests.weights_world import FILES, INDEX, NAME, ROOT, WEIGHTS, checkpoint_files, write_files

pytest_plugins = ["tests.weights_fixtures"]


# --- the record ---------------------------------------------------------------------------------


def test_a_recorded_checkpoint_is_ready(home: Path, recorded: Path) -> None:
    assert registry.ensure(NAME, home, fetch=False) == recorded
    record = registry.verify(NAME, home)
    assert record is not None
    assert set(record.files) == set(FILES)


def _edit_record(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / folders.RECORD
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))


ENTRY = {"size": 1, "sha256": "0" * 64}

DAMAGED: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: cut(folder / WEIGHTS), "bytes instead of"),
    (lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
    (lambda folder: point_elsewhere(folder / INDEX, "model-2.safetensors"), "not on record"),
    (lambda folder: (folder / folders.RECORD).write_text("{"), "complete.json is damaged"),
    (lambda folder: (folder / folders.RECORD).write_text("{}"), "complete.json is damaged"),
    (lambda folder: (folder / folders.RECORD).write_text("[]"), "complete.json is damaged"),
    (lambda folder: (folder / folders.RECORD).write_bytes(b"\xff"), "complete.json is damaged"),
    (lambda folder: _edit_record(folder, lambda r: r.update(format=2)), "is damaged"),
    (lambda folder: _edit_record(folder, lambda r: r["files"].clear()), "is damaged"),
    (lambda folder: _edit_record(folder, lambda r: r["files"].pop("config.json")), "is damaged"),
    (lambda folder: _edit_record(folder, lambda r: r["files"].update({"../x": ENTRY})), "damaged"),
    (lambda folder: _edit_record(folder, lambda r: r["files"].update({"/x": ENTRY})), "damaged"),
    (lambda folder: _edit_record(folder, lambda r: r["files"].update({"..": ENTRY})), "damaged"),
    (lambda folder: _edit_record(folder, lambda r: r["files"].update({"x": {"size": 1}})), "dama"),
    (lambda folder: _edit_record(folder, lambda r: r["files"]["config.json"].update(size=True)),
     "damaged"),
    (lambda folder: _edit_record(folder, lambda r: r["files"]["config.json"].update(size=-1)),
     "damaged"),
    (lambda folder: _edit_record(folder, lambda r: r["files"]["config.json"].update(sha256="0")),
     "damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "message"), DAMAGED)
def test_a_changed_checkpoint_is_noticed_at_start(
    home: Path, recorded: Path, harm: Callable[[Path], Any], message: str
) -> None:
    harm(recorded)
    with pytest.raises(
        CheckpointError, match=f"{message}.*deepseek-ocr weights fetch deepseek-ocr"
    ):
        registry.ensure(NAME, home, fetch=False)


def test_weights_beside_those_of_the_index_are_not_loaded_and_do_no_harm(
    home: Path, recorded: Path
) -> None:
    (recorded / "model-2.safetensors").touch()
    assert registry.ensure(NAME, home, fetch=False) == recorded


def test_weights_without_an_index_must_all_be_on_record(home: Path) -> None:
    files = checkpoint_files()
    del files[INDEX]
    folder = write_files(home / NAME, files)
    registry.adopt(folder, home)
    assert folders.examine(folder).condition is Condition.READY
    shutil.copy(folder / WEIGHTS, folder / "model-2.safetensors")
    assert "model-2.safetensors is not on record" in folders.examine(folder).detail


def test_verify_sees_what_sizes_do_not_show(home: Path, recorded: Path) -> None:
    content = bytearray((recorded / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (recorded / WEIGHTS).write_bytes(content)
    assert registry.ensure(NAME, home, fetch=False) == recorded
    with pytest.raises(CheckpointError, match=f"the content of {WEIGHTS} has changed"):
        registry.verify(NAME, home)
    with pytest.raises(CheckpointError, match=f"the content of {WEIGHTS} has changed"):
        registry.verify(str(recorded), home)


def test_verify_needs_a_record(home: Path, by_hand: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no sums on record.*deepseek-ocr weights adopt"):
        registry.verify(NAME, home)


def test_verify_of_the_bundled_one_checks_that_it_is_whole(home: Path) -> None:
    assert registry.verify("pocket", home) is None
    shutil.copytree(ROOT / "checkpoints/pocket", home / "pocket")
    cut(home / "pocket/model.safetensors")
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        registry.verify("pocket", home)
