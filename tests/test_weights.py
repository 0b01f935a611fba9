"""Named checkpoints without a network: found, judged, verified, adopted; the command line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import weights
from deepseek_ocr import configuration
from deepseek_ocr.cli.main import main
from deepseek_ocr.cli.terminal import COULD_NOT_START, DONE, INTERRUPTED, SOME_FAILED
from deepseek_ocr.errors import CheckpointError, SettingsError
from deepseek_ocr.weights import catalog, folders, places, registry
from deepseek_ocr.weights.folders import Condition
from tests.weights_steps import INCOMPLETE, cut
from tests.weights_world import FILES, NAME, REAL, ROOT, WEIGHTS, checkpoint_files, write_files

pytest_plugins = ["tests.weights_fixtures"]

PYTHON = "modeling_deepseekocr.py"


# --- ensure -------------------------------------------------------------------------------------


def test_pocket_is_found_wherever_the_others_are_kept(home: Path) -> None:
    assert registry.ensure("pocket", home) == ROOT / "checkpoints/pocket"


def test_a_pocket_of_ones_own_goes_first(home: Path) -> None:
    shutil.copytree(ROOT / "checkpoints/pocket", home / "pocket")
    assert registry.ensure("pocket", home) == home / "pocket"


def test_a_lost_pocket_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.mkdir()
    monkeypatch.setattr(places, "PACKAGE", home / "deepseek_ocr")
    with pytest.raises(CheckpointError, match="with: installing the package again"):
        registry.ensure("pocket", home)
    (home / "pyproject.toml").touch()
    (home / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="with: git checkout checkpoints"):
        registry.ensure("pocket", home)


@pytest.mark.parametrize("fetch", [True, False])
def test_a_folder_is_taken_as_it_is(home: Path, fetch: bool) -> None:
    home.mkdir()
    assert registry.ensure(str(home), home / "elsewhere", fetch=fetch) == home


def test_a_name_nobody_knows(home: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder of that name; use deepseek-ocr, pocket"):
        registry.ensure("deepsek-ocr", home)


def test_without_fetching_the_message_says_how_to_fetch(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "CHECKPOINTS", REAL)
    with pytest.raises(CheckpointError, match=r"\(6\.7 GB\) with: deepseek-ocr weights fetch deep"):
        registry.ensure(NAME, home, fetch=False)
    assert not home.exists()


def test_a_source_nobody_knows(home: Path) -> None:
    with pytest.raises(SettingsError, match="auto, replicate, huggingface, modelscope"):
        registry.ensure(NAME, home, "torrent")


def test_a_whole_folder_placed_by_hand_is_taken(home: Path, by_hand: Path) -> None:
    assert registry.ensure(NAME, home) == by_hand
    assert folders.examine(by_hand).condition is Condition.UNRECORDED


def test_an_empty_folder_is_none(home: Path) -> None:
    (home / NAME).mkdir(parents=True)
    assert folders.examine(home / NAME).condition is Condition.ABSENT


@pytest.mark.parametrize(("harm", "message"), INCOMPLETE)
@pytest.mark.parametrize("fetch", [True, False])
def test_half_a_checkpoint_placed_by_hand_is_refused_and_kept(
    home: Path, by_hand: Path, harm: Callable[[Path], Any], message: str, fetch: bool
) -> None:
    harm(by_hand)
    before = sorted(by_hand.iterdir())
    with pytest.raises(CheckpointError, match=message):
        registry.ensure(NAME, home, fetch=fetch)
    assert sorted(by_hand.iterdir()) == before


@pytest.mark.parametrize("broken", ["file", "link"])
def test_what_is_no_folder_is_in_the_way(home: Path, broken: str) -> None:
    home.mkdir()
    if broken == "file":
        (home / NAME).write_text("")
    else:
        (home / NAME).symlink_to(home / NAME)
    with pytest.raises(CheckpointError, match=r"in the way: it is no folder\. It was not made"):
        registry.ensure(NAME, home)


def test_a_folder_that_cannot_be_read(
    home: Path, by_hand: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert folders.examine(by_hand).detail == "it cannot be read: Permission denied."


# --- adopt --------------------------------------------------------------------------------------


def test_adopting_links_the_data_and_leaves_the_program_behind(home: Path, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "download", checkpoint_files())
    target = registry.adopt(folder, home)
    assert target == home / NAME
    assert sorted(path.name for path in target.iterdir()) == sorted([*FILES, folders.RECORD])
    assert (target / WEIGHTS).samefile(folder / WEIGHTS)
    assert (folder / PYTHON).is_file()
    assert registry.verify(NAME, home) is not None
    assert sorted(path.name for path in home.iterdir()) == [f".{NAME}.lock", NAME]


def test_adopting_copies_where_links_are_impossible(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    folder = write_files(tmp_path / "download", checkpoint_files())
    monkeypatch.setattr(os, "link", refuse)
    target = registry.adopt(folder, home)
    assert not (target / WEIGHTS).samefile(folder / WEIGHTS)
    assert (target / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_adopting_says_before_copying_that_there_is_no_room(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    folder = write_files(tmp_path / "download", checkpoint_files())
    monkeypatch.setattr(os, "link", refuse)
    usage = shutil.disk_usage(tmp_path)._replace(free=16 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"too little room: a copy of config\.json need"):
        registry.adopt(folder, home)
    assert not (home / NAME).exists()


def test_adopting_follows_the_links_of_a_download_cache(home: Path, tmp_path: Path) -> None:
    blobs = write_files(tmp_path / "blobs", checkpoint_files())
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for name in FILES:
        (snapshot / name).symlink_to(blobs / name)
    target = registry.adopt(snapshot, home)
    assert not any(path.is_symlink() for path in target.iterdir())
    assert (target / WEIGHTS).samefile(blobs / WEIGHTS)


def test_adopting_does_not_replace_a_whole_one(home: Path, recorded: Path, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "download", checkpoint_files())
    with pytest.raises(CheckpointError, match="is there already"):
        registry.adopt(folder, home)


def test_adopting_replaces_a_damaged_one(home: Path, recorded: Path, tmp_path: Path) -> None:
    folder = write_files(tmp_path / "download", checkpoint_files())
    cut(recorded / WEIGHTS)
    registry.adopt(folder, home)
    assert registry.verify(NAME, home) is not None


@pytest.mark.parametrize(("harm", "message"), INCOMPLETE)
def test_adopting_half_a_checkpoint(
    home: Path, tmp_path: Path, harm: Callable[[Path], Any], message: str
) -> None:
    folder = write_files(tmp_path / "download", checkpoint_files())
    harm(folder)
    with pytest.raises(CheckpointError, match=f"not a whole checkpoint: .*{message}"):
        registry.adopt(folder, home)
    assert not home.exists()


def test_adopting_another_network(home: Path, tmp_path: Path) -> None:
    files = {**checkpoint_files(), "config.json": b'{"model_type": "llama"}'}
    with pytest.raises(CheckpointError, match="model_type 'llama'"):
        registry.adopt(write_files(tmp_path / "download", files), home)


def test_the_folder_below_a_file_cannot_be_written_to(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = write_files(tmp_path / "download", checkpoint_files())
    with pytest.raises(CheckpointError, match=r"cannot be written to \(Not a directory\)"):
        registry.adopt(folder, tmp_path / "file" / "checkpoints")


def test_a_mount_point_is_refused_before_the_work(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_files(tmp_path / "download", checkpoint_files())
    (home / NAME).mkdir(parents=True)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == home / NAME)
    with pytest.raises(CheckpointError, match="is a mount point"):
        registry.adopt(folder, home)


# --- places -------------------------------------------------------------------------------------


def test_a_checkout_keeps_downloads_and_the_bundled_one_in_its_own_folder() -> None:
    assert places.default_checkpoints() == ROOT / "checkpoints"
    assert places.bundled_folder("pocket") == ROOT / "checkpoints/pocket"
    assert configuration.Settings().checkpoints == str(ROOT / "checkpoints")


@pytest.mark.parametrize("beside", [None, "pyproject.toml", "checkpoints"])
def test_an_installed_package_keeps_downloads_in_the_platforms_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, beside: str | None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(places, "PACKAGE", tmp_path / "deepseek_ocr")
    if beside == "checkpoints":
        (tmp_path / beside).mkdir()
    elif beside:
        (tmp_path / beside).touch()
    assert configuration.load({}, {}).checkpoints == str(tmp_path / "cache/deepseek-ocr/models")
    assert configuration.load({}, {"DEEPSEEK_OCR_CHECKPOINTS": "/x"}).checkpoints == "/x"
    shutil.copytree(ROOT / "checkpoints/pocket", tmp_path / "deepseek_ocr/pocket")
    assert registry.ensure("pocket", tmp_path) == tmp_path / "deepseek_ocr/pocket"
    assert catalog.known_as(str(tmp_path / "deepseek_ocr/pocket")).preset == "tiny"


# --- the command line ---------------------------------------------------------------------------


def run(*arguments: str) -> int:
    """The exit status of `deepseek-ocr weights`."""
    return main(["weights", *arguments])


@pytest.mark.parametrize(
    "arguments",
    [(), ("fetch",), ("fetch", "pocket"), ("fetch", NAME, "--source", "x"), ("burn", NAME)],
)
def test_wrong_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == COULD_NOT_START
    assert capsys.readouterr().out == ""


def test_list_says_what_is_here(
    home: Path, by_hand: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--checkpoints", str(home)]
    assert run("list", *where) == DONE
    assert "deepseek-ocr: complete, but placed by hand" in capsys.readouterr().out
    registry.adopt(by_hand, home)
    assert run("list", *where) == DONE
    listed = capsys.readouterr().out
    assert f"deepseek-ocr: ready, {by_hand}\n" in listed
    assert "from adopted" in listed
    assert f"pocket: bundled, {ROOT / 'checkpoints/pocket'}" in listed
    cut(by_hand / WEIGHTS)
    assert run("list", *where) == DONE
    assert "damaged" in capsys.readouterr().out
    shutil.rmtree(by_hand)
    assert run("list", *where) == DONE
    assert f"deepseek-ocr: not here, {by_hand}\n" in capsys.readouterr().out


def test_the_environment_says_where(
    home: Path,
    recorded: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("DEEPSEEK_OCR_CHECKPOINTS", str(home))
    assert run("verify", NAME) == DONE
    assert capsys.readouterr() == ("deepseek-ocr: all 6 files are as they came from adopted\n", "")
    monkeypatch.setenv("DEEPSEEK_OCR_CHECKPOINTS", str(home / "empty"))
    assert run("verify", NAME) == SOME_FAILED
    said = capsys.readouterr().err
    assert said.startswith("deepseek-ocr: The checkpoint 'deepseek-ocr' is not in ")


def test_a_wrong_setting_is_wrong_usage(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEEPSEEK_OCR_SOURCE", "torrent")
    assert run("fetch", NAME, "--checkpoints", str(home)) == COULD_NOT_START
    assert "There is no source 'torrent'" in capsys.readouterr().err


def test_commands_for_the_bundled_one_and_for_adopting(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_files(tmp_path / "download", checkpoint_files())
    where = ["--checkpoints", str(home)]
    assert run("verify", "pocket", *where) == DONE
    assert "pocket is whole" in capsys.readouterr().out
    assert run("adopt", str(folder), *where) == DONE
    assert f"deepseek-ocr is in {home / NAME}" in capsys.readouterr().out
    assert run("adopt", str(folder), *where) == SOME_FAILED
    assert run("fetch", NAME, *where) == DONE, "it is there: nothing to fetch"


def test_an_interrupt_is_no_traceback(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "ensure", interrupted)
    assert run("fetch", NAME, "--checkpoints", str(home)) == INTERRUPTED
    assert "interrupted" in capsys.readouterr().err


def test_the_container_places_its_checkpoint_where_the_settings_say(home: Path) -> None:
    settings = configuration.Settings(model="pocket", checkpoints=str(home))
    assert weights.place_checkpoint(settings) == ROOT / "checkpoints/pocket"
    with pytest.raises(CheckpointError, match="could not be fetched"):
        weights.place_checkpoint(configuration.Settings(checkpoints=str(home)))


# --- the table ----------------------------------------------------------------------------------


def test_the_published_sources_are_the_ones_to_use() -> None:
    replicate, huggingface, modelscope = catalog.CHECKPOINTS[NAME].sources
    assert replicate.url.startswith("https://weights.replicate.delivery/default/deepseek-ai/")
    assert huggingface.revision == "9f30c71f441d010e5429c532364a86705536c53a"
    assert {huggingface.repository, modelscope.repository} == {"deepseek-ai/DeepSeek-OCR"}
    assert all(source.url.startswith("https://") for source in (huggingface, modelscope))


def test_another_model_is_not_adopted_in_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_LEAST_SHARE", 0.5)  # the other tests' models are small
    with pytest.raises(CheckpointError, match="it is another model"):
        registry.adopt(ROOT / "checkpoints/pocket", tmp_path)
    assert list(tmp_path.iterdir()) == []
