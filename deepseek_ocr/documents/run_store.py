"""What a run keeps on disk, so that it can be killed at any moment and go on later.

    OUT/manifest.jsonl          a line for every page as it is settled; only ever added to
    OUT/<name>/                 the outputs of one document
    OUT/.pages/<name>/          source.json: whose folder this is; 00001.json: what was read;
                                written.json: what the outputs were made from

A page is done when its record is there, whole, without an error, and made from the same bytes by
the same settings. (After a power cut a record may be damaged: its page is read again.)

Every part of a sharded run writes a manifest of its own (`manifest.2-of-8.jsonl`), because
appending is not safe between machines that share a folder over a network; together they are the
manifest of the whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from deepseek_ocr.documents.inputs import Input, Shard, shown, with_hash
from deepseek_ocr.errors import RecordError, SettingsError
from deepseek_ocr.files import atomic_write
from deepseek_ocr.formats.records import LazyRecords, PageRecord, record_from_json, record_to_json
from deepseek_ocr.formats.writing import PdfPages

PAGES = ".pages"

_SAMPLE = 1 << 20
"""Bytes looked at in three places of a file of weights."""


class Store(AbstractContextManager["Store"]):
    """The output folder of a run. Methods may be called from several threads. Raises
    `SettingsError` where the folder cannot be written, or another run is writing there."""

    def __init__(self, folder: Path, shard: Shard = Shard()) -> None:
        self.folder = folder
        part = f".{shard.index}-of-{shard.count}" if shard.count > 1 else ""
        self.manifest = folder / f"manifest{part}.jsonl"
        try:
            (folder / PAGES).mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(folder / PAGES / f"{self.manifest.name}.lock")
            self._lock.acquire(timeout=0)
            self._file = _open_manifest(self.manifest)
        except Timeout as error:
            what = f"Another run is writing to {shown(folder)}"
            raise SettingsError(f"{what}; wait for it, or choose another folder.") from error
        except OSError as error:
            what = f"{shown(folder)} cannot be written: {error.strerror}"
            raise SettingsError(f"{what}; choose another folder with -o.") from error
        self._writing = threading.Lock()
        self._listed = {_line_id(line) for line in read_manifests(folder)}

    def close(self) -> None:
        """Give the folder free for other runs."""
        os.close(self._file)
        self._lock.release()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def claim(self, found: Input, name: str, digest: str) -> str:
        """The folder name for `found`, which would be `name`: the same in every run.

        A name that an input of another path and other content has is not taken. `digest` is the
        content's.
        """
        path = shown(os.path.abspath(found.path))
        whose = {"path": path, "key": shown(found.key), "sha256": digest}
        plain = name.removesuffix(with_hash("", found.key))
        own = [one for one in (plain, name) if _is_same(self._claimed(one), whose)]
        # A document keeps the name it once got, also when others of its stem join the run.
        candidates = [*own, name, with_hash(plain, found.key), with_hash(plain, path)]
        for candidate in candidates:
            claimed = self._claimed(candidate)
            if claimed is None and self._take(candidate, whose):
                return candidate
            if _is_same(self._claimed(candidate), whose):
                self._keep(self._home(candidate) / "source.json", whose)
                return candidate
        reason = f"{path} finds its output folder taken by other files; choose another -o."
        raise SettingsError(reason)

    def _home(self, name: str) -> Path:
        return self.folder / PAGES / name

    def _claimed(self, name: str) -> Any:
        return _load(self._home(name) / "source.json")

    def _take(self, name: str, whose: Mapping[str, str]) -> bool:
        """Write the claim unless somebody was faster: a link is made once only."""
        home = self._home(name)
        home.mkdir(parents=True, exist_ok=True)
        draft = home / f"source.{os.getpid()}.json"
        self._keep(draft, whose)
        target = home / "source.json"
        try:
            if _load(target) is None:
                target.unlink(missing_ok=True)  # damaged: nobody's
            os.link(draft, target)
        except FileExistsError:
            return False
        except OSError:  # a file system without links: last come, last served
            shutil.copyfile(draft, target)
        finally:
            draft.unlink()
        return True

    def record_path(self, name: str, number: int) -> Path:
        """Where the record of a page is kept."""
        return self._home(name) / f"{number:05}.json"

    def done(self, name: str, number: int, digest: str, settings: str) -> PageRecord | None:
        """The record of a page that need not be read again: same content, same settings, read."""
        kept = _load(self.record_path(name, number))
        if not isinstance(kept, dict):
            return None
        if (kept.get("input"), kept.get("settings")) != (digest, settings):
            return None
        try:
            record = record_from_json(kept.get("page"))
        except RecordError:
            return None
        return record if record.error is None and record.number == number else None

    def keep(self, found: Input, name: str, record: PageRecord, digest: str, settings: str) -> None:
        """Keep the record of a page, then list it. Raises `OSError` where the disk is full."""
        data = {"input": digest, "settings": settings, "page": record_to_json(record)}
        self._keep(self.record_path(name, record.number), data)
        self._append(page_line(found, name, record, digest, settings))

    def list_done(
        self, found: Input, name: str, record: PageRecord, digest: str, settings: str
    ) -> None:
        """List a page that is done, unless it is: a run killed between record and line left it."""
        line = page_line(found, name, record, digest, settings)
        if _line_id(line) not in self._listed:
            self._append(line)

    def list_failed(self, found: Input, reason: str) -> None:
        """List an input that could not be opened at all."""
        line = {"source": str(found), "document": None, "page": None, "outcome": "failed"}
        self._append({**line, "reason": reason})

    def list_written(
        self, found: Input, name: str, files: Sequence[Path], pdfs: Mapping[str, PdfPages]
    ) -> None:
        """List what became of the pages of a document's PDFs, by format."""
        line = {"source": str(found), "document": name, "page": None, "outcome": "written"}
        told = {one: asdict(pages) for one, pages in pdfs.items()}
        names = [file.name for file in files]
        self._append({**line, "reason": None, "files": names, "pdfs": told})

    def forget(self, name: str) -> None:
        """Drop the page records of a document, to read it anew."""
        for path in self._home(name).glob("*.json"):
            if path.name != "source.json":
                path.unlink()

    def pages(self, name: str, numbers: Sequence[int]) -> Sequence[PageRecord]:
        """The records of a document's pages, each loaded when it is looked at."""

        def load(number: int) -> PageRecord:
            kept = _load(self.record_path(name, number))
            return record_from_json(kept.get("page") if isinstance(kept, dict) else None)

        return LazyRecords(numbers, load)

    def is_written(self, name: str, stamp: str) -> bool:
        """True where the outputs of a document are there and were made from what `stamp` is of."""
        kept = _load(self._home(name) / "written.json")
        if not isinstance(kept, dict) or kept.get("stamp") != stamp:
            return False
        return all((self.folder / name / file).is_file() for file in kept.get("files", []))

    def mark_written(self, name: str, stamp: str, files: Sequence[Path]) -> None:
        """Remember what the outputs of a document were made from."""
        names = [file.relative_to(self.folder / name).as_posix() for file in files]
        self._keep(self._home(name) / "written.json", {"stamp": stamp, "files": names})

    def stamp(self, name: str, numbers: Sequence[int], options: Mapping[str, Any]) -> str:
        """A hash over the records of a document's pages and over how they are written."""
        digest = hashlib.sha256(json.dumps([list(numbers), options], sort_keys=True).encode())
        for number in numbers:
            digest.update(self.record_path(name, number).read_bytes())
        return digest.hexdigest()

    def _keep(self, path: Path, data: Mapping[str, Any]) -> None:
        with atomic_write(path, sync=False) as stream:
            stream.write(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"))

    def _append(self, line: Mapping[str, Any]) -> None:
        """One line in one write, behind whatever is there."""
        stamped = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **line}
        data = json.dumps(stamped, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        with self._writing:
            while data:  # a full disk takes part of a line, then nothing
                data = data[os.write(self._file, data) :]
            self._listed.add(_line_id(stamped))


def page_line(
    found: Input, name: str, record: PageRecord, digest: str, settings: str
) -> dict[str, Any]:
    """What the manifest says of a page."""
    read = "retried" if len(record.tries) > 1 else "read"
    return {
        "source": str(found), "document": name, "page": record.number,
        "outcome": read if record.error is None else "failed", "reason": record.error,
        "finish_reason": record.finish_reason, "tries": [tried.outcome for tried in record.tries],
        "seconds": round(sum(tried.seconds for tried in record.tries), 3),
        "input": digest, "settings": settings,
    }  # fmt: skip


def read_manifests(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of all manifests in `folder`; a line cut short by a crash is passed over."""
    for path in sorted(folder.glob("manifest*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                try:
                    data = json.loads(line)
                except ValueError:
                    continue
                if isinstance(data, dict):
                    yield data


def _open_manifest(path: Path) -> int:
    """The manifest opened for adding lines; one that was cut short is ended first."""
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    size = os.fstat(handle).st_size
    if size:
        os.lseek(handle, size - 1, os.SEEK_SET)
        if os.read(handle, 1) != b"\n":
            os.write(handle, b"\n")
    return handle


def _line_id(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two lines say the same of the same page."""
    names = ("document", "page", "outcome", "input", "settings")
    return tuple(str(line.get(name)) for name in names)


def _is_same(claimed: Any, whose: Mapping[str, str]) -> bool:
    """True where a claim is of this input: the same path, or its copy on another machine."""
    if not isinstance(claimed, dict):
        return False
    moved = (claimed.get("key"), claimed.get("sha256")) == (whose["key"], whose["sha256"])
    return claimed.get("path") == whose["path"] or moved


def _load(path: Path) -> Any:
    """JSON of a file; None where there is none or it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content. Raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A hash over settings that are JSON data, in whatever order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def checkpoint_digest(folder: Path) -> str:
    """A hash by which one checkpoint is told from another: its small files, and of its weights
    the size and three samples, so that 6.7 GB need not be read.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".safetensors") or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for at in (0, size // 2, max(size - _SAMPLE, 0)):
                file.seek(at)
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()
