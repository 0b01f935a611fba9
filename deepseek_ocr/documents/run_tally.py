"""What becomes of the pages and documents of a run, counted."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr.documents.inputs import Input
from deepseek_ocr.formats.records import PageRecord
from deepseek_ocr.formats.writing import PdfPages


@dataclass
class Tally:
    """What became of everything: pages, then documents; failures with their reasons.

    - `read`, `retried` (read, by more than one try), `failed`: pages of this run
    - `done`: pages that an earlier run had read
    - `cut`: pages of this run whose best try did not end by itself
    - `opened`: documents that could be opened; `known`: the pages of these, `done` ones included
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
    opened: int = 0
    known: int = 0
    unopened: int = 0
    unwritten: int = 0
    documents: int = 0
    skipped: int = 0
    replaced: int = 0
    rebuilt: int = 0

    @property
    def settled(self) -> int:
        """Pages that came to their end in this run."""
        return self.read + self.failed

    @property
    def failures(self) -> int:
        """Everything that is not as it was asked for."""
        return self.failed + self.unopened + self.unwritten


class Watcher:
    """Counts in `tally` what it is told, from several threads. A subclass may also say it."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._lock = threading.RLock()

    def opened(self, found: Input, pages: int, done: int, left_out: int) -> None:
        """A document has `pages` to be read, `done` of which are; `left_out` files are no pages."""
        with self._lock:
            self.tally.opened += 1
            self.tally.known += pages
            self.tally.done += done

    def page(self, found: Input, record: PageRecord) -> None:
        """A page was settled."""
        with self._lock:
            if record.error is not None:
                self.tally.failed += 1
            else:
                self.tally.read += 1
                self.tally.retried += len(record.tries) > 1
                self.tally.cut += record.finish_reason != "stop"

    def unopened(self, found: Input, reason: str) -> None:
        """An input could not be opened."""
        with self._lock:
            self.tally.unopened += 1

    def unwritten(self, found: Input, reason: str) -> None:
        """A document's outputs could not be written."""
        with self._lock:
            self.tally.unwritten += 1

    def written(self, found: Input, files: Sequence[Path], pdfs: Mapping[str, PdfPages]) -> None:
        """A document's outputs are there; `pdfs` are the PDFs among them by format."""
        with self._lock:
            self.tally.documents += 1
            # A page rebuilt in two PDFs counts once.
            self.tally.rebuilt += len({page for pages in pdfs.values() for page in pages.rebuilt})
            for pages in pdfs.values():
                self.tally.skipped += len(pages.skipped)
                self.tally.replaced += len(pages.replaced)
