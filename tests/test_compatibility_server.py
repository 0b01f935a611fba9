"""The server takes over jobs from before it moved into one package, and keeps its routes and names.

`tests/before/` holds the jobs, and the names that there were; its README says which revision made
them and how.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import jsonschema
import pytest

from tests.before import interface
from tests.serving_world import serving
from tests.test_compatibility import BEFORE, NAMES, missing

JOBS: dict[str, str] = json.loads((BEFORE / "jobs.json").read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a server that found the store where it keeps jobs unless it is told."""
    state = tmp_path_factory.mktemp("state")
    store = shutil.copytree(BEFORE / "jobs", state / "deepseek-ocr" / "jobs")
    database = sqlite3.connect(store / "jobs.sqlite3")
    database.executescript((store / "jobs.sql").read_text(encoding="utf-8"))
    # They came a moment ago, or they would be forgotten.
    database.execute(
        "UPDATE jobs SET created = created - (SELECT max(created) FROM jobs) + ?",
        (time.time() - 60,),
    )
    database.commit()
    database.close()
    environ = {"DEEPSEEK_OCR_API_KEYS": JOBS["key"], "XDG_STATE_HOME": str(state)}
    with (
        serving("--model", "pocket", "--device", "cpu", environ=environ) as started,
        httpx.Client(
            base_url=started.url,
            headers={"authorization": f"Bearer {JOBS['key']}"},
            trust_env=False,
            timeout=60,
        ) as client,
    ):
        yield client


# --- jobs ---------------------------------------------------------------------------------------


def records_of(job: str) -> list[dict[str, Any]]:
    """The pages of a job as they lie in the store that was kept."""
    database = sqlite3.connect(":memory:")
    database.executescript((BEFORE / "jobs" / "jobs.sql").read_text(encoding="utf-8"))
    rows = database.execute("SELECT record FROM pages WHERE job = ? ORDER BY number", (job,))
    found = [json.loads(record) for (record,) in rows]
    database.close()
    return found


def same_reading(page: Mapping[str, Any], record: Mapping[str, Any]) -> bool:
    """True if a page of a result is that of the record: nobody takes equally long twice."""
    timings = {name: round(seconds, 4) for name, seconds in record["timings"].items()}
    return (page["text"], page["timings"]) == (record["text"], timings)


def test_a_document_that_was_read_is_given_out(server: httpx.Client) -> None:
    job = f"/v1/ocr/jobs/{JOBS['finished']}"
    status = server.get(job).json()
    assert (status["status"], status["name"]) == ("done", "ledger.pdf")
    pages, records = status["result"]["pages"], records_of(JOBS["finished"])
    assert [*map(same_reading, pages, records)] == [True, True]
    events = [json.loads(line)["type"] for line in server.get(f"{job}/events").text.splitlines()]
    assert events == ["document.opened", "page.done", "page.done", "document.done"]
    assert "Total 498" in server.get(f"{job}/output/md").text
    assert server.get(f"{job}/output/searchable-pdf").content.startswith(b"%PDF")
    assert server.get(f"{job}/pages/2/image").headers["content-type"] == "image/jpeg"


def test_a_document_that_was_being_read_is_read_to_its_end(server: httpx.Client) -> None:
    job = f"/v1/ocr/jobs/{JOBS['half']}"
    lines = server.get(f"{job}/events").text.splitlines()  # to the last of them
    assert json.loads(lines[-1])["status"] == "done"
    status = server.get(job).json()
    assert status["pages"] == {"total": 3, "read": 3, "failed": 0}
    pages = status["result"]["pages"]
    texts = ("Apple 12", "Invoice", "Total 498")
    assert all(text in page["text"] for text, page in zip(texts, pages, strict=True))
    (record,) = records_of(JOBS["half"])
    assert same_reading(pages[0], record)


def test_jobs_stay_their_clients(server: httpx.Client) -> None:
    listed = [one["id"] for one in server.get("/v1/ocr/jobs").json()["data"]]
    assert listed[-2:] == [JOBS["half"], JOBS["finished"]]


# --- names --------------------------------------------------------------------------------------


def test_routes_and_what_they_take(server: httpx.Client) -> None:
    now = interface.requests_of(server.get("/openapi.json").json())
    assert missing(NAMES["http"]["requests"], now) == {}
    assert missing(NAMES["http"]["hidden"], interface.open_paths(server)) == {}


def test_what_routes_answer(server: httpx.Client) -> None:
    """Of a document that is read now: records of before would have the names of before."""
    job = interface.finished_job(server, BEFORE / "documents" / "ledger.pdf")
    now = interface.answers_of(server, BEFORE / "documents" / "invoice.png", job)
    assert missing(NAMES["http"]["answers"], now) == {}


def test_documents_of_before_fit_the_schema(server: httpx.Client) -> None:
    schema = server.get("/document.schema.json").json()
    documents = [*(BEFORE / "finished").glob("*/*.json")]
    assert documents
    for path in documents:
        jsonschema.validate(json.loads(path.read_text()), schema)
