"""What is kept of documents that are being read: SQLite for jobs and pages, files for uploads.

A page is in the database before anybody hears of it, so a server that is killed goes on with the
pages that were in flight. The folder is readable by its owner alone, and belongs to one server at a
time.

    FOLDER/jobs.sqlite3               jobs and page records
    FOLDER/<id>/upload/<file>         as it was handed in, under a safe name
    FOLDER/<id>/outputs/              figures, and files while they are made
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from deepseek_ocr.errors import SettingsError
from deepseek_ocr.formats import records
from deepseek_ocr.formats.records import PageRecord, SourceKind

Status = Literal["queued", "running", "done", "failed"]

_PATIENCE_S = 600.0
"""Seconds after its deadline in which a document that goes with its request is still fetched."""

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = FULL;   -- a page is kept when this says so
PRAGMA foreign_keys = ON;
PRAGMA secure_delete = ON;   -- what was read is gone when its job is
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, client TEXT NOT NULL, created REAL NOT NULL, deadline REAL,
    kept INTEGER NOT NULL, status TEXT NOT NULL, error TEXT, model TEXT NOT NULL,
    file TEXT NOT NULL, kind TEXT NOT NULL, numbers TEXT NOT NULL, fields TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS pages (
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    number INTEGER NOT NULL, failed INTEGER NOT NULL, record TEXT NOT NULL,
    PRIMARY KEY (job, number)
) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


@dataclass(frozen=True)
class OcrJob:
    """A document that was handed in.

    - `id`: not to be guessed; `client`: whose it is
    - `created`, `deadline`: seconds since 1970; no page is begun after the deadline
    - `kept`: false if it goes with the request that brought it
    - `error`: why nothing more of it will be read, if it failed as a whole
    - `file`: safe name of the upload; `kind`: what it is; `numbers`: its pages to read, from 1
    - `fields`: how to read it, as the client said
    """

    id: str
    client: str
    created: float
    deadline: float | None
    kept: bool
    status: Status
    error: str | None
    model: str
    file: str
    kind: SourceKind
    numbers: tuple[int, ...]
    fields: Mapping[str, str]


class JobStore:
    """The folder of jobs; any thread may call. Raises `SettingsError` if the folder cannot be
    used, or another server uses it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._owner = FileLock(folder / "jobs.lock")
            self._owner.acquire(timeout=0)
            self._database = sqlite3.connect(
                folder / "jobs.sqlite3", check_same_thread=False, isolation_level=None
            )
            self._database.executescript(_SCHEMA)
        except Timeout as error:
            why = f"Another server keeps its jobs in {folder}; give this one a folder of its own."
            raise SettingsError(why) from error
        except (OSError, sqlite3.Error) as error:
            why = f"Jobs cannot be kept in {folder} ({error}); choose another folder."
            raise SettingsError(why) from error
        self._lock = threading.Lock()

    def close(self) -> None:
        """Give the folder to another server."""
        with self._lock:
            self._database.close()
        self._owner.release()

    def _run(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()

    def _ids(self, statement: str, values: Sequence[Any] = ()) -> list[str]:
        return [row[0] for row in self._run(statement, values)]

    # --- jobs -----------------------------------------------------------------------------------

    def home(self, job: str) -> Path:
        """The folder of a job's files."""
        return self.folder / job

    def upload(self, job: OcrJob) -> Path:
        """The file that was handed in."""
        return self.home(job.id) / "upload" / job.file

    def outputs(self, job: OcrJob) -> Path:
        """Where its figures lie."""
        return self.home(job.id) / "outputs"

    def add(self, job: OcrJob) -> None:
        """Keep a new job, whose upload lies in its place already."""
        values = (*astuple(job)[:-2], json.dumps(job.numbers), json.dumps(dict(job.fields)))
        self._run("INSERT INTO jobs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)

    def get(self, job: str, client: str) -> OcrJob | None:
        """A job of this client's; None if there is none, or it is another client's."""
        found = self._run("SELECT * FROM jobs WHERE id = ? AND client = ?", (job, client))
        return _job(found[0]) if found else None

    def unfinished(self) -> list[OcrJob]:
        """Jobs of which pages are still to be read, oldest first."""
        unread = "SELECT * FROM jobs WHERE status IN ('queued', 'running') ORDER BY created"
        return [_job(row) for row in self._run(unread)]

    def has(self, job: str) -> bool:
        """True until a job is forgotten."""
        return bool(self._run("SELECT 1 FROM jobs WHERE id = ?", (job,)))

    def newest(self, client: str, most: int) -> list[tuple[OcrJob, dict[str, int]]]:
        """The newest `most` jobs of `client` that outlive their requests, newest first, and how far
        each is, as `counts_of`."""
        rows = self._run(
            "SELECT jobs.*, count(number), coalesce(sum(failed), 0) FROM jobs "
            "LEFT JOIN pages ON job = id WHERE client = ? AND kept "
            "GROUP BY id ORDER BY created DESC, jobs.rowid DESC LIMIT ?",
            (client, most),
        )
        found = ((_job(job), settled, failed) for *job, settled, failed in rows)
        return [(job, counts_of(job, settled, failed)) for job, settled, failed in found]

    def unread(self, client: str) -> tuple[int, int]:
        """How many jobs have not ended: all, and those of `client`."""
        everybody, own = self._run(
            "SELECT count(*), coalesce(sum(client = ?), 0) FROM jobs "
            "WHERE status IN ('queued', 'running')", (client,),
        )[0]  # fmt: skip
        return everybody, own

    def set_status(self, job: str, status: Status, error: str | None = None) -> None:
        """How a job stands."""
        self._run("UPDATE jobs SET status = ?, error = ? WHERE id = ?", (status, error, job))

    def drop(self, job: str) -> None:
        """Forget a job and its pages, without its files."""
        self._run("DELETE FROM jobs WHERE id = ?", (job,))

    def clear(self, job: str) -> None:
        """Remove the files of a job."""
        shutil.rmtree(self.home(job), ignore_errors=True)  # what stays goes with `tidy`

    def tidy(self, older_than: float) -> list[str]:
        """Forget ended jobs from before `older_than` (seconds since 1970), jobs whose requests went
        with an earlier server, and files of no job; the ids of the jobs forgotten.

        For a server that starts, before it takes requests.
        """
        gone = [*self._ids("SELECT id FROM jobs WHERE NOT kept"), *self.expired(older_than)]
        for job in gone:
            self.drop(job)
            self.clear(job)
        known = set(self._ids("SELECT id FROM jobs"))
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in known:
                shutil.rmtree(path, ignore_errors=True)
        return gone

    def expired(self, older_than: float) -> list[str]:
        """Ended jobs that came before `older_than`, and those whose request must be over."""
        return self._ids(
            "SELECT id FROM jobs WHERE status IN ('done', 'failed') AND "
            "(created < ? OR (NOT kept AND deadline < ?))",
            (older_than, time.time() - _PATIENCE_S),
        )

    def surplus(self, per_client: int, total: int) -> list[str]:
        """Which of the ended jobs that outlive their requests are too many: of each client all but
        the newest `per_client`, of all together all but the newest `total`."""
        return self._ids(
            "SELECT id FROM (SELECT id, "
            "row_number() OVER (PARTITION BY client ORDER BY created DESC, rowid DESC) AS own, "
            "row_number() OVER (ORDER BY created DESC, rowid DESC) AS place "
            "FROM jobs WHERE kept AND status IN ('done', 'failed')) WHERE own > ? OR place > ?",
            (per_client, total),
        )

    # --- pages ----------------------------------------------------------------------------------

    def keep(self, job: str, record: PageRecord) -> None:
        """Keep a page that came to its end; of a job that is gone, nothing."""
        data = json.dumps(records.record_to_json(record), ensure_ascii=False)
        data = data.encode("utf-8", "replace").decode()
        self._run(
            "INSERT OR REPLACE INTO pages SELECT ?, ?, ?, ? "
            "WHERE EXISTS (SELECT 1 FROM jobs WHERE id = ?)",
            (job, record.number, record.error is not None, data, job),
        )

    def page(self, job: str, number: int) -> PageRecord | None:
        """The record of a page; None if it is not read yet."""
        rows = self._run("SELECT record FROM pages WHERE job = ? AND number = ?", (job, number))
        return records.record_from_json(json.loads(rows[0][0])) if rows else None

    def settled(self, job: str) -> dict[int, bool]:
        """The pages that came to their end, in order, and whether each failed."""
        rows = self._run("SELECT number, failed FROM pages WHERE job = ? ORDER BY number", (job,))
        return {number: bool(failed) for number, failed in rows}

    def pages(self, job: OcrJob) -> Sequence[PageRecord]:
        """The records of a job's pages, each loaded when it is looked at; a page that is not read
        has a record that says so."""

        def load(number: int) -> PageRecord:
            unread = "It was not read; hand the document in again."
            return self.page(job.id, number) or PageRecord(number, error=unread)

        return records.LazyRecords(job.numbers, load)


def _job(row: Sequence[Any]) -> OcrJob:
    job, numbers, fields = OcrJob(*row), tuple(json.loads(row[-2])), json.loads(row[-1])
    return replace(job, kept=bool(job.kept), numbers=numbers, fields=fields)


def counts_of(job: OcrJob, settled: int, failed: int) -> dict[str, int]:
    """How far `job` is, of which `settled` pages came to their end, `failed` of them with an error:
    pages in all, read, failed."""
    return {"total": len(job.numbers), "read": settled - failed, "failed": failed}
