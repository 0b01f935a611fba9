"""Documents in, outputs out: every page that goes in is read or listed with the reason.

    with Store(Path("out")) as store, Renderer() as renderer:
        tally = read_documents(find(["scans"]).inputs, [engine], plan, store, renderer)

Listing, opening and rendering run ahead of the engine in threads; each page is kept as soon as it
is read, and a document's outputs are written, in a thread too, when its last page is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from deepseek_ocr.documents.inputs import Input, Pages, output_names
from deepseek_ocr.documents.page_retries import Engine, ReadPage, read_pages
from deepseek_ocr.documents.renderer import Ahead, OpenDocument, Rendered, Renderer
from deepseek_ocr.documents.run_store import Store, file_digest, settings_digest
from deepseek_ocr.errors import DocumentError, OcrError, OutputError
from deepseek_ocr.formats import export
from deepseek_ocr.formats.records import DocumentRecord, PageRecord, page_record
from deepseek_ocr.settings import Attempt, ExistingText, FormulaDelimiters, RenderSettings

AHEAD = 4
"""Pages that are rendered before they are asked for: enough to keep a model busy."""

_SIGNAL_S = 0.1
"""Seconds after which a waiting thread looks for an interruption: one that comes just before the
thread waits does not wake it."""


@dataclass(frozen=True)
class Plan:
    """How documents are read and written.

    `about` says the rest for outputs and hashes, as JSON data: the model, its task and preset.
    """

    prompt: str
    attempts: tuple[Attempt, ...]
    formats: tuple[str, ...] = ("md",)
    pages: Pages = Pages()
    password: str | None = None
    join_tables: bool = True
    existing_text: ExistingText = "skip"
    formulas: FormulaDelimiters = "dollars"
    overwrite: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Tally:
    """What became of everything: pages, then documents; failures with their reasons.

    - `read`, `retried` (read, by more than one try), `failed`: pages of this run
    - `done`: pages that an earlier run had read
    - `cut`: pages of this run whose best try did not end by itself
    - `unopened`, `unwritten`: inputs that could not be opened, documents without their outputs
    - `documents`: those whose outputs are there
    - `skipped`, `replaced`: pages of searchable PDFs written in this run that had text of their
      own: they keep it alone, or it was replaced
    - `rebuilt`: pages of those, or of the PDFs with regions, that were made from pictures because
      the original could not be used
    """

    read: int = 0
    retried: int = 0
    failed: int = 0
    done: int = 0
    cut: int = 0
    unopened: int = 0
    unwritten: int = 0
    documents: int = 0
    skipped: int = 0
    replaced: int = 0
    rebuilt: int = 0

    @property
    def failures(self) -> int:
        """Everything that is not as it was asked for."""
        return self.failed + self.unopened + self.unwritten


class Watcher:
    """Told of what happens, from several threads; does nothing unless a subclass does."""

    def opened(self, found: Input, pages: int, done: int, left_out: int) -> None:
        """A document has `pages` to be read, `done` of which are; `left_out` files are no pages."""

    def page(self, found: Input, record: PageRecord) -> None:
        """A page was settled."""

    def unopened(self, found: Input, reason: str) -> None:
        """An input could not be opened."""

    def unwritten(self, found: Input, reason: str) -> None:
        """A document's outputs could not be written."""

    def written(self, found: Input, files: Sequence[Path]) -> None:
        """A document's outputs are there."""

    def pdf_written(self, found: Input, name: str, pages: export.PdfPages) -> None:
        """One of these is a PDF of the format `name`, not all of whose pages are the usual."""


@dataclass
class _Document:
    """A document that is being read; `left` counts the pages that are not settled."""

    found: Input
    opened: OpenDocument
    name: str
    digest: str
    numbers: list[int]
    left: int


@dataclass(frozen=True)
class _Wanted:
    """What a picture is for: a page of a document; or news that has no picture."""

    found: Input
    document: _Document | None = None
    number: int = 0
    error: str = ""


