"""Where checkpoints are put: things in the way, full and read-only disks, links and mounts."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.weights import folders, registry
from deepseek_ocr.weights.folders import Condition
from tests import weights_world
from tests.weights_steps import CONTENT, SOURCES, check, ensure, failing
from tests.weights_world import FILES, NAME, WEIGHTS, Trouble, World, in_modelscope

pytest_plugins = ["tests.weights_fixtures"]


def test_what_was_placed_by_hand_is_in_the_way(world: World, carrier: str) -> None:
    world.target.mkdir(parents=True)
    (world.target / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"in the way: config\.json is missing.*not touched"):
        ensure(world)
    assert (world.target / "notes.txt").read_text() == "mine"
    assert world.requests == []


def test_a_mount_point_is_no_place(
    world: World, carrier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.target.mkdir(parents=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == world.target)
    with pytest.raises(CheckpointError, match=f"mount point.*mount {world.home} instead"):
        ensure(world)
    assert world.requests == []


def test_a_place_that_cannot_be_written_to(world: World, carrier: str) -> None:
    (world.home.parent / "file").write_text("")
    world.home = world.home.parent / "file" / "checkpoints"
    failing(world, "auto", r"cannot be written to \(Not a directory\); choose another folder")
    assert world.requests == []


@pytest.mark.parametrize(("source", "times"), [("replicate", 2), ("modelscope", 1)])
def test_too_little_room_is_said_before(
    world: World, carrier: str, source: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [len(content) for name, content in world.files.items() if name in FILES]
    needed = times * (len(world.tar) if source == "replicate" else sum(sizes)) + 16 * 2**20
    usage = shutil.disk_usage(world.home.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    failing(world, source, "too little room: the (tar and|download).* has 1")
    assert not world.asked(CONTENT[source])
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    ensure(world, source)
    check(world, source)


def test_too_little_room_for_the_tar_may_do_for_the_rest(
    world: World, carrier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(world.home.parent)
    room = len(world.tar) + 16 * 2**20
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=room))
    ensure(world)
    check(world, "huggingface")


def test_the_beginning_of_another_source_makes_room(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = world.home / f".{NAME}.part/huggingface/{WEIGHTS}"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"half")
    usage = shutil.disk_usage(world.home.parent)

    def free(_: object) -> Any:
        return usage._replace(free=0 if other.exists() else 2**30)

    monkeypatch.setattr(shutil, "disk_usage", free)
    ensure(world, "modelscope")
    check(world, "modelscope")


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A small disk of its own; the test is skipped where mounting is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs to be allowed to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("source", ["replicate", "modelscope"])
def test_the_disk_fills_up_while_downloading(
    world: World, carrier: str, source: str, tmp_path: Path
) -> None:
    world.files.update(weights_world.checkpoint_files(weight_bytes=20 * 2**20))
    world.tar = weights_world.tar_of(world.files)
    world.edit_listing = in_modelscope(lambda one: (one.pop("Size"), one.pop("Sha256")))
    world.troubles = [Trouble("/default/", methods=("HEAD",), status=405)]
    with mounted(tmp_path / "disk", "18m") as disk:
        world.home = disk / "checkpoints"
        failing(world, source, "No space left on device")
        assert shutil.disk_usage(disk).used < 2**20, "the disk is left full"


def test_the_disk_fills_up_while_copying(world: World, carrier: str, tmp_path: Path) -> None:
    world.files.update(weights_world.checkpoint_files(weight_bytes=20 * 2**20))
    world.tar = weights_world.tar_of(world.files)
    world.troubles = [Trouble("/default/", methods=("HEAD",), status=405)]
    with mounted(tmp_path / "disk", "36m") as disk:
        world.home = disk / "checkpoints"
        failing(world, "replicate", "No space left on device")
        assert shutil.disk_usage(disk).used < 2**20, "the disk is left full"


def test_the_disk_is_full_before(world: World, carrier: str, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "1m") as disk:
        world.home = disk / "checkpoints"
        message = failing(world, "auto", "too little room")
        assert message.count("too little room") == len(SOURCES)
        assert str(world.home) in message


def test_a_read_only_disk(world: World, carrier: str, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "30m") as disk:
        world.home = disk / "checkpoints"
        ensure(world)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        ensure(world)
        assert folders.examine(world.target).condition is Condition.READY
        world.home = disk / "others"
        failing(world, "auto", r"cannot be written to \(Read-only file system\)")


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_larger_disk_is_followed(
    world: World, carrier: str, tmp_path: Path, there: bool
) -> None:
    large = tmp_path / "large disk" / "ocr"
    (large if there else large.parent).mkdir(parents=True)
    world.home.mkdir()
    world.target.symlink_to(large)
    ensure(world)
    assert world.target.is_symlink()
    assert registry.verify(NAME, world.home) is not None
    assert [path.name for path in world.home.iterdir()] == [NAME], "built on the small disk"
    assert sorted(path.name for path in large.parent.iterdir()) == [".ocr.lock", "ocr"]
