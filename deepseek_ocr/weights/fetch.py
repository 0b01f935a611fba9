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
from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr.console import one_line, readable
from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.weights import folders, tar_archive, transfer
from deepseek_ocr.weights import origins as sources
from deepseek_ocr.weights.fetch_console import Console, bytes_in
from deepseek_ocr.weights.folders import Condition
from deepseek_ocr.weights.origins import RemoteFile, Source

_SLACK = 16 * 2**20
"""Bytes left over for the small files and for whoever else writes to this disk."""

_READY = "ready"

_ADVICE = (
    "Try again later, or download its files by hand and run: deepseek-ocr weights adopt FOLDER"
)


@dataclass(frozen=True)
class Order:
    """What to fetch: the `files` of checkpoint `name` into the folder `target`.

    `size` (bytes, about) is for saying how much is needed where a source does not.
    """

    name: str
    target: Path
    files: Sequence[str]
    size: int
    sources: Sequence[Source]
    console: Console

    @property
    def work(self) -> Path:
        """Where it is built: on the same disk, or the last step would not be a rename."""
        return self.target.with_name(f".{self.target.name}.part")


def fetch(order: Order) -> None:
    """Make `order.target` a complete checkpoint; does nothing where it is one already.

    Raises `CheckpointError` listing what went wrong with each source, or what is in the way.
    """
    with _locked(order):
        state = folders.examine(order.target)
        if state.condition in (Condition.READY, Condition.UNRECORDED):
            shutil.rmtree(order.work, ignore_errors=True)  # of a run killed at its very end
            return
        _require_free_name(order, state)
        if state.condition is Condition.DAMAGED:
            order.console.line(f"{order.target} is damaged: {state.detail} It is fetched again.")
        failures: list[str] = []
        for source in order.sources:
            try:
                ready = _fetch_from(source, order)
            except (CheckpointError, OSError) as error:
                failures.append(f"  {source.name}: {one_line(error)}")
                order.console.line(failures[-1])
            else:
                _put_in_place(ready, order)
                return
        raise CheckpointError(
            "\n".join([f"{order.name} could not be fetched:", *failures, _ADVICE])
        )


def adopt(folder: Path, order: Order) -> None:
    """Make the JSON and safetensors files of the whole checkpoint `folder` those of the order.

    They become hard links where that is possible and copies otherwise; where `folder` is the
    target itself, it only gets its record.
    Raises `CheckpointError` where the name is taken or the place cannot be written to.
    """
    with _locked(order):
        if order.target.is_dir() and order.target.samefile(folder):
            folders.write_record(folder, folders.make_record(folder, "adopted", ""))
            return
        state = folders.examine(order.target)
        if state.condition in (Condition.READY, Condition.UNRECORDED):
            raise CheckpointError(
                f"{order.target} is there already; move it away to adopt another."
            )
        _require_free_name(order, state)
        ready = order.work / _READY
        ready.mkdir()
        for path in folders.data_files(folder):
            _link_or_copy(path.resolve(), ready / path.name)
        folders.check_complete(ready, folders.ESSENTIAL)
        order.console.line("computing the sums")
        folders.write_record(ready, folders.make_record(ready, "adopted", ""))
        _put_in_place(ready, order)


