"""One checkpoint from the first source that gives it, built beside its final name.

Everything happens in `.NAME.part/` next to the target, under a lock that other processes wait for.
The finished folder gets its name by one rename, so under that name there is never half of one.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deepseek_ocr.console import complain, one_line, readable
from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.files import part_path, sync_path
from deepseek_ocr.weights import folders, origins, tar_archive, transfer
from deepseek_ocr.weights.catalog import Checkpoint, WeightSource
from deepseek_ocr.weights.folders import Condition, FolderState
from deepseek_ocr.weights.growth import bytes_in, show_growth
from deepseek_ocr.weights.origins import RemoteFile

_SLACK = 16 * 2**20
"""Bytes left over for the small files and for whoever else writes to this disk."""

_READY = "ready"

_ADVICE = "Try again later, or download its files by hand: deepseek-ocr weights adopt FOLDER"


def fetch(checkpoint: Checkpoint, target: Path, sources: Sequence[WeightSource]) -> None:
    """Make `target` the complete `checkpoint`; does nothing if it is one already. Raises
    `CheckpointError` listing what went wrong with each source, or what is in the way."""
    with _locked(checkpoint.name, target) as work:
        state = folders.examine(target)
        if state.is_whole:
            shutil.rmtree(work, ignore_errors=True)  # of a run killed at its very end
            return
        _require_free_name(target, state)
        if state.condition is Condition.DAMAGED:
            complain(f"{target} is damaged: {state.detail} It is fetched again.")
        failures: list[str] = []
        for source in sources:
            try:
                ready = _fetch_from(source, checkpoint, work)
            except (CheckpointError, OSError) as error:
                failures.append(f"  {source.name}: {one_line(error)}")
                complain(failures[-1])
            else:
                _put_in_place(ready, target)
                return
        lines = [f"{checkpoint.name} could not be fetched:", *failures, _ADVICE]
        raise CheckpointError("\n".join(lines))


def adopt(folder: Path, name: str, target: Path) -> None:
    """Make the JSON and safetensors files of the whole checkpoint `folder` those of `target`.

    They become hard links if that is possible and copies otherwise; if `folder` is the target
    itself, it only gets its record.
    Raises `CheckpointError` if the name is taken or the place cannot be written to.
    """
    with _locked(name, target) as work:
        if target.is_dir() and target.samefile(folder):
            folders.write_record(folder, folders.make_record(folder, "adopted"))
            return
        state = folders.examine(target)
        if state.is_whole:
            raise CheckpointError(f"{target} is there already; move it away to adopt another.")
        _require_free_name(target, state)
        ready = work / _READY
        ready.mkdir()
        for path in folders.data_files(folder):
            source = path.resolve()
            try:
                os.link(source, ready / path.name)
            except OSError:  # another disk, or a file system without links
                _require_room(ready, source.stat().st_size, f"a copy of {source.name}")
                shutil.copyfile(source, ready / path.name)
        folders.check_complete(ready, folders.ESSENTIAL)
        complain("computing the sums")
        folders.write_record(ready, folders.make_record(ready, "adopted"))
        _put_in_place(ready, target)


@contextmanager
def _locked(name: str, target: Path) -> Iterator[Path]:
    """The working folder of `target`, empty but for what can be resumed, under its lock.

    It is on the target's disk, or the last step would not be a rename.
    Raises `CheckpointError` if the place cannot be written to.
    """
    from filelock import FileLock, Timeout

    home, work = target.parent, part_path(target)
    lock = FileLock(home / f".{target.name}.lock")
    try:
        home.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            complain(f"{name}: waiting for another process that is fetching it")
            lock.acquire()
        try:
            work.mkdir(exist_ok=True)
            # What killed runs left goes, except downloads that can go on. A pget that outlived its
            # parent may still be adding files; those stay until next time.
            for path in (*work.glob(f"{transfer.PGET_PREFIX}*"), work / _READY):
                shutil.rmtree(path, ignore_errors=True)
            yield work
        finally:
            with suppress(OSError):
                work.rmdir()  # stays if a download can be continued
            lock.release()
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        advice = "choose another folder with DEEPSEEK_OCR_CHECKPOINTS or --checkpoints."
        raise CheckpointError(f"{home} cannot be written to ({reason}); {advice}") from error


def _require_free_name(target: Path, state: FolderState) -> None:
    """Raises `CheckpointError` if the target is something this program must not replace."""
    if state.condition is Condition.INCOMPLETE:
        what = f"{target} is in the way: {state.detail} It was not made by this program"
        advice = "complete it or move it away, then try again."
        raise CheckpointError(f"{what}, so it is not touched; {advice}")
    if os.path.ismount(target):
        what = f"{target} is a mount point, which no finished folder can replace"
        raise CheckpointError(f"{what}; mount {target.parent} instead.")


def _fetch_from(source: WeightSource, checkpoint: Checkpoint, work: Path) -> Path:
    """A complete folder with the files of `source`, checked and recorded, below `work`."""
    remote = origins.list_files(source, checkpoint.files)
    pget = transfer.find_pget(source)
    folder = transfer.folder_for(source, work, pget)
    try:
        total = _check_room(source, remote, folder, checkpoint.size)
        by = "pget" if pget else "huggingface_hub"
        complain(f"{checkpoint.name}: {readable(total)} from {source.name}, by {by}")
        with show_growth(folder, total):
            transfer.download(source, remote, folder, pget)
    except BaseException:  # an interruption too must not leave what cannot be continued
        if pget or shutil.disk_usage(work).free < _SLACK:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    ready = work / _READY
    try:
        _accept(source, remote, folder, checkpoint.files)
    except BaseException:
        shutil.rmtree(ready, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ready


def _check_room(
    source: WeightSource, remote: Sequence[RemoteFile], folder: Path, about: int
) -> int:
    """The bytes to download, or `about` if the source does not say. Raises `CheckpointError` if the
    disk has too little room for them."""
    sizes = [file.size for file in remote if file.size is not None]
    total = sum(sizes) if len(sizes) == len(remote) else about
    is_tar = source.kind == "tar"
    needed = total * (2 if is_tar else 1) - bytes_in(folder)
    for path in [path for path in folder.parent.iterdir() if path != folder]:
        if shutil.disk_usage(folder).free < needed + _SLACK:
            # Another source's beginning, of no use if this one succeeds.
            shutil.rmtree(path, ignore_errors=True)
    what = "the tar and the files copied out of it" if is_tar else "the download"
    _require_room(folder, needed, what)
    return total


def _require_room(folder: Path, needed: int, what: str) -> None:
    """Raises `CheckpointError` if the disk of `folder` has not `needed` bytes to spare."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SLACK:
        room = f"{readable(needed + _SLACK)} and {folder.parent.parent} has {readable(free)}"
        advice = "free some, or choose another folder with DEEPSEEK_OCR_CHECKPOINTS."
        raise CheckpointError(f"too little room: {what} need {room}; {advice}")


