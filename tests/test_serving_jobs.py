"""Jobs outlive the server that took them in: killed, stopped, restarted; and whose they are."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepseek_ocr.errors import SettingsError
from deepseek_ocr.records import PageRecord
from serving.job_store import Job, JobStore
from serving.jobs import JobLimits
from tests.serving_process import FAILING, GATED, Server, document, text_of
from tests.test_serving_documents import upload

SECOND_KEY = "second-key-for-tests"


def until(server: Server, job: str, **wanted: Any) -> dict[str, Any]:
    """The status of a job once it is as `wanted`."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status: dict[str, Any] = server.http.get(f"/v1/ocr/jobs/{job}").json()
        flat = {**status, **status.get("pages", {})}
        if all(flat.get(name) == value for name, value in wanted.items()):
            return status
        time.sleep(0.05)
    raise AssertionError(f"not {wanted}: {status}")


def add(server: Server, path: Path, **data: str) -> str:
    answer = server.http.post("/v1/ocr/jobs", files=upload(path), data=data)
    assert answer.status_code == 202, answer.text
    job: str = answer.json()["id"]
    return job


# --- a job --------------------------------------------------------------------------------------


def test_status_result_and_end_of_a_job(known_server: Server, tmp_path: Path) -> None:
    job = add(known_server, document(tmp_path / "p.pdf", [1, FAILING, 3]))
    status = until(known_server, job, status="done")
    assert status["pages"] == {"total": 3, "read": 2, "failed": 1}
    assert [page.get("text") for page in status["result"]["pages"]] == [
        text_of(1),
        None,
        text_of(3),
    ]
    assert "not a finite number" in status["result"]["pages"][1]["error"]
    again = [
        json.loads(line)
        for line in known_server.http.get(f"/v1/ocr/jobs/{job}/events").text.splitlines()
    ]
    assert [event["type"] for event in again] == [
        "document.opened", "page.done", "page.done", "page.done", "document.done",
    ]  # fmt: skip
    assert known_server.http.delete(f"/v1/ocr/jobs/{job}").json()["deleted"] is True
    for place in ("", "/events", "/output/md", "/pages/1/image", "/pages/1/blocks"):
        assert known_server.http.get(f"/v1/ocr/jobs/{job}{place}").status_code == 404
    assert not (known_server.folder / "jobs" / job).exists()


def test_a_deleted_job_stops_in_the_middle_of_a_page(keyed_server: Server, tmp_path: Path) -> None:
    """The one slot stands still in a gated page until its job is deleted."""
    job = add(keyed_server, document(tmp_path / "p.tiff", [GATED[5], GATED[6], GATED[7]]))
    with keyed_server.http.stream("GET", f"/v1/ocr/jobs/{job}/events") as answer:
        lines = (json.loads(line) for line in answer.iter_lines())
        assert any(event["type"] == "page.delta" for event in lines)
        early = keyed_server.http.get(f"/v1/ocr/jobs/{job}/output/md")
        assert (early.status_code, early.json()["error"]["code"]) == (409, "job_not_finished")
        assert keyed_server.http.delete(f"/v1/ocr/jobs/{job}").status_code == 200
        ends = [event["status"] for event in lines if event["type"] == "document.done"]
        assert ends == ["cancelled"]
    read = keyed_server.http.post("/v1/ocr", files=upload(document(tmp_path / "n.png", [4])))
    assert read.json()["pages"][0]["text"] == text_of(4)


def test_a_client_sees_only_its_own_jobs(keyed_server: Server, tmp_path: Path) -> None:
    path = document(tmp_path / "p.png", [5])
    job = add(keyed_server, path)
    until(keyed_server, job, status="done")
    with keyed_server.client(SECOND_KEY) as other, keyed_server.client("no-such-key") as nobody:
        for place in ("", "/events", "/output/json", "/pages/1/image", "/pages/1/blocks"):
            assert other.get(f"/v1/ocr/jobs/{job}{place}").status_code == 404
            assert nobody.get(f"/v1/ocr/jobs/{job}{place}").status_code == 401
        assert other.delete(f"/v1/ocr/jobs/{job}").status_code == 404
        assert nobody.post("/v1/ocr/jobs", files=upload(path)).status_code == 401
    assert keyed_server.http.get(f"/v1/ocr/jobs/{job}").json()["status"] == "done"


