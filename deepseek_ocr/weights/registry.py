"""Named checkpoints: where they live, how they get there, and whether they are whole.

`deepseek-ocr weights` is the command line; programs call `ensure`. Importing this file imports no
torch, and nothing in a checkpoint is ever executed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr.console import readable
from deepseek_ocr.errors import CheckpointError, SettingsError
from deepseek_ocr.weights import fetch as order
from deepseek_ocr.weights import folders
from deepseek_ocr.weights.fetch_console import Console
from deepseek_ocr.weights.folders import Condition
from deepseek_ocr.weights.origins import Source

BUNDLED = Path(__file__).resolve().parents[2] / "checkpoints"
"""The checkout's own folder: bundled checkpoints are here, wherever the others are kept."""

_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
    "model-00001-of-000001.safetensors",
)

_SOURCES = (
    Source(
        "replicate",
        "tar",
        "https://weights.replicate.delivery/default/deepseek-ai/DeepSeek-OCR/model.tar",
    ),
    Source(
        "huggingface",
        "huggingface",
        "https://huggingface.co",
        "deepseek-ai/DeepSeek-OCR",
        "9f30c71f441d010e5429c532364a86705536c53a",
    ),
    Source(
        "modelscope",
        "modelscope",
        "https://www.modelscope.cn",
        "deepseek-ai/DeepSeek-OCR",
        "master",
    ),
)

_LEAST_SHARE = 0.5
"""Of a checkpoint's known size, that a folder must have to be adopted in its name."""

