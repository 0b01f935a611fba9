"""Documents in, outputs out, through processes of `read`: no page lost, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pikepdf
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import machine
from deepseek_ocr import presets
from deepseek_ocr.documents.inputs import Input, PageSelection, find, parse_pages
from deepseek_ocr.documents.pipeline import read_documents
from deepseek_ocr.documents.plan import Plan
from deepseek_ocr.documents.renderer import OpenDocument, Renderer
from deepseek_ocr.documents.run_store import Store, read_manifests
from deepseek_ocr.documents.run_tally import Tally, Watcher
from deepseek_ocr.engine.results import Failure, Page, Reading
from deepseek_ocr.errors import DocumentError
from deepseek_ocr.formats import FORMATS, Format
from deepseek_ocr.formats.records import DocumentRecord
from deepseek_ocr.formats.writing import WriteContext
from deepseek_ocr.server.jobs.document_options import output_format
from deepseek_ocr.settings import CropSettings, DecodeSettings, RenderSettings
from tests import papers
from tests.scripted import FAULTS, Run, ScriptedEngine, Server, text_of

SEED = 20261121
"""Of the moments at which runs are killed."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def lines(folder: Path) -> list[dict[str, Any]]:
    return list(read_manifests(folder))


def last_outcomes(folder: Path) -> dict[tuple[str, int], str]:
    """(source, page) → its last outcome in the manifest."""
    return {(line["source"], line["page"]): line["outcome"] for line in lines(folder)}


def pages_of(folder: Path, name: str) -> list[dict[str, Any]]:
    """The pages of a document's JSON output."""
    pages: list[dict[str, Any]] = json.loads((folder / name / f"{name}.json").read_text())["pages"]
    return pages


# --- every page that goes in comes out ----------------------------------------------------------


def test_every_fault_is_kept_and_told(server: Server, tmp_path: Path) -> None:
    faults = dict(enumerate(FAULTS, start=1))
    papers.pdf(tmp_path / "a.pdf", faults, faults)
    status, out, err = server.run("a.pdf", "-o", "out", "--format", "json,md", cwd=tmp_path)
    assert (status, out) == (1, "")
    failed = [number for number, fault in faults.items() if fault == "fails"]
    pages = pages_of(tmp_path / "out", "a")
    assert [page["number"] for page in pages] == list(faults)  # 100 % of the pages
    assert [page["number"] for page in pages if "error" in page] == failed
    for page in pages:
        if page["number"] not in failed and "empty" not in (fault := faults[page["number"]]):
            assert page["text"] or fault == "is blank"
    listed = {line["page"]: line for line in lines(tmp_path / "out")}
    assert listed.keys() == faults.keys()
    for number, line in listed.items():
        assert line["outcome"] == (
            "failed" if number in failed else "retried" if len(line["tries"]) > 1 else "read"
        )
    assert f"a.pdf, page {failed[0]}: The network's output is not a finite number." in err
    assert "1 page failed" in err