def test_a_short_document_does_not_wait_for_a_long_one(
    keyed_server: Server, tmp_path: Path
) -> None:
    """One slot: the second client's page comes next, though the first has forty waiting."""
    before = len(keyed_server.read())
    long = add(keyed_server, document(tmp_path / "long.tiff", [30] * 40))
    with keyed_server.client(SECOND_KEY) as other:
        short = other.post("/v1/ocr", files=upload(document(tmp_path / "s.png", [31])))
    assert short.json()["pages"][0]["text"] == text_of(31)
    until(keyed_server, long, status="done")
    order = keyed_server.read()[before:]
    assert len(order) == 41
    assert order.index(31) < 40


# --- restarts -----------------------------------------------------------------------------------


def test_killed_stopped_and_restarted_a_job_is_read_once(tmp_path: Path) -> None:
    """Two slots. The first server is killed while pages 3 and 4 stand still, the second is told to
    stop while page 6 does; of all that was read only what was in flight at the kill is read again.
    """
    numbers = [1, 2, GATED[0], GATED[1], 5, GATED[2], 7]
    with Server(tmp_path) as first:
        job = add(first, document(tmp_path / "p.tiff", numbers))
        request = add(first, document(tmp_path / "other.png", [9]))
        until(first, job, read=2)
        _wait_for(lambda: set(GATED[:2]) <= set(first.read()))
        first.stop(signal.SIGKILL)
    read = first.read()
    assert read.count(1) == read.count(2) == 1

    with Server(tmp_path) as second:
        _wait_for(lambda: second.read().count(GATED[0]) == 2)
        assert until(second, job, read=2)["status"] in ("queued", "running")
        (tmp_path / "gate").touch()
        until(second, job, read=7)
        assert until(second, request, status="done")["pages"]["read"] == 1
        assert second.stop(signal.SIGTERM) == 0
    read = second.read()
    assert all(read.count(number) == 1 for number in (1, 2, 5, 7, GATED[2]))
    assert [read.count(number) for number in GATED[:2]] == [2, 2]


def test_told_to_stop_it_ends_its_pages_and_keeps_the_rest(tmp_path: Path) -> None:
    with Server(tmp_path, "--slots", "1") as first:
        job = add(first, document(tmp_path / "p.tiff", [1, GATED[0], 3, 4]))
        _wait_for(lambda: GATED[0] in first.read())
        with first.http.stream("GET", f"/v1/ocr/jobs/{job}/events") as answer:
            lines = (json.loads(line) for line in answer.iter_lines())
            assert any(event.get("page") == 2 for event in lines)
            first.process.send_signal(signal.SIGTERM)
            _wait_for(lambda: '"stopping"' in (tmp_path / "server.log").read_text())
            (tmp_path / "gate").touch()
            rest = list(lines)
        assert any(event["type"] == "page.done" and event["page"] == 2 for event in rest)
        assert rest[-1]["type"] != "document.done", "it goes on later"
        assert first.process.wait(60) == 0
    assert set(first.read()) <= {1, GATED[0], 3}, "page 3 may have been handed on already"
    with Server(tmp_path, "--slots", "1") as second:
        status = until(second, job, status="done")
        assert [page["text"] for page in status["result"]["pages"]] == [
            text_of(number) for number in (1, GATED[0], 3, 4)
        ]
    assert second.read().count(GATED[0]) == 1


def _wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- the store ----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    made = JobStore(tmp_path / "jobs")
    yield made
    made.close()


