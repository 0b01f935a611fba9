"""Named checkpoints on the disk: how they get there, and whether they are whole. Programs call
`ensure`; `catalog.py` says which there are. Nothing in a checkpoint is ever executed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from deepseek_ocr.console import readable
from deepseek_ocr.errors import CheckpointError, SettingsError
from deepseek_ocr.files import part_path
from deepseek_ocr.weights import catalog, folders
from deepseek_ocr.weights import fetch as fetching
from deepseek_ocr.weights.catalog import AUTO, FETCHED, Checkpoint, WeightSource
from deepseek_ocr.weights.folders import ChecksumRecord, Condition, FolderState
from deepseek_ocr.weights.places import bundled_folder, checkout, default_checkpoints

_LEAST_SHARE = 0.5
"""Of a checkpoint's known size, that a folder must have to be adopted in its name."""


def ensure(model: str, checkpoints: Path, source: str = AUTO, *, fetch: bool = True) -> Path:
    """The folder of `model`: a named checkpoint below `checkpoints`, or a folder given as it is.

    A named one that is missing or damaged is fetched first, from `source` ("auto" tries all in
    order), if `fetch` allows; the damaged one is kept under another name. Of one that is there
    only the sizes are checked. A folder that was put there by hand is taken if its files are
    whole; nobody knows its sums until it is adopted.

    Raises `CheckpointError` if it cannot be had, `SettingsError` for a source that does not exist.
    """
    if model not in catalog.CHECKPOINTS:
        return _given_folder(model)
    checkpoint = catalog.CHECKPOINTS[model]
    if not checkpoint.sources:
        return _bundled(model, checkpoints)
    sources = _chosen(checkpoint, source)
    folder, target = _named_folder(model, checkpoints)
    state = folders.examine(target)
    if state.is_whole:
        if fetch and part_path(target).exists():  # an earlier run left something to tidy up
            with suppress(CheckpointError):  # which is no reason not to start
                fetching.fetch(checkpoint, target, sources)
    elif fetch:
        fetching.fetch(checkpoint, target, sources)
    else:
        raise CheckpointError(_not_ready(checkpoint, folder, state))
    return folder


def verify(model: str, checkpoints: Path) -> ChecksumRecord | None:
    """Hash every file of `model` (name or folder) and compare with its record, which is returned.

    None is for a bundled checkpoint without a record: its files are whole, and git knows the sums.
    Raises `CheckpointError` naming what changed, or if there is no record to compare with.
    """
    folder = ensure(model, checkpoints, fetch=False)
    if (folder / folders.RECORD).exists():
        record = folders.read_record(folder)
        folders.check_sums(folder, record)
        return record
    folders.check_complete(folder, folders.ESSENTIAL)
    if model in catalog.CHECKPOINTS and not catalog.CHECKPOINTS[model].sources:
        return None
    what = f"{folder} is whole, but has no sums on record to compare with"
    raise CheckpointError(f"{what}; record them with: deepseek-ocr weights adopt {folder}")


def adopt(folder: Path, checkpoints: Path, name: str = FETCHED[0]) -> Path:
    """Make the files of `folder`, got by other means, the named checkpoint; returns its place.

    Only JSON and safetensors are taken, as hard links if that is possible and copies otherwise;
    `folder` stays as it is, and may be the named place itself.
    Raises `CheckpointError` if it is no whole checkpoint of this network, or the name is taken.
    """
    from deepseek_ocr.model.checkpoint import read_config  # imports torch: seconds

    try:
        folders.check_complete(folder, folders.ESSENTIAL)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {error}") from error
    read_config(folder)
    size = sum(path.stat().st_size for path in folders.data_files(folder))
    expected = catalog.CHECKPOINTS[name].size
    if size < expected * _LEAST_SHARE:
        sizes = f"{folder} has {readable(size)}, {name} about {readable(expected)}"
        advice = "Use it by its path: --model FOLDER."
        raise CheckpointError(f"{sizes}: it is another model. {advice}")
    place, target = _named_folder(name, checkpoints)
    fetching.adopt(folder, name, target)
    return place


def _named_folder(name: str, checkpoints: Path) -> tuple[Path, Path]:
    """The folder of a named checkpoint, and where it really is: where a link leads is where the
    room is, and where the last rename must happen."""
    folder = checkpoints.expanduser() / name
    return folder, Path(os.path.realpath(folder))


def _given_folder(model: str) -> Path:
    folder = Path(model).expanduser()
    if not folder.is_dir():
        what = f"There is no checkpoint called {model!r} and no folder of that name"
        names = ", ".join(catalog.CHECKPOINTS)
        raise CheckpointError(f"{what}; use {names} or the path of a checkpoint folder.")
    return folder


def _bundled(name: str, checkpoints: Path) -> Path:
    bundled = bundled_folder(name)
    for folder in (checkpoints.expanduser() / name, bundled):
        if (folder / "config.json").is_file():
            return folder
    how = "git checkout checkpoints" if checkout() else "installing the package again"
    reason = f"The bundled checkpoint {name!r} is not in {bundled}; restore it with: {how}"
    raise CheckpointError(reason)


def _chosen(checkpoint: Checkpoint, source: str) -> tuple[WeightSource, ...]:
    chosen = tuple(one for one in checkpoint.sources if source in (AUTO, one.name))
    if not chosen:
        names = ", ".join((AUTO, *(one.name for one in checkpoint.sources)))
        raise SettingsError(f"There is no source {source!r}; choose one of {names}.")
    return chosen


def _not_ready(checkpoint: Checkpoint, folder: Path, state: FolderState) -> str:
    usual = folder.parent == default_checkpoints()
    elsewhere = "" if usual else f" --checkpoints {folder.parent}"
    how = f"deepseek-ocr weights fetch {checkpoint.name}{elsewhere}"
    if state.condition is Condition.DAMAGED:
        return f"{folder} is damaged: {state.detail} Fetch it again with: {how}"
    if state.condition is Condition.INCOMPLETE:
        return f"{folder} is not a whole checkpoint: {state.detail} Complete it, or move it away."
    what = f"The checkpoint {checkpoint.name!r} is not in {folder}."
    other = "or try --model pocket (bundled, reads a few lines of clean print)."
    return f"{what} Fetch it ({readable(checkpoint.size)}) with: {how}; {other}"