def _accept(
    source: WeightSource, remote: Sequence[RemoteFile], folder: Path, names: Sequence[str]
) -> None:
    """Move what was downloaded to where it is ready and record it, if it has the sizes and the sums
    that the source stated and is the files `names`."""
    ready = folder.parent / _READY
    for file in remote:
        size = (folder / file.name).stat().st_size
        if file.size is not None and size != file.size:
            raise CheckpointError(f"{file.name} came with {size} bytes instead of {file.size}.")
    ready.mkdir()
    if source.kind == "tar":
        complain("  copying the files out of the tar")
        tar_archive.copy_out(folder / origins.TAR_NAME, ready)
    else:
        for file in remote:
            (folder / file.name).rename(ready / file.name)
    folders.check_complete(ready, names)
    complain("  computing the sums")
    record = folders.make_record(ready, source.name, source.revision)
    for file in remote:
        if file.sha256 and record.files[file.name].sha256 != file.sha256:
            reason = f"{file.name} came with another SHA-256 than {source.url} states."
            raise CheckpointError(reason)
    folders.write_record(ready, record)


def _put_in_place(ready: Path, target: Path) -> None:
    """Give the finished folder `ready` its name; raises `OSError`. Call it under the lock.

    A damaged checkpoint of that name is kept under another: perhaps somebody changed it on purpose.
    """
    if os.name == "posix":  # other systems flush only what is open for writing
        for path in (*ready.iterdir(), ready):
            sync_path(path)  # or a power cut could leave the name without the content
    if target.exists():
        if any(target.iterdir()):
            paths = (target.with_name(f"{target.name}.damaged-{n}") for n in itertools.count(1))
            aside = next(path for path in paths if not path.exists())
            target.rename(aside)
            complain(f"  the damaged one is kept as {aside}; delete it if you can")
        else:
            target.rmdir()
    ready.rename(target)
    shutil.rmtree(ready.parent, ignore_errors=True)
