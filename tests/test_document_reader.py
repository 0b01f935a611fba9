"""Documents that several callers hand in share one engine's slots and stay apart."""

from __future__ import annotations

import asyncio
import io
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from PIL import Image

from deepseek_ocr.documents.inputs import parse_pages
from deepseek_ocr.documents.shared_reader import DocumentReader
from deepseek_ocr.engine.results import Delta, Failure, Page, Reading
from deepseek_ocr.errors import CancelledError, DocumentError, InputError
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.model.network import Network
from deepseek_ocr.settings import Attempt, DecodeSettings
from tests import papers
from tests.tiny_engine import SMALL, Held, engine_of, engine_with, ids_alone, ids_of, page

PROMPT = "Read."


def attempt(tokens: int = 3) -> Attempt:
    return Attempt("as asked", SMALL, DecodeSettings(max_new_tokens=tokens, stop_on_loop=False))


def png(number: int) -> bytes:
    """A page that reads as no other does."""
    data = io.BytesIO()
    picture = page(number).image
    assert isinstance(picture, Image.Image)
    picture.save(data, "PNG")
    return data.getvalue()


def pictures(path: Path, count: int, broken: int = 0) -> Path:
    """A zip of so many pages, of which the one numbered `broken` is not a picture."""
    members = {f"{number}.png": png(number) for number in range(1, count + 1)}
    if broken:
        members[f"{broken}.png"] = b"no picture"
    return papers.archive(path, members)


@pytest.fixture(scope="module")
def reader(tiny: Network) -> Iterator[DocumentReader]:
    with closing(DocumentReader(engine_of(tiny, 3))) as reader:
        yield reader


async def read(
    reader: DocumentReader, path: Path, tokens: int = 3, done: list[int] | None = None
) -> list[PageRecord]:
    document, numbers = await reader.open_async(path, path.name)
    return await reader.read(
        document, numbers, PROMPT, [attempt(tokens)],
        lambda record: None if done is None else done.append(record.number),
    )  # fmt: skip


def test_records_come_in_the_order_of_the_pages_failures_in_their_places(
    reader: DocumentReader, tmp_path: Path
) -> None:
    done: list[int] = []
    records = asyncio.run(read(reader, pictures(tmp_path / "x.zip", 9, broken=3), done=done))
    assert [record.number for record in records] == list(range(1, 10))
    assert sorted(done) == list(range(1, 10))
    assert [record.number for record in records if record.error is not None] == [3]
    assert "'3.png' in x.zip is not a picture" in str(records[2].error)
    for record in records:
        if record.number != 3:
            assert record.counts is not None
            assert record.counts.output == 3


def test_a_page_reads_the_same_whatever_is_read_beside_it(
    reader: DocumentReader, tmp_path: Path
) -> None:
    async def together() -> list[list[PageRecord]]:
        names = ("a.zip", "b.zip", "c.zip")
        return await asyncio.gather(*(read(reader, tmp_path / name, 12) for name in names))

    for name, count in (("a.zip", 5), ("b.zip", 1), ("c.zip", 4)):
        pictures(tmp_path / name, count)
    alone = [record.text for record in asyncio.run(read(reader, tmp_path / "a.zip", 12))]
    assert len(set(alone)) == 5
    for records in asyncio.run(together()):
        assert [record.text for record in records] == alone[: len(records)]


def test_pages_are_chosen_and_named_in_messages(reader: DocumentReader, tmp_path: Path) -> None:
    path = pictures(tmp_path / "x.zip", 4)
    assert reader.open(path, "image", parse_pages("2,-1"))[1] == [2, 4]
    with pytest.raises(InputError, match=r"^image has 4 pages and none of those asked for"):
        reader.open(path, "image", parse_pages("9"))
    with pytest.raises(DocumentError, match=r"^image is encrypted; give its password"):
        reader.open(papers.encrypted(tmp_path / "x.pdf", "secret"), "image")


def test_a_file_that_replaces_another_is_not_taken_for_it(
    reader: DocumentReader, tmp_path: Path
) -> None:
    path = pictures(tmp_path / "x.zip", 4)
    for count in (4, 2):
        pictures(path, count)
        opened = {reader.open(path, "x")[0].pages for _ in range(8)}  # by either process
        assert opened == {count}


class Held3:
    """A reader whose three slots wait at every step until the test lets them go on."""

    def __init__(self, network: Network) -> None:
        self.decoder = Held(network, 3)
        self.engine = engine_with(network, lambda _: self.decoder, 3)
        self.reader = DocumentReader(self.engine)

    def close(self) -> None:
        self.decoder.let_go()
        self.reader.close()