_Pictures = Iterator["tuple[_Wanted, Rendered | DocumentError | None]"]
"""The pages of a run, each with its picture, why there is none, or None if it needs none."""


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

    `names` are the names of the output folders by key, where `inputs` are a part of a greater
    listing. An interruption (KeyboardInterrupt) comes through when what was read is kept.

    Raises `OSError` where the disk takes no more.
    """
    names = output_names(inputs) if names is None else names
    return _Run(plan, store, renderer, watcher or Watcher(), names).read(inputs, engines)


class _Run:
    """One run; the parts that several threads share are under `_lock`."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        renderer: Renderer,
        watcher: Watcher,
        names: Mapping[str, str],
    ) -> None:
        self._plan, self._store, self._renderer = plan, store, renderer
        self._watcher, self._names = watcher, names
        self._settings = settings_data(plan, renderer.settings)
        attempts = [asdict(attempt) for attempt in plan.attempts]
        self._digest = settings_digest({**self._settings, "attempts": attempts})
        self._tally = Tally()
        self._lock = threading.Lock()
        self._writer = ThreadPoolExecutor(1, "outputs")
        self._stopped = threading.Event()

    def read(self, inputs: Sequence[Input], engines: Sequence[Engine]) -> Tally:
        """Read everything."""
        try:
            with closing(Ahead(self._renderer, self._requests(inputs), AHEAD)) as ahead:
                pictures = _Shared(iter(ahead))
                if len(engines) == 1:
                    self._read_on(engines[0], pictures)
                else:
                    self._read_on_all(engines, pictures)
        except BaseException:
            self._writer.shutdown(cancel_futures=True)
            raise
        self._writer.shutdown()
        return self._tally

    # --- ahead of the engines, in a thread ------------------------------------------------------

    def _requests(
        self, inputs: Iterable[Input]
    ) -> Iterator[tuple[_Wanted, OpenDocument | None, int]]:
        """The pages to be rendered, document by document."""
        for found in inputs:
            try:
                document, todo = self._open(found)
            except (OcrError, OSError) as error:
                yield _Wanted(found, error=str(error)), None, 0
                continue
            if not todo:
                yield _Wanted(found, document), None, 0
            for number in todo:
                yield _Wanted(found, document, number), document.opened, number

    def _open(self, found: Input) -> tuple[_Document, list[int]]:
        """The document and its pages that are not done yet."""
        if found.error is not None:
            raise DocumentError(found.error)
        opened = self._renderer.open(found.path, self._plan.password)
        numbers = self._plan.pages.of(opened.pages)
        if not numbers:
            raise DocumentError(
                f"{found} has {opened.pages} pages and none of those asked for; see --pages."
            )
        digest = file_digest(found.path)
        name = self._store.claim(found, self._names[found.key], digest)
        if self._plan.overwrite:
            self._store.forget(name)
        todo = []
        for number in numbers:
            record = self._store.done(name, number, digest, self._digest)
            if record is None:
                todo.append(number)
            else:
                self._store.list_done(found, name, record, digest, self._digest)
        done = len(numbers) - len(todo)
        with self._lock:
            self._tally.done += done
        self._watcher.opened(found, len(numbers), done, opened.left_out)
        return _Document(found, opened, name, digest, numbers, len(todo)), todo

    # --- reading --------------------------------------------------------------------------------

    def _read_on_all(self, engines: Sequence[Engine], pictures: _Shared) -> None:
        """Read on several engines, each in a thread; an interruption lets each end a page.

        An engine whose device failed takes no more pages, so that the others read them; if all
        fail, so do the pages that are left. No thread reads before all are started: one whose
        start is interrupted is not joined.
        """
        started = threading.Event()

        def read_on(engine: Engine) -> None:
            started.wait()
            if not self._stopped.is_set():
                self._read_on(engine, _while_running(engine, pictures))

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
            document = page.wanted.document
            assert document is not None
            self._settle(document, self._record(document, page), page.rendered.image)
            if self._stopped.is_set():
                return  # what the engine has taken ahead is for the next run

    def _readable(self, pictures: _Pictures) -> Iterator[tuple[_Wanted, Rendered]]:
        """The pages that have a picture; what has none is settled on the way."""
        for wanted, picture in pictures:
            if isinstance(picture, Rendered):
                yield wanted, picture
            elif wanted.document is None:
                self._fail(wanted.found, wanted.error)
            elif picture is None:
                self._finish(wanted.document)
            else:
                record = PageRecord(wanted.number, error=str(picture))
                self._settle(wanted.document, record, None)
            if self._stopped.is_set():
                return

    def _record(self, document: _Document, page: ReadPage[_Wanted]) -> PageRecord:
        return record_of(page, page.wanted.number, self._store.folder / document.name)

    def _settle(self, document: _Document, record: PageRecord, picture: Image.Image | None) -> None:
        """Keep and count a page that came to its end; the last one ends its document."""
        self._store.keep(document.found, document.name, record, document.digest, self._digest)
        with self._lock:
            if record.error is not None:
                self._tally.failed += 1
            else:
                self._tally.read += 1
                self._tally.retried += len(record.tries) > 1
                self._tally.cut += record.finish_reason != "stop"
            document.left -= 1
            last = document.left == 0
        self._watcher.page(document.found, record)
        if last:
            self._finish(document)

    def _fail(self, found: Input, reason: str) -> None:
        self._store.list_failed(found, reason)
        with self._lock:
            self._tally.unopened += 1
        self._watcher.unopened(found, reason)

    # --- writing --------------------------------------------------------------------------------

    def _finish(self, document: _Document) -> None:
        self._writer.submit(self._write, document)

    def _write(self, document: _Document) -> None:
        """Write the outputs of a document whose pages are settled, unless they are there."""
        try:
            written = self._written(document)
        except Exception as error:  # one document that cannot be written must not stop the others
            reason = f"The outputs of {document.found} could not be written: {error}"
            if isinstance(error, OutputError):  # which says what was written
                reason = f"{document.found}: {error}"
            self._store.list_failed(document.found, reason)
            with self._lock:
                self._tally.unwritten += 1
            self._watcher.unwritten(document.found, reason)
            return
        with self._lock:
            self._tally.documents += 1
            _count_pages(self._tally, written.pdfs)
        self._watcher.written(document.found, written.files)
        for name, pages in written.pdfs.items():
            if pages != export.PdfPages():
                self._watcher.pdf_written(document.found, name, pages)

    def _written(self, document: _Document) -> export.Written:
        plan, store = self._plan, self._store
        options = {
            "formats": sorted(plan.formats), "join_tables": plan.join_tables,
            "existing_text": plan.existing_text, "formulas": plan.formulas,
        }  # fmt: skip
        stamp = store.stamp(document.name, document.numbers, options)
        if store.is_written(document.name, stamp):
            return export.Written(())
        folder = store.folder / document.name
        folder.mkdir(exist_ok=True)
        record = DocumentRecord(
            name=document.name,
            source=document.found.path,
            kind=document.opened.kind,
            pages=store.pages(document.name, document.numbers),
            settings=self._settings,
        )
        written = export.write(
            record, plan.formats, folder, partial(self._picture, document),
            join_tables=plan.join_tables, password=plan.password,
            existing_text=plan.existing_text, formulas=plan.formulas,
        )  # fmt: skip
        if any(pages != export.PdfPages() for pages in written.pdfs.values()):
            store.list_written(document.found, document.name, written.files, written.pdfs)
        store.mark_written(document.name, stamp, written.files)
        return written

    def _picture(self, document: _Document, number: int) -> Image.Image:
        return self._renderer.render(document.opened, number).image


