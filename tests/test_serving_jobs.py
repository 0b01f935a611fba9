"""Jobs outlive the server that took them in: killed, stopped, restarted; and whose they are."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deepseek_ocr import configuration
from deepseek_ocr.documents.page_retries import record_of
from deepseek_ocr.documents.renderer import Renderer
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.server.jobs.job_manager import JobLimits, JobManager
from deepseek_ocr.server.jobs.job_store import JobStore, OcrJob
from deepseek_ocr.server.security.api_keys import Keys
from deepseek_ocr.server.server_state import ServerState
from tests.serving_process import FAILING, GATED, KnownEngine, Server, document, text_of
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


def test_a_client_lists_its_own_jobs(keyed_server: Server, tmp_path: Path) -> None:
    path = document(tmp_path / "p.tiff", [5, FAILING])
    jobs = [add(keyed_server, path) for _ in range(2)]
    for job in jobs:
        until(keyed_server, job, status="done")
    with keyed_server.client(SECOND_KEY) as other:
        theirs = other.post("/v1/ocr/jobs", files=upload(path)).json()["id"]
        listed = other.get("/v1/ocr/jobs").json()["data"]
        other.delete(f"/v1/ocr/jobs/{theirs}")
    assert theirs in [job["id"] for job in listed]
    assert not set(jobs) & {job["id"] for job in listed}
    answer = keyed_server.http.get("/v1/ocr/jobs").json()
    assert answer["object"] == "list"
    newest, before = answer["data"][:2]
    assert [newest["id"], before["id"]] == jobs[::-1]
    assert (newest["status"], newest["name"]) == ("done", "p.tiff")
    assert newest["pages"] == {"total": 2, "read": 1, "failed": 1}
    assert newest["created_at"] >= before["created_at"]


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


def test_told_to_stop_while_nobody_listens_it_ends_its_pages_too(tmp_path: Path) -> None:
    with Server(tmp_path, "--slots", "1") as first:
        job = _stopped_in_the_middle(first, tmp_path)
        first.open_gate()
        assert first.process.wait(60) == 0
    with Server(tmp_path, "--slots", "1") as second:
        assert until(second, job, status="done")["pages"]["read"] == 4
    assert second.read().count(GATED[0]) == 1


def test_told_to_stop_twice_it_does_not_wait_for_its_pages(tmp_path: Path) -> None:
    with Server(tmp_path, "--slots", "1") as server:
        _stopped_in_the_middle(server, tmp_path)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(20) == 0, "alone they would have 30 seconds"


def _stopped_in_the_middle(server: Server, folder: Path) -> str:
    """A job on whose second page the server stands still when it has been told to stop."""
    job = add(server, document(folder / "p.tiff", [1, GATED[0], 3, 4]))
    _wait_for(lambda: GATED[0] in server.read())
    server.http.close()
    server.process.send_signal(signal.SIGTERM)
    _wait_for(lambda: "ending pages of documents" in (folder / "server.log").read_text())
    return job


def test_another_model_gives_out_what_was_read_and_leaves_the_rest(tmp_path: Path) -> None:
    with Server(tmp_path) as first:
        done = add(first, document(tmp_path / "done.tiff", [1, 2]))
        until(first, done, status="done")
        waiting = add(first, document(tmp_path / "waiting.tiff", [3, GATED[0]]))
        until(first, waiting, read=1)
        first.stop(signal.SIGKILL)
    with Server(tmp_path, "--model", "other") as second:
        result = second.http.get(f"/v1/ocr/jobs/{done}").json()["result"]
        assert [page["text"] for page in result["pages"]] == [text_of(1), text_of(2)]
        assert result["settings"]["model"] == "pocket"
        assert result["settings"]["task"] == "Free OCR"
        for place in ("output/md", "output/searchable-pdf", "pages/1/image", "pages/1/blocks"):
            assert second.http.get(f"/v1/ocr/jobs/{done}/{place}").status_code == 200
        assert second.http.get(f"/v1/ocr/jobs/{waiting}").json()["status"] == "running"
        lines = second.http.get(f"/v1/ocr/jobs/{waiting}/events").text.splitlines()
        end = json.loads(lines[-1])
        assert (end["type"], end["error"]["code"]) == ("error", "model_not_served")
        other = second.http.post("/v1/ocr", files=upload(document(tmp_path / "n.png", [9])))
        assert other.json()["pages"][0]["text"] == text_of(9)
    log = (tmp_path / "server.log").read_text()
    assert log.count("job waits for a server with its model") == 1
    with Server(tmp_path) as third:
        third.open_gate()
        assert until(third, waiting, status="done")["pages"]["read"] == 2
    assert third.read().count(3) == 1


def test_a_server_without_its_folder_does_not_tell_where_it_is(tmp_path: Path) -> None:
    with Server(tmp_path), Server(tmp_path) as second:
        answer = second.http.post("/v1/ocr", files=upload(document(tmp_path / "p.png", [1])))
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_documents")
        assert str(tmp_path) not in answer.text
        assert second.http.get("/v1/ocr/jobs").status_code == 503
    assert f"{tmp_path / 'jobs'}" in (tmp_path / "server.log").read_text()


# --- a full disk --------------------------------------------------------------------------------


def test_where_the_disk_is_full_documents_fail_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    full = tmp_path / "full"
    with Server(tmp_path) as server, ThreadPoolExecutor(1) as threads:
        job = add(server, document(tmp_path / "p.tiff", [1, GATED[0]]))
        until(server, job, read=1)
        single = upload(document(tmp_path / "single.png", [GATED[1]]))
        request = threads.submit(server.http.post, "/v1/ocr", files=single)
        _wait_for(lambda: set(GATED[:2]) <= set(server.read()))
        with server.http.stream("GET", f"/v1/ocr/jobs/{job}/events") as answer:
            lines = (json.loads(line) for line in answer.iter_lines())
            assert any(event["type"] == "page.done" for event in lines)
            full.touch()
            server.open_gate()
            end = list(lines)[-1]
        assert (end["type"], end["status"]) == ("document.done", "failed")
        assert "disk may be full" in end["error"]
        assert end["pages"] == {"total": 2, "read": 1, "failed": 0}
        assert request.result().status_code == 500
        assert "disk may be full" in request.result().json()["error"]["message"]

        status = server.http.get(f"/v1/ocr/jobs/{job}").json()
        assert (status["status"], status["error"]) == ("failed", end["error"])
        assert server.http.get("/v1/ocr/jobs").json()["data"][0]["status"] == "failed"
        late = server.http.post("/v1/ocr/jobs", files=single)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "not_kept")
        assert server.http.delete(f"/v1/ocr/jobs/{job}").status_code == 200
        assert server.http.get(f"/v1/ocr/jobs/{job}").status_code == 404
        _wait_for(lambda: not [path for path in full.parent.glob("jobs/*") if path.is_dir()])

        full.unlink()
        read = server.http.post("/v1/ocr", files=upload(document(tmp_path / "n.png", [4])))
        assert read.json()["pages"][0]["text"] == text_of(4)


def test_what_the_database_did_not_take_is_told_it_again(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    async def scenario(jobs: JobManager) -> None:
        job = put(store, created=time.time())
        with monkeypatch.context() as disk:
            disk.setattr(store, "drop", full)
            disk.setattr(store, "expired", full)
            await jobs.forget(job.id)
            await jobs.tidy()
            assert store.has(job.id)
            assert await jobs.database.find(job.id, job.client) is None
        await jobs.tidy()
        assert not store.has(job.id)

    run_with(store, scenario)


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


def run_with(store: JobStore, scenario: Callable[[JobManager], Coroutine[Any, Any, None]]) -> None:
    """Run `scenario` over jobs that no server has."""
    settings, server = configuration.Settings(model="pocket"), configuration.ServerSettings()
    state = ServerState(settings, server, Keys([]), {"pocket": "pocket"}, dict)

    async def run() -> None:
        with Renderer() as renderer:
            jobs = JobManager(state, store, renderer)
            try:
                await scenario(jobs)
            finally:
                await jobs.stop()

    asyncio.run(run())


JOB = OcrJob(
    "ocr-1", "key-a", 1000.0, None, True, "queued", None, "pocket", "p.pdf", "pdf", (1, 2, 5),
    {"task": "ocr"},
)  # fmt: skip


def put(store: JobStore, **changes: Any) -> OcrJob:
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


def test_documents_that_ended_do_not_count(store: JobStore) -> None:
    put(store, id="a")
    put(store, id="b", status="running")
    put(store, id="c", client="key-b")
    put(store, id="d", status="done")
    put(store, id="e", status="failed")
    assert store.unread("key-a") == (3, 2)
    assert store.unread("key-c") == (3, 0)


def test_the_oldest_that_ended_are_too_many(store: JobStore) -> None:
    for at in range(4):
        put(store, id=f"a{at}", created=at, status="done")
    put(store, id="b", client="key-b", created=0.5, status="failed")
    put(store, id="unread", created=0.0)
    put(store, id="request", created=0.0, kept=False, status="done")
    assert sorted(store.surplus(per_client=3, total=10)) == ["a0"]
    assert sorted(store.surplus(per_client=3, total=2)) == ["a0", "a1", "b"]
    assert store.surplus(per_client=4, total=5) == []


def test_the_newest_come_first(store: JobStore) -> None:
    for at in range(3):
        put(store, id=f"a{at}", created=at)
    put(store, id="theirs", client="key-b")
    put(store, id="request", kept=False)
    store.keep("a2", PageRecord(2, error="x"))
    store.keep("a2", PageRecord(5, 10, 20, text="x", finish_reason="stop"))
    found = store.newest("key-a", 2)
    assert [job.id for job, _ in found] == ["a2", "a1"]
    assert [pages for _, pages in found] == [
        {"total": 3, "read": 1, "failed": 1}, {"total": 3, "read": 0, "failed": 0},
    ]  # fmt: skip


def test_a_page_of_a_forgotten_job_is_not_kept(store: JobStore) -> None:
    job = put(store)
    store.drop(job.id)
    store.clear(job.id)
    store.keep(job.id, PageRecord(1, error="late"))
    assert store.settled(job.id) == {}
    assert not store.home(job.id).exists()


# --- limits -------------------------------------------------------------------------------------


def test_only_documents_that_wait_are_too_many(tmp_path: Path) -> None:
    """Those that ended make room for each other, oldest first."""
    limit = JobLimits().per_client
    with Server(tmp_path) as server:
        path = document(tmp_path / "p.png", [GATED[0]])
        jobs = [add(server, path) for _ in range(limit)]
        refused = server.http.post("/v1/ocr/jobs", files=upload(path))
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "too_many_documents"
        assert int(refused.headers["retry-after"]) > 2
        assert server.http.delete(f"/v1/ocr/jobs/{jobs.pop()}").status_code == 200
        jobs.append(add(server, path))
        server.open_gate()
        for job in jobs:
            until(server, job, status="done")
        for _ in range(2):
            jobs.append(add(server, path))
            until(server, jobs[-1], status="done")

        def listed() -> list[str]:
            return [job["id"] for job in server.http.get("/v1/ocr/jobs").json()["data"]]

        _wait_for(lambda: len(listed()) == limit)
        assert set(listed()) == set(jobs[2:])
        assert listed()[:2] == jobs[:-3:-1]
        assert server.http.get(f"/v1/ocr/jobs/{jobs[0]}").status_code == 404


def test_who_has_more_to_be_read_is_told_to_wait_longer(store: JobStore) -> None:
    async def scenario(jobs: JobManager) -> None:
        def wait(client: str | None) -> int:
            return jobs.queue.seconds_to_room(client, jobs.in_flight)

        await jobs.begin(put(store, id="short", client="key-a", numbers=(1,)))
        alone = wait("key-a")
        await jobs.begin(put(store, id="long", client="key-b", numbers=tuple(range(1, 21))))
        assert wait("key-b") > wait("key-a") > alone > 0
        assert wait(None) == wait("key-a")
        assert wait("key-c") == 3600, "its documents wait for a model"

    run_with(store, scenario)


# --- threads ------------------------------------------------------------------------------------


def test_nothing_of_a_deleted_job_is_written_afterwards(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that writes the figures of a page cannot be stopped; it is waited for."""
    writing, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> PageRecord:
        writing.set()
        assert go_on.wait(60)
        return record_of(*arguments)

    async def scenario(jobs: JobManager) -> None:
        engine: Any = KnownEngine(0.0, 1, tmp_path)
        jobs.state.open_pools({"pocket": (engine,)})
        job = put(store, file="p.png", kind="image", numbers=(1,))
        document(store.upload(job), [7])
        await jobs.begin(job)
        assert await asyncio.to_thread(writing.wait, 60)
        forgetting = asyncio.create_task(jobs.forget(job.id))
        while store.has(job.id):
            await asyncio.sleep(0.01)
        go_on.set()
        await forgetting
        assert not store.home(job.id).exists()

    monkeypatch.setattr("deepseek_ocr.server.jobs.page_runner.record_of", slow)
    run_with(store, scenario)


def test_pages_that_wait_to_be_rendered_stand_in_nobodys_way(store: JobStore) -> None:
    async def scenario(jobs: JobManager) -> None:
        rendered = threading.Event()
        waiting = [
            asyncio.create_task(
                jobs.threads.run("long", lambda: rendered.wait(60), jobs.threads.rendering)
            )
            for _ in range(30)
        ]
        async with asyncio.timeout(30):
            assert await jobs.database.find("short", "key-a") is None
            assert await jobs.threads.run("short", lambda: "written") == "written"
        rendered.set()
        assert all(await asyncio.gather(*waiting))

    run_with(store, scenario)
