"""What becomes of the pages and documents of a run: counted, listed, and told to a watcher."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr.documents.inputs import Input
from deepseek_ocr.documents.run_store import Store
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.formats.writing import PdfPages


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

    def written(self, found: Input, files: Sequence[Path], pdfs: Mapping[str, PdfPages]) -> None:
        """A document's outputs are there; `pdfs` are the PDFs among them by format."""


class RunReporter(Watcher):
    """Counts what happens in `tally`, lists failures in `store`, tells `watcher`."""

    def __init__(self, store: Store, watcher: Watcher) -> None:
        self.tally = Tally()
        self._store, self._watcher = store, watcher
        self._lock = threading.Lock()

    def opened(self, found: Input, pages: int, done: int, left_out: int) -> None:
        with self._lock:
            self.tally.done += done
        self._watcher.opened(found, pages, done, left_out)

    def unopened(self, found: Input, reason: str) -> None:
        self._store.list_failed(found, reason)
        with self._lock:
            self.tally.unopened += 1
        self._watcher.unopened(found, reason)

    def page(self, found: Input, record: PageRecord) -> None:
        with self._lock:
            if record.error is not None:
                self.tally.failed += 1
            else:
                self.tally.read += 1
                self.tally.retried += len(record.tries) > 1
                self.tally.cut += record.finish_reason != "stop"
        self._watcher.page(found, record)

    def unwritten(self, found: Input, reason: str) -> None:
        self._store.list_failed(found, reason)
        with self._lock:
            self.tally.unwritten += 1
        self._watcher.unwritten(found, reason)

    def written(self, found: Input, files: Sequence[Path], pdfs: Mapping[str, PdfPages]) -> None:
        with self._lock:
            self.tally.documents += 1
            # A page rebuilt in two PDFs counts once.
            self.tally.rebuilt += len({page for pages in pdfs.values() for page in pages.rebuilt})
            for pages in pdfs.values():
                self.tally.skipped += len(pages.skipped)
                self.tally.replaced += len(pages.replaced)
        self._watcher.written(found, files, pdfs)