def _count_pages(tally: Tally, pdfs: Mapping[str, export.PdfPages]) -> None:
    """Add the pages of a document's PDFs; one that was rebuilt in two of them counts once."""
    tally.rebuilt += len({number for pages in pdfs.values() for number in pages.rebuilt})
    for pages in pdfs.values():
        tally.skipped += len(pages.skipped)
        tally.replaced += len(pages.replaced)


def _while_running(engine: Engine, pictures: _Pictures) -> _Pictures:
    """What `engine` may take: nothing more once its device has failed."""
    while engine.is_running:
        try:
            yield next(pictures)
        except StopIteration:
            return


class _Shared:
    """An iterator that several threads take from."""

    def __init__(self, pictures: _Pictures) -> None:
        self._pictures = pictures
        self._lock = threading.Lock()

    def __iter__(self) -> _Shared:
        return self

    def __next__(self) -> tuple[_Wanted, Rendered | DocumentError | None]:
        with self._lock:
            return next(self._pictures)


def record_of(page: ReadPage[Any], number: int, folder: Path | None = None) -> PageRecord:
    """The record of `page`, the `number`-th (from 1), with all its tries; its figures are written
    below `folder`, if there is one. Raises `OSError` where the disk takes no more."""
    rendered = page.rendered
    if page.reading is None:
        return PageRecord(
            number, rendered.image.width, rendered.image.height, rendered.points,
            rendered.rotation, tries=tuple(page.tries), error=page.error,
            own_text=rendered.own_text,
        )  # fmt: skip
    figures: tuple[str, ...] = ()
    if folder is not None:
        figures = export.save_figures(rendered.image, page.reading.regions, number, folder)
    return page_record(
        number, page.reading, rendered.points, rendered.rotation, figures,
        tuple(page.tries), page.kept, rendered.own_text,
    )  # fmt: skip


def settings_data(plan: Plan, render: RenderSettings) -> dict[str, Any]:
    """Everything that decides what a page is read as, as JSON data."""
    first = asdict(plan.attempts[0])
    return {
        **plan.about,
        "prompt": plan.prompt,
        "crop": first["crop"],
        "decode": first["decode"] | {"exempt_tokens": list(first["decode"]["exempt_tokens"])},
        "retries": [attempt.name for attempt in plan.attempts[1:]],
        "dpi": render.dpi,
        "rotate": render.rotate,
        "max_pixels": render.max_pixels,
    }