@pytest.fixture
def held(tiny: Network) -> Iterator[Held3]:
    with closing(Held3(tiny)) as held:
        yield held


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what other threads bring about."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def test_a_caller_that_is_cancelled_frees_its_slots_and_disturbs_no_other(
    held: Held3, tmp_path: Path
) -> None:
    two, one = pictures(tmp_path / "two.zip", 2), pictures(tmp_path / "one.zip", 1)

    async def main() -> list[PageRecord]:
        given_up = asyncio.create_task(read(held.reader, two, 500))
        await until(lambda: held.engine.status().active == 2)
        kept = asyncio.create_task(read(held.reader, one, 4))
        await until(lambda: held.engine.status().active == 3)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        held.decoder.let_go()
        records = await kept
        assert held.engine.status().waiting == 0
        await until(lambda: held.engine.status().active == 0)
        return records

    held.decoder.going_on.clear()
    steps = held.decoder.steps

    async def run() -> list[PageRecord]:
        task = asyncio.create_task(main())
        while not task.done():  # let the engine step until all three are in their slots
            held.decoder.let_one()
            await asyncio.sleep(0.01)
        return await task

    (record,) = asyncio.run(run())
    assert record.counts is not None
    assert record.counts.output == 4
    assert len(steps[-1]) == 1  # the two that were given up had left


def test_a_document_that_comes_later_does_not_wait_for_all_pages_of_another(
    held: Held3, tmp_path: Path
) -> None:
    path = pictures(tmp_path / "x.zip", 40)
    engine, done, opened = held.engine, [], []

    def in_flight() -> int:
        return engine.status().active + engine.status().waiting

    async def read_as(name: str) -> list[PageRecord]:
        document, numbers = await held.reader.open_async(path, name)
        opened.append(name)
        return await held.reader.read(
            document, numbers, PROMPT, [attempt(2)], lambda _: done.append(name)
        )

    async def main() -> None:
        first = asyncio.create_task(read_as("first"))
        await until(lambda: in_flight() == engine.ahead)  # alone, it keeps every slot busy
        second = asyncio.create_task(read_as("second"))
        await until(lambda: len(opened) == 2)
        assert in_flight() == engine.ahead  # no more pictures are held for two
        held.decoder.let_go()
        for records in await asyncio.gather(first, second):
            assert [record.number for record in records] == list(range(1, 41))

    asyncio.run(main())
    assert done.index("second") < 2 * engine.ahead
    assert done.index("second", 40) < 80  # and goes on beside it
    assert done[:40].count("second") > 10


@pytest.mark.parametrize("how", ["open", "read", "stream"])
def test_what_is_rendered_for_a_caller_who_leaves_is_stopped(
    tiny: Network, tmp_path: Path, how: str
) -> None:
    """A page may take its process a minute, and the next caller must not wait for it."""
    path = pictures(tmp_path / "x.zip", 3)
    with closing(DocumentReader(engine_of(tiny, 2))) as reader:
        document, numbers = reader.open(path, "x")
        workers = [one for one in reader._renderer._all if one._process is not None]
        processes = [psutil.Process(one._process.pid) for one in workers if one._process]

        async def leave() -> None:
            if how == "open":
                work = asyncio.create_task(reader.open_async(path, "x"))
            else:
                reading = reader.read(document, numbers, PROMPT, [attempt()], lambda _: None)
                work = asyncio.create_task(reading)  # type: ignore[arg-type]
            await until(lambda: any(one._owner for one in workers))
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

        def leave_stream() -> None:
            events = reader.stream(document, numbers, PROMPT, attempt())
            threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
            with pytest.raises(KeyboardInterrupt):
                next(events)

        for process in processes:
            process.suspend()
        if how == "stream":
            leave_stream()
        else:
            asyncio.run(leave())
        gone, _ = psutil.wait_procs(processes, timeout=20)  # of a minute that a page may take
        assert len(gone) == len(processes)
        assert len(asyncio.run(read(reader, path))) == 3


def test_a_page_that_takes_for_ever_holds_up_no_other_document(
    tiny: Network, tmp_path: Path
) -> None:
    endless, quick = pictures(tmp_path / "a.zip", 20), pictures(tmp_path / "b.zip", 9)
    with closing(DocumentReader(engine_of(tiny, 2))) as reader:
        workers = reader._renderer._all
        while any(one._process is None for one in workers):
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda _: reader.open(quick, "b"), range(4)))
        processes = {one: psutil.Process(one._process.pid) for one in workers if one._process}
        document, numbers = reader.open(endless, "a")
        for process in processes.values():
            process.suspend()

        async def main() -> None:
            reading = reader.read(document, numbers, PROMPT, [attempt()], lambda _: None)
            first = asyncio.create_task(reading)
            await until(lambda: any(one._owner for one in workers))
            for worker, process in processes.items():
                if not worker._owner:
                    process.resume()
            async with asyncio.timeout(30):  # half of what a page may take
                assert len(await read(reader, quick)) == 9
            for process in processes.values():
                process.resume()
            assert len(await first) == 20

        asyncio.run(main())


def test_a_reader_that_is_closed_says_so(tiny: Network, tmp_path: Path) -> None:
    path = pictures(tmp_path / "x.zip", 3)
    reader = DocumentReader(engine_of(tiny, 2))
    document, numbers = reader.open(path, "x")
    reader.close()
    with pytest.raises(CancelledError, match="reader is closed"):
        reader.open(path, "x")
    with pytest.raises(CancelledError, match="reader is closed"):
        list(reader.stream(document, numbers, PROMPT, attempt()))
    for record in asyncio.run(reader.read(document, numbers, PROMPT, [attempt()], print)):
        assert "reader is closed" in str(record.error)


