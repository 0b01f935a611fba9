"""The bytes of a checkpoint: by pget where it is installed, else by huggingface_hub.

pget (the Replicate downloader, not the PyPI package of that name) is fast, but checks no sums and
leaves partial files behind; what it fetched is checked afterwards by `order.py`.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from deepseek_ocr.console import one_line
from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.weights.fetch_console import bytes_in
from deepseek_ocr.weights.origins import RemoteFile, Source

PGET_PREFIX = "pget-"
"""Of the folders that a pget fills."""

_NOT_FOR_PGET = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PGET_EXTRACT")
"""Environment variables: the token, and pget's own unpacking, which checks too little."""

_SLACK_BYTES = 64 * 2**20
"""What a download may write beyond the stated sizes before it is ended."""


def program(source: Source) -> str | None:
    """The pget to fetch `source` with, or None where huggingface_hub is to do it.

    Hugging Face with a token goes through the library, which sends the token to that hub and to
    nobody else; pget would repeat the header to the servers that the hub redirects to.
    """
    pget = shutil.which("pget")
    if pget is None or source.kind != "huggingface":
        return pget
    from huggingface_hub import get_token

    return None if get_token() else pget


def folder_for(source: Source, work: Path, pget: str | None) -> Path:
    """The folder below `work` that `transfer` is to fill.

    pget's is a new one each time: a pget whose parent was killed may still be writing into the
    last. The library's keeps its name, so that an interrupted download goes on where it was.
    """
    if pget:
        return Path(tempfile.mkdtemp(prefix=PGET_PREFIX, dir=work))
    folder = work / source.name
    folder.mkdir(exist_ok=True)
    for leftover in folder.rglob("*.incomplete"):  # of huggingface_hub, under a random name
        leftover.unlink()
    return folder


def transfer(source: Source, files: Sequence[RemoteFile], folder: Path, pget: str | None) -> None:
    """Put `files` of `source` into `folder` under their names. Nothing is checked here.

    Raises `CheckpointError` with what the downloader said, or that it stalled.
    """
    if pget:
        _with_pget(pget, source, files, folder)
        return
    try:
        for file in files:
            _with_library(source, file, folder)
    except CheckpointError:
        raise
    except Exception as error:  # the library's and its HTTP client's errors have no common base
        raise CheckpointError(f"the download broke off: {one_line(error)}") from error


def _with_pget(pget: str, source: Source, files: Sequence[RemoteFile], folder: Path) -> None:
    if len(files) == 1:
        arguments = [files[0].url, files[0].name]
    else:
        # Names, not paths: a manifest line ends at the first blank, and folders may have blanks.
        lines = [f"{file.url} {file.name}\n" for file in files]
        (folder / "manifest.txt").write_text("".join(lines), encoding="utf-8")
        arguments = ["multifile", "manifest.txt"]
    # The environment is handed on without the token. pget runs once per machine at a time, by a
    # lock on a file that only root may write; a file of our own waits for nobody.
    environment = {name: text for name, text in os.environ.items() if name not in _NOT_FOR_PGET}
    environment["PGET_PID_FILE"] = str(folder / "pget.pid")
    try:
        process = subprocess.Popen(
            [pget, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    except OSError as error:
        raise CheckpointError(f"{pget} cannot be started: {error.strerror}.") from error
    with process, _last_words(process) as words:
        try:
            status = _wait(process, folder, source.stall_s, _most_bytes(files))
        finally:
            process.kill()
    if status != 0:
        said = one_line(words[-1].decode("utf-8", "replace")) if words else "it said nothing."
        raise CheckpointError(f"pget ended with status {status}: {said}")


@contextmanager
def _last_words(process: subprocess.Popen[bytes]) -> Iterator[deque[bytes]]:
    """The last lines that `process` writes while the body runs: in memory, for full disks."""
    stream = process.stdout
    assert stream is not None
    lines: deque[bytes] = deque(maxlen=4)

    def listen() -> None:
        lines.extend(line for line in iter(partial(stream.readline, 4096), b"") if line.strip())

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        thread.join(timeout=5)  # a child that pget left behind may hold the pipe open


def _most_bytes(files: Sequence[RemoteFile]) -> float:
    """Bytes that `files` may take; unbounded where the source did not state a size."""
    sizes = [file.size for file in files]
    return sum(size or 0 for size in sizes) + _SLACK_BYTES if None not in sizes else math.inf


def _wait(process: subprocess.Popen[bytes], folder: Path, stall_s: float, most_bytes: float) -> int:
    """The exit status of `process`.

    Raises `CheckpointError` once `folder` has stopped growing, or holds over `most_bytes`.
    """
    size, since = -1, time.monotonic()
    while True:
        try:
            return process.wait(timeout=min(1.0, stall_s / 4))
        except subprocess.TimeoutExpired:
            now = bytes_in(folder)
        if now > most_bytes:
            raise CheckpointError("more came than the source had stated; ended.")
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > stall_s:
            raise CheckpointError(f"pget stalled: nothing came for {stall_s:.0f} seconds.")


def _with_library(source: Source, file: RemoteFile, folder: Path) -> None:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils.tqdm import tqdm
    except ImportError as error:
        raise CheckpointError(
            "there is neither the program pget nor the library: pip install huggingface_hub."
        ) from error

    no_bar: Any = partial(tqdm, disable=True)  # the console reports for all downloaders alike
    if source.kind == "huggingface":
        hf_hub_download(
            source.repository,
            file.name,
            revision=source.revision,
            endpoint=source.url,
            local_dir=folder,
            tqdm_class=no_bar,
        )
        return
    path = folder / file.name
    # Only what has a sum is continued: nothing could tell a tar spliced from two.
    have = path.stat().st_size if file.sha256 and path.is_file() else 0
    if file.size is not None and have > file.size:
        have = 0
    with path.open("ab" if have else "wb") as part:
        http_get(file.url, part, resume_size=have, expected_size=file.size, tqdm_class=no_bar)
