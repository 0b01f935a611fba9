"""The bytes of a checkpoint: by pget if it is installed, else by huggingface_hub.

pget (the Replicate downloader, not the PyPI package of that name) is fast, but checks no sums and
leaves partial files behind; what it fetched is checked afterwards by `fetch.py`.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from deepseek_ocr.console import one_line
from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.weights.catalog import WeightSource
from deepseek_ocr.weights.growth import bytes_in
from deepseek_ocr.weights.origins import RemoteFile

PGET_PREFIX = "pget-"
"""Of the folders that a pget fills."""

_NOT_FOR_PGET = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "PGET_EXTRACT")
"""Environment variables: the token, and pget's own unpacking, which checks too little."""

_SLACK_BYTES = 64 * 2**20
"""What a download may write beyond the stated sizes before it is ended."""


def find_pget(source: WeightSource) -> str | None:
    """The pget to fetch `source` with, or None if huggingface_hub is to do it.

    Hugging Face with a token goes through the library, which sends the token to that hub and to
    nobody else; pget would repeat the header to the servers that the hub redirects to.
    """
    pget = shutil.which("pget")
    if pget is None or source.kind != "huggingface":
        return pget
    from huggingface_hub import get_token

    return None if get_token() else pget


def folder_for(source: WeightSource, work: Path, pget: str | None) -> Path:
    """The folder below `work` that `download` is to fill.

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


def download(
    source: WeightSource, files: Sequence[RemoteFile], folder: Path, pget: str | None
) -> None:
    """Put `files` of `source` into `folder` under their names. Nothing is checked here. Raises
    `CheckpointError` with what the downloader said, or that it stalled."""
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


def _with_pget(pget: str, source: WeightSource, files: Sequence[RemoteFile], folder: Path) -> None:
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
            [pget, *arguments], cwd=folder, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        raise CheckpointError(f"{pget} cannot be started: {error.strerror}.") from error
    sizes = [file.size for file in files]
    most = sum(size or 0 for size in sizes) + _SLACK_BYTES if None not in sizes else math.inf
    with process:
        try:
            said = _wait(process, folder, source.stall_s, most)
        finally:
            process.kill()
    if process.returncode != 0:
        last = one_line(said.decode("utf-8", "replace").strip().rpartition("\n")[2])
        reason = f"pget ended with status {process.returncode}: {last or 'it said nothing.'}"
        raise CheckpointError(reason)


def _wait(
    process: subprocess.Popen[bytes], folder: Path, stall_s: float, most_bytes: float
) -> bytes:
    """What `process` says until it ends. Raises `CheckpointError` once `folder` has stopped
    growing, or holds over `most_bytes`."""
    size, since = -1, time.monotonic()
    while True:
        try:
            return process.communicate(timeout=min(1.0, stall_s / 4))[0]
        except subprocess.TimeoutExpired as error:
            if process.poll() is not None:  # a child that pget left behind holds the pipe open
                return error.output or b""
        now = bytes_in(folder)
        if now > most_bytes:
            raise CheckpointError("more came than the source had stated; ended.")
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > stall_s:
            raise CheckpointError(f"pget stalled: nothing came for {stall_s:.0f} seconds.")


def _with_library(source: WeightSource, file: RemoteFile, folder: Path) -> None:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils.tqdm import tqdm

    no_bar: Any = partial(tqdm, disable=True)  # `growth` shows all downloaders alike
    if source.kind == "huggingface":
        hf_hub_download(
            source.repository, file.name, revision=source.revision, endpoint=source.url,
            local_dir=folder, tqdm_class=no_bar,
        )  # fmt: skip
        return
    path = folder / file.name
    # Only what has a sum is continued: nothing could tell a tar spliced from two.
    have = path.stat().st_size if file.sha256 and path.is_file() else 0
    if file.size is not None and have > file.size:
        have = 0
    with path.open("ab" if have else "wb") as part:
        http_get(file.url, part, resume_size=have, expected_size=file.size, tqdm_class=no_bar)
