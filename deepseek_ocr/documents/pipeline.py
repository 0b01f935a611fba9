"""Documents in, outputs out: every page that goes in is read or listed with the reason.

with Store(Path("out")) as store, Renderer() as renderer:
    tally = read_documents(find(["scans"]).inputs, [engine], plan, store, renderer)
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass

from PIL import Image

from deepseek_ocr.documents.inputs import Input, output_names
from deepseek_ocr.documents.page_retries import Engine, read_pages, record_of
from deepseek_ocr.documents.plan import Plan, settings_data
from deepseek_ocr.documents.renderer import Ahead, OpenDocument, Rendered, Renderer
from deepseek_ocr.documents.run_store import Store, file_digest, settings_digest
from deepseek_ocr.documents.run_tally import Tally, Watcher
from deepseek_ocr.errors import DocumentError, OcrError, OutputError
from deepseek_ocr.formats import export
from deepseek_ocr.formats.records import DocumentRecord, PageRecord
from deepseek_ocr.formats.writing import PdfPages

AHEAD = 4
"""Pages that are rendered before they are asked for: enough to keep a model busy."""

_SIGNAL_S = 0.1
"""Seconds after which a waiting thread looks for an interruption: one that comes just before the
thread waits does not wake it."""


@dataclass
class _Document:
    """A document of a run: its input, the name of its folder, the hash of its content, its pages.
    `left` counts the pages that are not settled."""

    found: Input
    opened: OpenDocument
    name: str
    digest: str
    numbers: list[int]
    left: int


_Page = tuple[_Document, int]
"""A page of a document, by its number."""

_Pictures = Iterator[tuple[_Page, Rendered | DocumentError]]
"""The pages of a run, each with its picture, or why there is none."""


def read_documents(
    inputs: Sequence[Input],
    engines: Sequence[Engine],
    plan: Plan,
    store: Store,
    renderer: Renderer,
    watcher: Watcher | None = None,
    names: Mapping[str, str] | None = None,
) -> Tally:
    """Read the documents `inputs` on all `engines` at once and write their outputs.

    `names` are the names of the output folders by key, if `inputs` are a part of a greater
    listing. An interruption (KeyboardInterrupt) comes through when what was read is kept.

    Raises `OSError` if the disk is full.
    """
    names = output_names(inputs) if names is None else names
    watcher = watcher or Watcher()
    _DocumentRun(plan, store, renderer, watcher).read(inputs, names, engines)
    return watcher.tally


class _DocumentRun:
    """One run over documents."""

    def __init__(self, plan: Plan, store: Store, renderer: Renderer, watcher: Watcher) -> None:
        self._plan, self._store, self._renderer, self._watcher = plan, store, renderer, watcher
        self._settings = settings_data(plan, renderer.settings)
        attempts = [asdict(attempt) for attempt in plan.attempts]
        self._digest = settings_digest({**self._settings, "attempts": attempts})
        self._lock = threading.Lock()  # of how many pages of each document are left
        self._writing = ThreadPoolExecutor(1, "outputs")
        self._stopped = threading.Event()

    def read(
        self, inputs: Sequence[Input], names: Mapping[str, str], engines: Sequence[Engine]
    ) -> None:
        """Read everything; `names` are the names of the output folders by key."""
        try:
            requests = self._requests(inputs, names)
            with closing(Ahead(self._renderer, requests, AHEAD)) as ahead, ExitStack() as stack:
                stack.callback(self._stopped.set)  # before `ahead` waits for its thread
                if len(engines) == 1:
                    self._read_on(engines[0], iter(ahead))
                else:
                    self._read_on_all(engines, iter(ahead))
        except BaseException:
            self._writing.shutdown(cancel_futures=True)
            raise
        self._writing.shutdown()

    # --- ahead of the engines, in a thread ------------------------------------------------------

    def _requests(
        self, inputs: Iterable[Input], names: Mapping[str, str]
    ) -> Iterator[tuple[_Page, OpenDocument, int]]:
        """The pages to be rendered, document by document; what has none is settled on the way."""
        for found in inputs:
            if self._stopped.is_set():
                return
            try:
                document, todo = self._open(found, names[found.key])
            except (OcrError, OSError) as error:
                if self._stopped.is_set():  # its process was stopped, the file is not to blame
                    return
                self._store.list_failed(found, str(error))
                self._watcher.unopened(found, str(error))
                continue
            if not todo:
                self._writing.submit(self._write, document)
            for number in todo:
                yield (document, number), document.opened, number

    def _open(self, found: Input, name: str) -> tuple[_Document, list[int]]:
        """The document and its pages that are not done yet."""
        if found.error is not None:
            raise DocumentError(found.error)
        opened = self._renderer.open(found.path, self._plan.password)
        numbers = self._plan.pages.of(opened.pages)
        if not numbers:
            reason = f"{found} has {opened.pages} pages and none of those asked for; see --pages."
            raise DocumentError(reason)
        digest = file_digest(found.path)
        name = self._store.claim(found, name, digest)
        if self._plan.overwrite:
            self._store.forget(name)
        todo = []
        for number in numbers:
            record = self._store.done(name, number, digest, self._digest)
            if record is None:
                todo.append(number)
            else:
                self._store.list_done(found, name, record, digest, self._digest)
        self._watcher.opened(found, len(numbers), len(numbers) - len(todo), opened.left_out)
        return _Document(found, opened, name, digest, numbers, len(todo)), todo

    # --- reading --------------------------------------------------------------------------------

    def _read_on_all(self, engines: Sequence[Engine], pictures: _Pictures) -> None:
        """Read on several engines, each in a thread; an interruption lets each end a page.

        An engine whose device failed takes no more pages, so that the others read them; if all
        fail, so do the pages that are left. No thread reads before all are started: one whose
        start is interrupted is not joined.
        """
        started = threading.Event()
        turn = threading.Lock()

        def read_on(engine: Engine) -> None:
            started.wait()
            if not self._stopped.is_set():
                self._read_on(engine, _shared(pictures, engine, turn))

        with ThreadPoolExecutor(len(engines), "engine") as pool:
            try:
                reading = {pool.submit(read_on, engine) for engine in engines}
                started.set()
                while reading:
                    done, reading = wait(reading, _SIGNAL_S, FIRST_EXCEPTION)
                    for reader in done:
                        reader.result()
            except BaseException:
                self._stopped.set()
                started.set()
                raise
        self._read_on(engines[0], pictures)  # nothing, unless all have failed

    def _read_on(self, engine: Engine, pictures: _Pictures) -> None:
        pages = read_pages(engine, self._readable(pictures), self._plan.prompt, self._plan.attempts)
        for page in pages:
            document, number = page.wanted
            self._settle(document, record_of(page, number, self._store.folder / document.name))
            if self._stopped.is_set():
                return  # what the engine has taken ahead is for the next run

    def _readable(self, pictures: _Pictures) -> Iterator[tuple[_Page, Rendered]]:
        """The pages that have a picture; what has none is settled on the way."""
        for (document, number), picture in pictures:
            if isinstance(picture, Rendered):
                yield (document, number), picture
            else:
                self._settle(document, PageRecord(number, error=str(picture)))
            if self._stopped.is_set():
                return

    def _settle(self, document: _Document, record: PageRecord) -> None:
        """Keep and count a page that came to its end; the last one ends its document."""
        self._store.keep(document.found, document.name, record, document.digest, self._digest)
        with self._lock:
            document.left -= 1
            last = document.left == 0
        self._watcher.page(document.found, record)
        if last:
            self._writing.submit(self._write, document)

    # --- behind the engines, in a thread --------------------------------------------------------

    def _write(self, document: _Document) -> None:
        """Write the outputs of a document whose pages are settled, unless they are there. Never
        raises: what fails is listed."""
        try:
            written = self._written(document)
        except Exception as error:  # one document that cannot be written must not stop the others
            reason = f"The outputs of {document.found} could not be written: {error}"
            if isinstance(error, OutputError):  # which says what was written
                reason = f"{document.found}: {error}"
            self._store.list_failed(document.found, reason)
            self._watcher.unwritten(document.found, reason)
            return
        self._watcher.written(document.found, written.files, written.pdfs)

    def _written(self, document: _Document) -> export.WrittenFiles:
        plan, store, name = self._plan, self._store, document.name
        options = {"formats": sorted(plan.formats), **asdict(plan.options)}
        stamp = store.stamp(name, document.numbers, options)
        if store.is_written(name, stamp):
            return export.WrittenFiles(())
        folder = store.folder / name
        folder.mkdir(exist_ok=True)
        pages = store.pages(name, document.numbers)
        record = DocumentRecord(
            name, document.found.path, document.opened.kind, pages, self._settings
        )

        def render(number: int) -> Image.Image:
            return self._renderer.render(document.opened, number).image

        written = export.write(record, plan.formats, folder, render, plan.options, plan.password)
        if any(outcome != PdfPages() for outcome in written.pdfs.values()):
            store.list_written(document.found, name, written.files, written.pdfs)
        store.mark_written(name, stamp, written.files)
        return written


def _shared(pictures: _Pictures, engine: Engine, turn: threading.Lock) -> _Pictures:
    """What `engine` takes of `pictures` when it is its turn: nothing once its device has failed."""
    while engine.is_running:
        with turn:
            picture = next(pictures, None)
        if picture is None:
            return
        yield picture