def test_what_on_page_raises_is_raised(reader: DocumentReader, tmp_path: Path) -> None:
    document, numbers = reader.open(pictures(tmp_path / "x.zip", 3), "x")

    def full(_: PageRecord) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        asyncio.run(reader.read(document, numbers, PROMPT, [attempt()], full))


def test_pages_that_need_it_are_tried_again(reader: DocumentReader, tmp_path: Path) -> None:
    ladder = [attempt(1), Attempt("longer", SMALL, attempt(2).decode, ("length", "empty"))]
    path = papers.archive(tmp_path / "x.zip", {f"{at}.png": papers.png(at) for at in range(3)})

    async def main() -> list[PageRecord]:
        document, numbers = reader.open(path, "x")
        return await reader.read(document, numbers, PROMPT, ladder, lambda _: None)

    for record in asyncio.run(main()):
        assert [one.output_tokens for one in record.tries] == [1, 2]
        assert [one.settings["name"] for one in record.tries] == ["as asked", "longer"]


def test_every_page_says_that_the_engine_is_gone(tiny: Network, tmp_path: Path) -> None:
    reader = DocumentReader(engine_of(tiny, 2))
    reader.engine.close()
    records = asyncio.run(read(reader, pictures(tmp_path / "x.zip", 3)))
    assert ["closed" in str(record.error) for record in records] == [True] * 3
    reader.close()


# --- text as it is decoded ----------------------------------------------------------------------


def streamed(reader: DocumentReader, path: Path, tokens: int = 12) -> list[Delta | PageRecord]:
    document, numbers = reader.open(path, path.name)
    return list(reader.stream(document, numbers, PROMPT, attempt(tokens)))


def test_a_stream_gives_the_text_of_each_page_and_then_its_record(
    reader: DocumentReader, tmp_path: Path
) -> None:
    path = pictures(tmp_path / "x.zip", 8, broken=3)
    texts, records = [""], []
    for event in streamed(reader, path):
        if isinstance(event, Delta):
            texts[-1] += event.text
        else:
            records.append(event)
            texts.append("")
    assert [record.number for record in records] == list(range(1, 9))
    assert [record.text for record in records] == texts[:-1]
    assert "'3.png' in x.zip is not a picture" in str(records[2].error)
    whole = asyncio.run(read(reader, path, 12))
    assert [record.text for record in records] == [record.text for record in whole]


def test_closing_a_stream_gives_its_pages_up(held: Held3, tmp_path: Path) -> None:
    document, numbers = held.reader.open(pictures(tmp_path / "x.zip", 20), "x")
    engine = held.engine
    events = held.reader.stream(document, numbers, PROMPT, attempt(500))
    letting = threading.Event()

    def let() -> None:
        while not letting.wait(0.002):
            held.decoder.let_one()

    thread = threading.Thread(target=let)
    thread.start()
    try:
        next(events)
        events.close()  # type: ignore[attr-defined]

        async def given_up() -> None:
            await until(lambda: engine.status().active + engine.status().waiting == 0)

        asyncio.run(given_up())
    finally:
        letting.set()
        thread.join()


# --- waiting for one page, and for an engine that is gone ---------------------------------------


def test_a_page_is_waited_for_on_an_event_loop(tiny: Network) -> None:
    engine = engine_of(tiny, 1)

    async def wait(*pages: Page) -> list[Reading | Failure]:
        return await asyncio.gather(*(engine.submit(one).wait() for one in pages))

    unreadable = Page(b"no picture", PROMPT, SMALL)
    first, failure, second = asyncio.run(wait(page(1, 5), unreadable, page(2, 5)))
    assert ids_of(first) == ids_alone(tiny, page(1, 5))
    assert ids_of(second) == ids_alone(tiny, page(2, 5))
    assert isinstance(failure, Failure)
    assert "not a picture" in str(failure)
    engine.close()


async def _cancelled(waiting: Awaitable[object]) -> None:
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_who_stops_waiting_gives_the_page_up(held: Held3) -> None:
    handle = held.engine.submit(page(1, 500))
    held.decoder.reached()
    asyncio.run(_cancelled(handle.wait()))
    held.decoder.let_one()
    with pytest.raises(CancelledError):
        handle.result(60)


def test_an_engine_says_whether_it_can_read(tiny: Network) -> None:
    engine = engine_of(tiny, 1)
    assert engine.is_running
    engine.submit(page(1)).result(60)
    assert engine.is_running
    engine.close()
    assert not engine.is_running


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_leaves_nobody_waiting(tiny: Network) -> None:
    decoder = Held(tiny, 1)
    engine = engine_with(tiny, lambda _: decoder, 1)
    handles = [engine.submit(page(number, 50)) for number in range(3)]
    decoder.reached()

    def end(_: object) -> None:
        raise SystemExit

    decoder.before = end
    decoder.let_go()
    for handle in handles:
        with pytest.raises(CancelledError, match="closed"):
            handle.result(60)
    assert not engine.is_running
    with pytest.raises(CancelledError):
        engine.submit(page(1))
    engine.close()  # the thread has ended, and said why