JOB = Job(
    "ocr-1", "key-a", 1000.0, None, True, "queued", None, "pocket", "p.pdf", "pdf", (1, 2, 5),
    {"task": "ocr"},
)  # fmt: skip


def put(store: JobStore, **changes: Any) -> Job:
    job = replace(JOB, **changes)
    store.upload(job).parent.mkdir(parents=True)
    store.upload(job).write_bytes(b"x")
    store.add(job)
    return job


def test_jobs_and_pages_come_back_as_they_were(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "jobs")
    job = put(store)
    store.keep(job.id, PageRecord(2, error="It \ud800 failed."))
    store.keep(job.id, PageRecord(1, 10, 20, text="é\u2028</script>", finish_reason="stop"))
    store.close()
    again = JobStore(tmp_path / "jobs")
    assert again.get(job.id, "key-a") == job
    assert again.get(job.id, "key-b") is None
    assert again.settled(job.id) == {1: False, 2: True}
    first, second, third = again.pages(job)
    assert (first.text, second.error) == ("é\u2028</script>", "It ? failed.")
    assert third.number == 5
    assert "not read" in str(third.error)
    again.close()


def test_a_folder_belongs_to_one_server(store: JobStore) -> None:
    with pytest.raises(SettingsError, match="Another server"):
        JobStore(store.folder)


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("x")
    with pytest.raises(SettingsError, match="choose another folder"):
        JobStore(tmp_path / "jobs")


def test_a_damaged_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite3").write_bytes(b"no database" * 200)
    with pytest.raises(SettingsError, match="choose another folder"):
        JobStore(tmp_path)


def test_what_is_old_or_nobodys_is_forgotten(store: JobStore) -> None:
    old = put(store, id="old", status="done")
    put(store, id="young", created=3000.0, status="failed")
    put(store, id="long", status="running")
    put(store, id="request", created=3000.0, kept=False)
    (store.folder / "stray").mkdir()
    store.keep(old.id, PageRecord(1, error="x"))
    assert sorted(store.tidy(older_than=2000.0)) == ["old", "request"]
    assert {path.name for path in store.folder.iterdir() if path.is_dir()} == {"young", "long"}
    assert [job.id for job in store.unfinished()] == ["long"]
    assert store.settled("old") == {}


def test_what_nobody_fetched_is_forgotten(store: JobStore) -> None:
    """Of documents that go with a request: a client may leave while its answer is on the way."""
    soon = time.time() + 60
    put(store, id="lost", kept=False, created=soon, deadline=soon - 3600, status="done")
    put(store, id="fetched", kept=False, created=soon, deadline=soon, status="done")
    put(store, id="read", kept=False, created=soon, deadline=soon - 3600, status="running")
    assert store.expired(older_than=0.0) == ["lost"]


def test_counts_are_by_client(store: JobStore) -> None:
    put(store, id="a")
    put(store, id="b")
    put(store, id="c", client="key-b")
    assert store.counts("key-a") == (3, 2)
    assert store.counts("key-c") == (3, 0)


def test_a_page_of_a_forgotten_job_is_not_kept(store: JobStore) -> None:
    job = put(store)
    store.delete(job.id)
    store.keep(job.id, PageRecord(1, error="late"))
    assert store.settled(job.id) == {}
    assert not store.home(job.id).exists()


def test_too_many_documents_are_refused(known_server: Server, tmp_path: Path) -> None:
    limit = JobLimits().per_client
    path = document(tmp_path / "p.png", [1])
    jobs = []
    refused = None
    for _ in range(limit + 1):
        answer = known_server.http.post("/v1/ocr/jobs", files=upload(path))
        if answer.status_code == 429:
            refused = answer
            break
        jobs.append(answer.json()["id"])
    assert refused is not None
    assert int(refused.headers["retry-after"]) >= 1
    for job in jobs:
        known_server.http.delete(f"/v1/ocr/jobs/{job}")
    assert known_server.http.post("/v1/ocr", files=upload(path)).status_code == 200
