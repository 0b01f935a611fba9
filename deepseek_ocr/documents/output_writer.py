"""Writing the outputs of a document of a run when its last page is settled."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from PIL import Image

from deepseek_ocr.documents.inputs import Input
from deepseek_ocr.documents.plan import Plan, settings_data
from deepseek_ocr.documents.renderer import OpenDocument, Renderer
from deepseek_ocr.documents.run_store import Store
from deepseek_ocr.documents.run_tally import RunReporter
from deepseek_ocr.errors import OutputError
from deepseek_ocr.formats import export
from deepseek_ocr.formats.records import DocumentRecord
from deepseek_ocr.formats.writing import PdfPages


@dataclass
class DocumentInRun:
    """A document of a run: its input, the name of its folder, the hash of its content, its pages.

    `left` counts the pages that are not settled.
    """

    found: Input
    opened: OpenDocument
    name: str
    digest: str
    numbers: list[int]
    left: int


class OutputWriter:
    """Writes the outputs of documents from the records in `store`."""

    def __init__(self, plan: Plan, store: Store, renderer: Renderer, progress: RunReporter) -> None:
        self._plan, self._store, self._renderer = plan, store, renderer
        self._progress = progress

    def write(self, document: DocumentInRun) -> None:
        """Write the outputs of a document whose pages are settled, unless they are there.

        Never raises: what fails is listed.
        """
        try:
            written = self._write(document)
        except Exception as error:  # one document that cannot be written must not stop the others
            reason = f"The outputs of {document.found} could not be written: {error}"
            if isinstance(error, OutputError):  # which says what was written
                reason = f"{document.found}: {error}"
            self._progress.unwritten(document.found, reason)
            return
        self._progress.written(document.found, written.files, written.pdfs)

    def _write(self, document: DocumentInRun) -> export.WrittenFiles:
        plan, store = self._plan, self._store
        options = {"formats": sorted(plan.formats), **asdict(plan.options)}
        stamp = store.stamp(document.name, document.numbers, options)
        if store.is_written(document.name, stamp):
            return export.WrittenFiles(())
        folder = store.folder / document.name
        folder.mkdir(exist_ok=True)
        record = DocumentRecord(
            name=document.name,
            source=document.found.path,
            kind=document.opened.kind,
            pages=store.pages(document.name, document.numbers),
            settings=settings_data(plan, self._renderer.settings),
        )

        def render(number: int) -> Image.Image:
            return self._renderer.render(document.opened, number).image

        written = export.write(record, plan.formats, folder, render, plan.options, plan.password)
        if any(pages != PdfPages() for pages in written.pdfs.values()):
            store.list_written(document.found, document.name, written.files, written.pdfs)
        store.mark_written(document.name, stamp, written.files)
        return written