AUTO = "auto"
SOURCE_NAMES = (AUTO, *(source.name for source in _SOURCES))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint known by name, with the task and preset it is best at.

    `files` are fetched from one of `sources`, tried in order; one without sources is bundled.
    `size` is about how many bytes they have.
    """

    task: str
    preset: str
    files: tuple[str, ...] = ()
    size: int = 0
    sources: tuple[Source, ...] = ()


CHECKPOINTS: dict[str, Checkpoint] = {
    "deepseek-ocr": Checkpoint("markdown", "gundam", _FILES, 6_680_000_000, _SOURCES),
    "pocket": Checkpoint("ocr", "tiny"),
}

FETCHED = tuple(name for name, checkpoint in CHECKPOINTS.items() if checkpoint.sources)


def known_as(model: str) -> Checkpoint:
    """What is known of `model`, a name or the folder of a bundled one; else of the real model."""
    for name, checkpoint in CHECKPOINTS.items():
        if model == name or Path(model).expanduser().resolve() == BUNDLED / name:
            return checkpoint
    return CHECKPOINTS[FETCHED[0]]


def ensure(
    model: str,
    checkpoints: Path,
    source: str = AUTO,
    *,
    fetch: bool = True,
    console: Console | None = None,
    known: Mapping[str, Checkpoint] = CHECKPOINTS,
) -> Path:
    """The folder of `model`: a named checkpoint below `checkpoints`, or a folder given as it is.

    A named one that is missing or damaged is fetched first, from `source` ("auto" tries all in
    order), if `fetch` allows; the damaged one is kept under another name. Of one that is there
    only the sizes are checked. A folder that was put there by hand is taken if its files are
    whole; nobody knows its sums until it is adopted.

    Raises `CheckpointError` where it cannot be had, `SettingsError` for a source nobody knows.
    """
    if model not in known:
        return _given_folder(model, known)
    checkpoint = known[model]
    if not checkpoint.sources:
        return _bundled(model, checkpoints)
    target = checkpoints.expanduser() / model
    job = _order(model, checkpoint, target, _chosen(checkpoint, source), console)
    state = folders.examine(job.target)
    if state.condition in (Condition.READY, Condition.UNRECORDED):
        if fetch and job.work.exists():
            with suppress(CheckpointError):  # tidying up is no reason not to start
                order.fetch(job)
        return target
    if not fetch:
        raise CheckpointError(_not_ready(model, checkpoint, target, state))
    order.fetch(job)
    return target


def verify(
    model: str, checkpoints: Path, *, known: Mapping[str, Checkpoint] = CHECKPOINTS
) -> folders.Record | None:
    """Hash every file of `model` (name or folder) and compare with its record, which is returned.

    None is for a bundled checkpoint without a record: its files are whole, and git knows the sums.
    Raises `CheckpointError` naming what changed, or where there is no record to compare with.
    """
    folder = ensure(model, checkpoints, fetch=False, known=known)
    if (folder / folders.RECORD).exists():
        record = folders.read_record(folder)
        folders.check_sums(folder, record)
        return record
    folders.check_complete(folder, folders.ESSENTIAL)
    if model in known and not known[model].sources:
        return None
    raise CheckpointError(
        f"{folder} is whole, but has no sums on record to compare with; "
        f"record them with: deepseek-ocr weights adopt {folder}"
    )


def adopt(
    folder: Path,
    checkpoints: Path,
    name: str = FETCHED[0],
    *,
    console: Console | None = None,
    known: Mapping[str, Checkpoint] = CHECKPOINTS,
) -> Path:
    """Make the files of `folder`, got by other means, the named checkpoint; returns its place.

    Only JSON and safetensors are taken, as hard links where that is possible and copies otherwise;
    `folder` stays as it is, and may be the named place itself.
    Raises `CheckpointError` where it is no whole checkpoint of this network, or the name is taken.
    """
    from deepseek_ocr.model.checkpoint import read_config  # imports torch: seconds

    try:
        folders.check_complete(folder, folders.ESSENTIAL)
    except CheckpointError as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {error}") from error
    read_config(folder)
    size = sum(path.stat().st_size for path in folders.data_files(folder))
    if size < known[name].size * _LEAST_SHARE:
        raise CheckpointError(
            f"{folder} has {readable(size)}, {name} about {readable(known[name].size)}: it is "
            "another model. Use it by its path: --model FOLDER."
        )
    target = checkpoints.expanduser() / name
    order.adopt(folder, _order(name, known[name], target, (), console))
    return target


def _given_folder(model: str, known: Mapping[str, Checkpoint]) -> Path:
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise CheckpointError(
            f"There is no checkpoint called {model!r} and no folder of that name; "
            f"use {', '.join(known)} or the path of a checkpoint folder."
        )
    return folder


def _bundled(model: str, checkpoints: Path) -> Path:
    for folder in (checkpoints.expanduser() / model, BUNDLED / model):
        if (folder / "config.json").is_file():
            return folder
    raise CheckpointError(
        f"The bundled checkpoint {model!r} is not in {BUNDLED / model}; "
        "restore it with: git checkout checkpoints"
    )


def _chosen(checkpoint: Checkpoint, source: str) -> tuple[Source, ...]:
    if source == AUTO:
        return checkpoint.sources
    chosen = tuple(one for one in checkpoint.sources if one.name == source)
    if not chosen:
        names = ", ".join((AUTO, *(one.name for one in checkpoint.sources)))
        raise SettingsError(f"There is no source {source!r}; choose one of {names}.")
    return chosen


def _not_ready(model: str, checkpoint: Checkpoint, target: Path, state: folders.State) -> str:
    elsewhere = "" if target.parent == BUNDLED else f" --checkpoints {target.parent}"
    how = f"deepseek-ocr weights fetch {model}{elsewhere}"
    if state.condition is Condition.DAMAGED:
        return f"{target} is damaged: {state.detail} Fetch it again with: {how}"
    if state.condition is Condition.INCOMPLETE:
        return f"{target} is not a whole checkpoint: {state.detail} Complete it, or move it away."
    return (
        f"The checkpoint {model!r} is not in {target}. Fetch it ({readable(checkpoint.size)}) "
        f"with: {how}; or try --model pocket (bundled, reads a few lines of clean print)."
    )


def _order(
    name: str,
    checkpoint: Checkpoint,
    target: Path,
    sources: tuple[Source, ...],
    console: Console | None,
) -> order.Order:
    # Where a link leads is where the room is, and where the last rename must happen.
    real = Path(os.path.realpath(target))
    return order.Order(name, real, checkpoint.files, checkpoint.size, sources, console or Console())