def test_every_kind_of_document_in_one_run(server: Server, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    papers.pdf(tmp_path / "in" / "one two.pdf", [1, 2])
    papers.tiff(tmp_path / "in" / "Übung.tiff", range(3, 53))
    papers.archive(tmp_path / "in" / "box.zip", {"2.png": papers.png(60), "1.png": papers.png(61)})
    papers.picture(70).save(tmp_path / "in" / "-rf.png")
    papers.picture(71).save(tmp_path / "single.jpg")
    status, _, err = server.run("in", "./sing*.jpg", "-o", "out", "--format", "json", cwd=tmp_path)
    assert status == 0, err
    texts = {
        folder.name: [page["text"] for page in pages_of(tmp_path / "out", folder.name)]
        for folder in (tmp_path / "out").iterdir()
        if folder.is_dir() and folder.name != ".pages"
    }
    assert texts.pop("single")
    assert texts == {
        "one two": [text_of(1), text_of(2)],
        "Übung": [text_of(number) for number in range(3, 53)],
        "box": [text_of(61), text_of(60)],
        "rf": [text_of(70)],
    }


def test_documents_that_cannot_be_opened_are_listed_and_the_others_read(
    server: Server, tmp_path: Path
) -> None:
    papers.encrypted(tmp_path / "locked.pdf", "secret", [1])
    papers.without_pages(tmp_path / "none.pdf")
    papers.cut_off(tmp_path / "cut.pdf", [1])
    papers.broken_xref(tmp_path / "xref.pdf", [2])
    (tmp_path / "empty.png").write_bytes(b"")
    names = ["locked.pdf", "none.pdf", "cut.pdf", "xref.pdf", "empty.png", "gone.pdf"]
    status, _, err = server.run(*names, "-o", "out", cwd=tmp_path)
    assert status == 1
    assert "5 of 6 inputs could not be opened" in err
    listed = {line["source"]: line for line in lines(tmp_path / "out")}
    assert listed.keys() == set(names)
    assert listed.pop("xref.pdf")["outcome"] == "read"
    assert "give its password" in listed["locked.pdf"]["reason"]
    for line in listed.values():
        assert (line["outcome"], line["page"]) == ("failed", None)
        assert line["reason"] in err or line["source"] in line["reason"]
    status, _, _ = server.run("locked.pdf", "-o", "out", "--password", "secret", cwd=tmp_path)
    assert status == 0


def test_pages_are_chosen_and_numbered_as_in_the_file(server: Server, tmp_path: Path) -> None:
    papers.pdf(tmp_path / "a.pdf", range(1, 501))
    chosen = ["--pages", "1-3,7,-1", "-o", "out", "--format", "json"]
    assert server.run("a.pdf", *chosen, cwd=tmp_path)[0] == 0
    pages = pages_of(tmp_path / "out", "a")
    assert [(page["number"], page["text"]) for page in pages] == [
        (number, text_of(number)) for number in (1, 2, 3, 7, 500)
    ]
    status, _, err = server.run("a.pdf", "-o", "out", "--pages", "501", cwd=tmp_path)
    assert status == 1
    assert "none of those asked for" in err


def test_a_page_that_hangs_the_renderer_costs_that_page_only(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    papers.pdf(path, [1, 2])
    papers.nested_bomb(tmp_path / "bomb.pdf")
    with pikepdf.open(path, allow_overwriting_input=True) as document:
        with pikepdf.open(tmp_path / "bomb.pdf") as bomb:
            document.pages.insert(1, bomb.pages[0])
        document.save(path)
    tally = run_here(tmp_path, [path], render=RenderSettings(timeout=3))
    assert (tally.read, tally.failed, tally.documents) == (2, 1, 1)
    _, second, third = pages_of(tmp_path / "out", "a")
    assert "longer than 3 seconds" in second["error"]
    assert third["text"] == text_of(2)


# --- going on -----------------------------------------------------------------------------------


def read_log(log: Path) -> Counter[int]:
    return Counter(map(int, log.read_text().split())) if log.exists() else Counter()


def test_what_is_done_is_not_read_again_and_what_failed_or_changed_is(
    server: Server, tmp_path: Path
) -> None:
    papers.pdf(tmp_path / "a.pdf", range(1, 5), {3: "fails"})
    papers.pdf(tmp_path / "b.pdf", range(11, 13))

    def again(*flags: str) -> list[int]:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        server.run("a.pdf", "b.pdf", "-o", "out", *flags, cwd=tmp_path, log=log)
        return sorted(read_log(log))

    assert again() == [1, 2, 3, 4, 11, 12]
    assert again() == [3]
    papers.pdf(tmp_path / "b.pdf", range(21, 23))
    assert again() == [3, 21, 22]
    assert again("--format", "txt,html") == [3]  # made from what was read before
    assert (tmp_path / "out" / "b" / "b.html").exists()
    assert again("--dpi", "72") == [1, 2, 3, 4, 21, 22]
    assert again("--dpi", "72", "--overwrite") == [1, 2, 3, 4, 21, 22]
    assert again("--dpi", "72", "--pages", "4-") == []


def test_two_inputs_of_one_name_have_outputs_of_their_own(server: Server, tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b"), start=1):
        (tmp_path / folder).mkdir()
        papers.pdf(tmp_path / folder / "scan.pdf", [number])
    for _ in range(2):
        assert server.run("a/scan.pdf", "b/scan.pdf", "-o", "out", cwd=tmp_path)[0] == 0
    folders = {line["source"]: line["document"] for line in lines(tmp_path / "out")}
    assert len(lines(tmp_path / "out")) == 2  # nothing was read twice
    for number, source in enumerate(("a/scan.pdf", "b/scan.pdf"), start=1):
        folder = tmp_path / "out" / folders[source]
        assert text_of(number) in (folder / f"{folders[source]}.md").read_text()


class Faithful(Watcher):
    """Notes what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: list[int] = []

    def page(self, found: Input, record: Any) -> None:
        super().page(found, record)
        self.pages.append(record.number)


def run_here(
    folder: Path,
    paths: list[Path],
    *,
    pages: PageSelection = PageSelection(),
    dpi: int = 36,
    watcher: Watcher | None = None,
    formats: tuple[str, ...] = ("json",),
    render: RenderSettings | None = None,
    engines: int = 1,
    delay: float = 0.0,
) -> Tally:
    """A run in this process."""
    plan = Plan(
        "Free OCR.",
        presets.attempts(CropSettings(), DecodeSettings()),
        formats=formats,
        pages=pages,
    )
    with Store(folder / "out") as store, Renderer(render or RenderSettings(dpi=dpi)) as renderer:
        readers = [ScriptedEngine(delay) for _ in range(engines)]
        inputs = find(map(str, paths)).inputs
        return read_documents(inputs, readers, plan, store, renderer, watcher)


@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_any_mixture_of_runs_and_damage_ends_with_every_page_read_as_asked(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Resuming reads exactly what is missing, damaged, or was made otherwise."""
    folder = tmp_path_factory.mktemp("resume")
    path = papers.pdf(folder / "a.pdf", range(1, 7))
    made: dict[int, int] = {}  # pages with a whole record, and the dpi it was made with
    dpi = 36
    for _ in range(data.draw(st.integers(1, 4))):
        chosen = data.draw(st.sampled_from(["1-6", "1-3", "2,5", "-1"]))
        dpi = data.draw(st.sampled_from([36, 36, 72]))
        numbers = set(parse_pages(chosen).of(6))
        watcher = Faithful()
        run_here(folder, [path], pages=parse_pages(chosen), dpi=dpi, watcher=watcher)
        assert set(watcher.pages) == {number for number in numbers if made.get(number) != dpi}
        assert {page["number"] for page in pages_of(folder / "out", "a")} == numbers
        made |= dict.fromkeys(numbers, dpi)
        for number in data.draw(st.sets(st.sampled_from(sorted(made)))):
            record = folder / "out" / ".pages" / "a" / f"{number:05}.json"
            if data.draw(st.booleans()):
                record.unlink()
            else:
                record.write_bytes(record.read_bytes()[: data.draw(st.integers(0, 50))])
            del made[number]
        if data.draw(st.booleans()):
            manifest = folder / "out" / "manifest.jsonl"
            manifest.write_bytes(manifest.read_bytes()[: data.draw(st.integers(0, 300))])
    run_here(folder, [path], dpi=dpi)
    listed = {line["page"] for line in lines(folder / "out") if line["outcome"] == "read"}
    assert listed == set(range(1, 7))
    shutil.rmtree(folder)


# --- killed, interrupted ------------------------------------------------------------------------


def test_killed_at_twenty_random_moments_it_loses_the_page_in_flight_at_most(
    server: Server, tmp_path: Path
) -> None:
    moments = random.Random(SEED)
    (tmp_path / "in").mkdir()
    count = 0
    for at in range(12):
        faults = dict.fromkeys(range(at * 20 + 3, at * 20 + 5), "figure")
        papers.pdf(tmp_path / "in" / f"d{at:02}.pdf", range(at * 20, at * 20 + 20), faults)
        count += 20
    command = ("in", "-o", "out", "--format", "json,md")
    log = tmp_path / "log"
    killed = 0
    while killed < 20:
        run = server.start(*command, cwd=tmp_path, log=log, delay=0.01)
        time.sleep(moments.uniform(0.0, 0.8))
        run.signal(signal.SIGKILL)
        status, _, _ = run.wait()
        assert status in (0, -signal.SIGKILL)
        killed += 1
        for path in (tmp_path / "out").rglob("*"):
            if path.is_file():
                assert_whole(path)
    status, _, err = server.run(*command, cwd=tmp_path, log=log)
    assert status == 0, err
    for at in range(12):
        assert [
            page["text"].split("\n")[-1] for page in pages_of(tmp_path / "out", f"d{at:02}")
        ] == [text_of(number) for number in range(at * 20, at * 20 + 20)]
    # Each kill may have cost the page that was being read; nothing else was read twice.
    assert sum(read_log(log).values()) <= count + killed
    assert set(last_outcomes(tmp_path / "out").values()) == {"read"}
    assert len(last_outcomes(tmp_path / "out")) == count


def assert_whole(path: Path) -> None:
    """A file under its final name is not half-written."""
    data = path.read_bytes()
    if path.name.endswith((".part", ".lock")) or path.name.startswith("manifest"):
        return
    if path.suffix == ".json":
        json.loads(data)
    elif path.suffix == ".jpg":
        assert data.endswith(b"\xff\xd9")
    elif path.suffix == ".md":
        assert data.endswith(b"\n")


def wait_for_pages(run: Run, log: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while sum(read_log(log).values()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("devices", [[], ["--devices", "cpu,cpu"]])
def test_interrupting_keeps_what_is_read_and_says_how_to_go_on(
    server: Server, tmp_path: Path, devices: list[str]
) -> None:
    papers.pdf(tmp_path / "a.pdf", range(1, 201))
    command = ["a.pdf", "-o", "out", *devices]
    log = tmp_path / "log"
    run = server.start(*command, cwd=tmp_path, delay=0.02, log=log)
    wait_for_pages(run, log, 5)
    run.signal(signal.SIGINT)
    status, _, err = run.wait()
    assert status == 130
    assert "Traceback" not in err
    assert "Run the same command again to go on" in err
    kept = len(lines(tmp_path / "out"))
    assert 4 <= kept < 200
    said = re.search(r"(\d+) pages kept in out", err)
    assert said
    assert abs(int(said[1]) - kept) <= 1  # it may come between a page's line and its counting
    assert server.run(*command, cwd=tmp_path, log=log)[0] == 0
    assert len(last_outcomes(tmp_path / "out")) == 200
    assert sum(read_log(log).values()) <= 200 + 2


class EnginesInterrupted(list[ScriptedEngine]):
    """Ctrl-C arrives when the first engine has started and the second has not."""

    def __iter__(self) -> Iterator[ScriptedEngine]:
        yield self[0]
        signal.raise_signal(signal.SIGINT)
        yield from self[1:]


class InterruptingEngine(ScriptedEngine):
    """Ctrl-C arrives when it starts to read."""

    def read_many(self, pages: Iterable[Page]) -> Iterator[Reading | Failure]:
        os.kill(os.getpid(), signal.SIGINT)
        return super().read_many(pages)


@pytest.mark.parametrize(
    "engines",
    [
        EnginesInterrupted(ScriptedEngine(0.01) for _ in range(4)),
        [InterruptingEngine(0.01), *(ScriptedEngine(0.01) for _ in range(7))],
    ],
    ids=["between starts", "at the first page"],
)
def test_interrupting_while_engines_start_stops_them_all(
    tmp_path: Path, engines: list[ScriptedEngine]
) -> None:
    path = papers.pdf(tmp_path / "a.pdf", range(1, 401))
    plan = Plan("Free OCR.", presets.attempts(CropSettings(), DecodeSettings()), formats=("json",))
    inputs = find([str(path)]).inputs
    with (
        Store(tmp_path / "out") as store,
        Renderer(RenderSettings(dpi=36)) as renderer,
        pytest.raises(KeyboardInterrupt),
    ):
        read_documents(inputs, engines, plan, store, renderer)
    assert len(lines(tmp_path / "out")) < 400


class BlockedRenderer(Renderer):
    """The second document and all behind it do not open before `released`, and then fail."""

    def __init__(self, settings: RenderSettings) -> None:
        super().__init__(settings)
        self.opened, self.opening, self.released = 0, threading.Event(), threading.Event()

    def open(self, path: Path, password: str | None = None) -> OpenDocument:
        self.opened += 1
        if self.opened == 1:
            return super().open(path, password)
        self.opening.set()
        self.released.wait(60)
        raise DocumentError("The rendering process was stopped.")


class EngineInterruptedAt(ScriptedEngine):
    """Ctrl-C arrives once `event` is set."""

    def __init__(self, event: threading.Event) -> None:
        super().__init__(0.01)
        self._event = event

    def read_many(self, pages: Iterable[Page]) -> Iterator[Reading | Failure]:
        assert self._event.wait(60)
        raise KeyboardInterrupt


def test_a_document_that_is_being_opened_when_a_run_is_stopped_has_not_failed(
    tmp_path: Path,
) -> None:
    paths = [papers.pdf(tmp_path / f"{name}.pdf", range(1, 3)) for name in "abcde"]
    plan = Plan("Free OCR.", presets.attempts(CropSettings(), DecodeSettings()), formats=("json",))
    inputs = find(map(str, paths)).inputs
    with (
        Store(tmp_path / "out") as store,
        BlockedRenderer(RenderSettings(dpi=36)) as renderer,
    ):
        engine = EngineInterruptedAt(renderer.opening)
        with pytest.raises(KeyboardInterrupt):
            read_documents(inputs, [engine], plan, store, renderer)
        renderer.released.set()
        for thread in threading.enumerate():
            if thread.name == "documents":
                thread.join(60)
                assert not thread.is_alive()
    assert renderer.opened == 2
    assert [line for line in lines(tmp_path / "out") if line["outcome"] == "failed"] == []


def test_a_full_disk_stops_the_run_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = papers.pdf(tmp_path / "a.pdf", range(1, 9))

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "keep", full)
    with pytest.raises(OSError, match="No space"):
        run_here(tmp_path, [path])


def test_outputs_that_cannot_be_written_are_told_and_the_pages_kept(
    server: Server, tmp_path: Path
) -> None:
    papers.pdf(tmp_path / "a.pdf", [1])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("in the way")
    status, _, err = server.run("a.pdf", "-o", "out", cwd=tmp_path)
    assert status == 1
    assert "could not be written" in err
    (tmp_path / "out" / "a").unlink()
    log = tmp_path / "log"
    assert server.run("a.pdf", "-o", "out", cwd=tmp_path, log=log)[0] == 0
    assert not read_log(log)
    assert (tmp_path / "out" / "a" / "a.md").exists()


# --- many machines' worth -----------------------------------------------------------------------


def test_parts_of_a_run_share_one_folder_and_read_everything_once(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(1, 13):
        papers.pdf(tmp_path / "in" / f"{number}.pdf", [number])
    log = tmp_path / "log"
    parts = [
        server.start("in", "-o", "out", "--shard", f"{part}/3", cwd=tmp_path, log=log, delay=0.02)
        for part in (1, 2, 3)
    ]
    assert [part.wait()[0] for part in parts] == [0, 0, 0]
    assert read_log(log) == Counter(range(1, 13))
    assert len(list((tmp_path / "out").glob("manifest.*-of-3.jsonl"))) == 3
    assert len(last_outcomes(tmp_path / "out")) == 12
    assert server.run("in", "-o", "out", cwd=tmp_path, log=log)[0] == 0
    assert read_log(log) == Counter(range(1, 13))  # the whole knows what its parts have read


def test_several_devices_share_the_pages(server: Server, tmp_path: Path) -> None:
    papers.pdf(tmp_path / "a.pdf", range(1, 41))
    log = tmp_path / "log"
    began = time.monotonic()
    command = ["a.pdf", "-o", "out", "--format", "json", "--devices", "cpu,cpu,cpu,cpu"]
    status, _, err = server.start(*command, cwd=tmp_path, log=log, delay=0.1).wait()
    assert status == 0, err
    assert time.monotonic() - began < 40 * 0.1 + 60
    assert read_log(log) == Counter(range(1, 41))
    assert [page["text"] for page in pages_of(tmp_path / "out", "a")] == [
        text_of(number) for number in range(1, 41)
    ]


# --- memory -------------------------------------------------------------------------------------


def peak_of(server: Server, folder: Path, pages: int) -> float:
    """Most memory in MB that a run over so many pages took, its rendering process included."""
    path = papers.pdf(folder / f"{pages}.pdf", range(1, pages + 1), size=(18, 18))
    run = server.start(
        path.name, "-o", f"out{pages}", "--format", "json,md", "--dpi", "36", cwd=folder
    )
    process, peak = psutil.Process(run.pid), 0.0
    while process.status() != psutil.STATUS_ZOMBIE:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended while it was looked at
            peak = max(peak, machine.family_memory(process) / 1e6)
        time.sleep(0.02)
    assert run.wait()[0] == 0
    assert len(pages_of(folder / f"out{pages}", str(pages))) == pages
    return peak


@pytest.mark.timeout(900)
def test_three_thousand_pages_take_no_more_memory_than_three(
    server: Server, tmp_path: Path
) -> None:
    few, many = (peak_of(server, tmp_path, pages) for pages in (3, 3000))
    assert many - few < 100, f"{few:.0f} MB for 3 pages, {many:.0f} MB for 3000"


# --- flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pdf", "--overwrite"], "goes with -o"),
        (["a.pdf", "--shard", "1/2"], "goes with -o"),
        (["a.pdf", "--devices", "cpu"], "goes with -o"),
        (["a.pdf", "--format", "html"], "add -o"),
        (["a.pdf", "-o", "out", "--format", "md,docx"], "no format 'docx'"),
        (["a.pdf", "-o", "out", "--stdout"], "one of them"),
        (["a.pdf", "-o", "out", "--shard", "3/2"], "i-th of n"),
        (["a.pdf", "-o", "out", "--retries", "9"], "retries"),
        (["a.pdf", "-o", "out", "--pages", "0"], "1-3,7,-1"),
        (["a.pdf", "--dpi", "1"], "dpi"),
        (["a.pdf", "-o", "out", "--devices", "cpu", "--device", "cpu"], "one of them"),
        (["-o", "out"], "no image given"),
        (["nothing", "-o", "out"], "There are no pictures"),
        (["a.pdf", "-o", "a.pdf/out"], "cannot be written"),
    ],
)
def test_what_cannot_start_says_why(
    server: Server, tmp_path: Path, arguments: list[str], message: str
) -> None:
    papers.pdf(tmp_path / "a.pdf", [1])
    (tmp_path / "nothing").mkdir()
    status, out, err = server.run(*arguments, cwd=tmp_path)
    assert (status, out) == (2, "")
    assert message in err


def write_loudly(document: DocumentRecord, context: WriteContext) -> Iterator[str]:
    """A writer that a test adds."""
    for page in document.pages:
        yield f"{page.text.upper()}\n"


def test_one_entry_adds_an_output_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loud = Format("loud", {"_loud.txt": f"{__name__}:write_loudly"}, "text/x-loud")
    monkeypatch.setitem(FORMATS, "loud", loud)
    papers.pdf(tmp_path / "scan.pdf", (1, 2))
    tally = run_here(tmp_path, [tmp_path / "scan.pdf"], formats=("loud", "json"))
    assert (tally.documents, tally.failures) == (1, 0)
    written = (tmp_path / "out" / "scan" / "scan_loud.txt").read_text()
    assert written == f"{text_of(1)}\n{text_of(2)}\n".upper()
    assert output_format({"output_format": "loud"}) == "loud"