def _link_or_copy(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except OSError:  # another disk, or a file system without links
        _require_room(copy.parent, path.stat().st_size, f"a copy of {path.name}")
        shutil.copyfile(path, copy)


@contextmanager
def _locked(order: Order) -> Iterator[None]:
    """Hold the checkpoint's lock and have an empty working folder (but for what can be resumed).

    Raises `CheckpointError` where the place cannot be written to.
    """
    from filelock import FileLock, Timeout

    home = order.target.parent
    lock = FileLock(home / f".{order.target.name}.lock")
    try:
        home.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            order.console.line(f"{order.name}: waiting for another process that is fetching it")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise CheckpointError(_unwritable(home, error)) from error
    try:
        _tidy(order)
        yield
    except OSError as error:
        raise CheckpointError(_unwritable(home, error)) from error
    finally:
        with suppress(OSError):
            order.work.rmdir()  # stays where a download can be continued
        lock.release()


def _unwritable(home: Path, error: Exception) -> str:
    reason = getattr(error, "strerror", None) or one_line(error)
    return (
        f"{home} cannot be written to ({reason}); choose another folder "
        "with DEEPSEEK_OCR_CHECKPOINTS or --checkpoints."
    )


def _require_free_name(order: Order, state: folders.State) -> None:
    """Raises `CheckpointError` where the target is something this program must not replace."""
    if state.condition is Condition.INCOMPLETE:
        raise CheckpointError(
            f"{order.target} is in the way: {state.detail} It was not made by this program, so it "
            "is not touched; complete it or move it away, then try again."
        )
    if os.path.ismount(order.target):
        raise CheckpointError(
            f"{order.target} is a mount point, which no finished folder can replace; mount "
            f"{order.target.parent} instead."
        )


def _tidy(order: Order) -> None:
    """Remove what killed runs left, except downloads that can go on."""
    order.work.mkdir(exist_ok=True)
    for path in (*order.work.glob(f"{transfer.PGET_PREFIX}*"), order.work / _READY):
        # A pget that outlived its parent may still be adding files; those stay until next time.
        shutil.rmtree(path, ignore_errors=True)


def _fetch_from(source: Source, order: Order) -> Path:
    """A complete folder with the files of `source`, checked and recorded, below `order.work`."""
    remote = sources.listing(source, order.files)
    pget = transfer.program(source)
    folder = transfer.folder_for(source, order.work, pget)
    try:
        total = _check_room(source, remote, folder, order)
        by = "pget" if pget else "huggingface_hub"
        order.console.line(f"{order.name}: {readable(total)} from {source.name}, by {by}")
        with order.console.growth(folder, total):
            transfer.transfer(source, remote, folder, pget)
    except BaseException:  # an interruption too must not leave what cannot be continued
        if pget or shutil.disk_usage(order.work).free < _SLACK:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    ready = order.work / _READY
    try:
        _accept(source, remote, folder, ready, order)
    except BaseException:
        shutil.rmtree(ready, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return ready


def _check_room(source: Source, remote: Sequence[RemoteFile], folder: Path, order: Order) -> int:
    """The bytes to download; raises `CheckpointError` where the disk has too little for them."""
    sizes = [file.size for file in remote if file.size is not None]
    total = sum(sizes) if len(sizes) == len(remote) else order.size
    needed = total * (2 if source.kind == "tar" else 1) - bytes_in(folder)
    what = "the tar and the files copied out of it" if source.kind == "tar" else "the download"
    for path in [path for path in order.work.iterdir() if path != folder]:
        if shutil.disk_usage(folder).free < needed + _SLACK:
            # Another source's beginning, of no use if this one succeeds.
            shutil.rmtree(path, ignore_errors=True)
    _require_room(folder, needed, what)
    return total


def _require_room(folder: Path, needed: int, what: str) -> None:
    """Raises `CheckpointError` where the disk of `folder` has not `needed` bytes to spare."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SLACK:
        raise CheckpointError(
            f"too little room: {what} need {readable(needed + _SLACK)} and {folder.parent.parent} "
            f"has {readable(free)}; free some, or choose another folder "
            "with DEEPSEEK_OCR_CHECKPOINTS."
        )


def _accept(
    source: Source, remote: Sequence[RemoteFile], folder: Path, ready: Path, order: Order
) -> None:
    """Move what was downloaded into `ready` and record it, if it is what the source promised."""
    for file in remote:
        size = (folder / file.name).stat().st_size
        if file.size is not None and size != file.size:
            raise CheckpointError(f"{file.name} came with {size} bytes instead of {file.size}.")
    ready.mkdir()
    if source.kind == "tar":
        order.console.line("  copying the files out of the tar")
        tar_archive.copy_out(folder / sources.TAR_NAME, ready)
    else:
        for file in remote:
            (folder / file.name).rename(ready / file.name)
    folders.check_complete(ready, order.files)
    order.console.line("  computing the sums")
    record = folders.make_record(ready, source.name, source.revision)
    for file in remote:
        if file.sha256 and record.files[file.name].sha256 != file.sha256:
            raise CheckpointError(
                f"{file.name} came with another SHA-256 than {source.url} states."
            )
    folders.write_record(ready, record)


def _put_in_place(ready: Path, order: Order) -> None:
    """Give the finished folder `ready` its name; raises `OSError`. Call it under the lock.

    A damaged checkpoint of that name is kept under another: perhaps somebody changed it on purpose.
    """
    _flush(ready)
    if order.target.exists():
        if any(order.target.iterdir()):
            names = (f"{order.target.name}.damaged-{number}" for number in itertools.count(1))
            paths = (order.target.with_name(name) for name in names)
            aside = next(path for path in paths if not path.exists())
            order.target.rename(aside)
            order.console.line(f"  the damaged one is kept as {aside}; delete it if you can")
        else:
            order.target.rmdir()
    ready.rename(order.target)
    shutil.rmtree(order.work, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Have `folder` on the disk, or a power cut could leave the name without the content."""
    if os.name != "posix":
        return  # other systems flush only what is open for writing
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
