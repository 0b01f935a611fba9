"""Where a checkpoint can be fetched, and what each place says about the files beforehand."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from deepseek_ocr.console import one_line
from deepseek_ocr.errors import CheckpointError
from deepseek_ocr.weights.catalog import WeightSource
from deepseek_ocr.weights.folders import SHA256

TAR_NAME = "part.tar"

_LONGEST_LISTING = 16 * 2**20
_GONE = (404, 410)
"""Answers to HEAD that a download would get too; others may mean only that HEAD is not served."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a source; size in bytes and SHA-256 (hexadecimal) if the source states them."""

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None


def list_files(source: WeightSource, names: Sequence[str]) -> list[RemoteFile]:
    """What `source` says about the files `names`, or about its tar. Raises `CheckpointError` if it
    does not answer, refuses, or lacks one of the files."""
    if source.kind == "tar":
        return [RemoteFile(TAR_NAME, source.url, _size_by_head(source))]
    entries = _huggingface(source) if source.kind == "huggingface" else _modelscope(source)
    known = {file.name: file for file in entries if file.name in names}
    if missing := [name for name in names if name not in known]:
        reason = f"{source.repository} at revision {source.revision} lacks {', '.join(missing)}."
        raise CheckpointError(reason)
    return [known[name] for name in names]


def _size_by_head(source: WeightSource) -> int | None:
    try:
        with _answer(source, source.url, "HEAD") as response:
            length: str = response.headers.get("Content-Length", "")
    except CheckpointError as error:
        refused = error.__cause__
        if isinstance(refused, urllib.error.HTTPError) and refused.code not in _GONE:
            return None
        raise
    return int(length) if length.isascii() and length.isdigit() else None


def _huggingface(source: WeightSource) -> Iterable[RemoteFile]:
    """Files of a repository on the Hugging Face hub.

    The library reads HF_TOKEN (or a stored login) itself and sends it to this hub only.
    """
    from huggingface_hub import HfApi, hf_hub_url

    name, revision, endpoint = source.repository, source.revision, source.url
    try:
        info = HfApi(endpoint=endpoint).model_info(
            name, revision=revision, files_metadata=True, timeout=source.timeout_s
        )
    except Exception as error:  # the library's and its HTTP client's errors have no common base
        answered = getattr(error, "response", None) is not None
        what = f"does not list {name}" if answered else "cannot be reached"
        raise CheckpointError(f"{endpoint} {what}: {one_line(error)}") from error
    for file in info.siblings or []:
        url = hf_hub_url(name, file.rfilename, revision=revision, endpoint=endpoint)
        yield _remote(file.rfilename, url, file.size, file.lfs.sha256 if file.lfs else None)


def _modelscope(source: WeightSource) -> Iterable[RemoteFile]:
    base = f"{source.url}/api/v1/models/{source.repository}/repo"
    revision = urllib.parse.quote(source.revision, safe="")
    listed = _read_json(source, f"{base}/files?Revision={revision}&Recursive=true")
    try:
        for file in listed["Data"]["Files"]:
            path = str(file["Path"])
            url = f"{base}?Revision={revision}&FilePath={urllib.parse.quote(path, safe='')}"
            yield _remote(path, url, file.get("Size"), file.get("Sha256") or None)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{source.url} answered with an unknown kind of listing.") from error


def _remote(name: str, url: str, size: Any, sha256: Any) -> RemoteFile:
    """Checked before use: these numbers decide what is accepted and how much room is asked for."""
    if size is not None and (type(size) is not int or size < 0):
        raise CheckpointError(f"the listing gives {one_line(name)} the size {one_line(size)!r}.")
    if sha256 is not None and not (isinstance(sha256, str) and SHA256.fullmatch(sha256.lower())):
        raise CheckpointError(f"the listing gives {one_line(name)} a SHA-256 that is none.")
    return RemoteFile(name, url, size, sha256.lower() if sha256 else None)


def _read_json(source: WeightSource, url: str) -> Any:
    with _answer(source, url, "GET") as response:
        body = response.read(_LONGEST_LISTING + 1)
    if len(body) > _LONGEST_LISTING:
        raise CheckpointError(f"{source.url} answered with an endless listing.")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source.url} answered with something that is not JSON.") from error


@contextmanager
def _answer(source: WeightSource, url: str, method: str) -> Iterator[Any]:
    """The response of `source`. Raises `CheckpointError` if it refuses or cannot be reached."""
    headers = {"User-Agent": "deepseek-ocr"}
    request = urllib.request.Request(url, headers=headers, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=source.timeout_s) as response:  # noqa: S310
            yield response  # the address is from our own table
    except urllib.error.HTTPError as error:
        error.close()
        status = f"{error.code} {one_line(error.reason)}"
        raise CheckpointError(f"{source.url} answered {status}.") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = one_line(getattr(error, "reason", error))
        raise CheckpointError(f"{source.url} cannot be reached: {reason}.") from error
