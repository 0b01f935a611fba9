"""Pages on standard output, as they are read."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_ocr.cli.read_options import STANDARD_INPUT, ReadOptions
from deepseek_ocr.cli.terminal import DONE, INTERRUPTED, SOME_FAILED, StdoutError, complain, write
from deepseek_ocr.documents.inputs import Input, find, may_have_pages, spool
from deepseek_ocr.documents.renderer import Ahead, Rendered, Renderer
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.engine.results import Delta, Failure, Reading
from deepseek_ocr.errors import DocumentError, OcrError
from deepseek_ocr.formats.export import document_to_json, page_to_json
from deepseek_ocr.images.image_loading import Source

_AHEAD = 2
"""Pages rendered before they are asked for."""

_ENDINGS = {
    "loop": "the model went in circles and was stopped; try another --size, or --temperature 0.2",
    "length": "the answer reached its longest length and may be cut; see --max-new-tokens",
    "timeout": "the page took too long and is cut; see --timeout",
}


@dataclass(frozen=True)
class PrintedPage:
    """A page to print: the picture or why there is none; `number` of `count` in its document."""

    name: str
    source: Source | OcrError
    number: int = 1
    count: int = 1

    @property
    def title(self) -> str:
        """The page by its file and, if that has several, its number."""
        return self.name if self.count == 1 else f"{self.name}, page {self.number}"


class Printer:
    """Reads pages and prints them in the format of the options, counting those that fail."""

    def __init__(self, engine: OcrEngine, options: ReadOptions) -> None:
        self._engine, self._options = engine, options
        self.pages: list[dict[str, Any]] = []
        self.failed = 0
        self._titled = False

    def read(self, page: PrintedPage, titled: bool) -> None:
        """Read and print one page. Raises `StdoutError`; what fails on the page is only told."""
        if titled and self._options.format != "json":
            write(f"{chr(10) if self._titled else ''}==> {page.title} <==\n")
            self._titled = True
        try:
            if isinstance(page.source, OcrError):
                raise page.source
            reading = self._print(page.source)
            self._keep(page, reading)
            for remark in _remarks(reading):
                complain(f"{page.title}: {remark}.")
        except StdoutError:
            raise
        except Exception as error:  # one bad page must not stop the others
            self.failed += 1
            failure = Failure(error)
            self._keep(page, failure)
            message = str(failure)
            complain(message if message.startswith(page.name) else f"{page.title}: {message}")

    def _keep(self, page: PrintedPage, outcome: Reading | Failure) -> None:
        self.pages.append({**page_to_json(outcome, page.name), "number": page.number})

    def _print(self, source: Source) -> Reading:
        """Read one page and print it (JSON is printed when all are read)."""
        options = self._options
        reading: Reading | None = None
        for event in self._engine.stream(source, options.prompt, options.crop, options.decode):
            if not isinstance(event, Delta):
                reading = event
            elif options.format == "txt":
                write(event.text)
        assert reading is not None
        if options.format == "txt" and not reading.text.endswith("\n"):
            write("\n")
        if options.format == "md":
            write(f"{reading.to_markdown(options.settings.formulas)}\n")
        return reading

    def finish(self) -> None:
        """Print what waits for the last page. Raises `StdoutError`."""
        if self._options.format == "json":
            text = json.dumps(document_to_json(self.pages), ensure_ascii=False, indent=2)
            write(text + "\n")


def print_all(engine: OcrEngine, options: ReadOptions) -> int:
    """Read and print every page that the options name; the exit status. Raises `StdoutError`."""
    printer = Printer(engine, options)
    status = DONE
    try:
        print_inputs(printer, options, options.inputs)
    except KeyboardInterrupt:
        complain("interrupted; what was read so far is kept.")
        status = INTERRUPTED
    printer.finish()
    return status or (SOME_FAILED if printer.failed else DONE)


def print_inputs(printer: Printer, options: ReadOptions, arguments: list[str]) -> None:
    """Read and print every page that `arguments` name, and say how many failed."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deepseek-ocr-")))
        renderer = stack.enter_context(Renderer(options.render))
        inputs = _inputs(arguments, folder)
        before, failed = len(printer.pages), printer.failed
        for found in inputs:
            for page in _pages(found, options, renderer):
                printer.read(page, titled=len(inputs) > 1 or page.count > 1)
    read, failed = len(printer.pages) - before, printer.failed - failed
    if failed and read > 1:
        complain(f"{failed} of {read} pages failed.")


def _inputs(arguments: list[str], folder: Path) -> list[Input]:
    """The files that `arguments` name."""
    inputs: list[Input] = []
    for argument in arguments:
        if argument == STANDARD_INPUT:
            inputs.append(_standard_input(folder))
            continue
        listing = find([argument])
        inputs += listing.inputs
        if listing.left_out:
            complain(left_out_of(argument, len(listing.left_out)))
        if not listing.inputs:
            error = f"{argument} holds no pictures, PDFs or zips; name the files themselves."
            inputs.append(Input(Path(argument), argument, error))
    return inputs


def left_out_of(place: str, count: int) -> str:
    """What to say of files that are no pages by their names."""
    files = "1 file has" if count == 1 else f"{count} files have"
    return f"{place}: {files} no suffix of a page and did not count as one; name it to be sure."


def _standard_input(folder: Path) -> Input:
    problem = "Standard input is closed; give the path of a picture."
    if sys.stdin is not None:
        try:
            return spool(sys.stdin.buffer, folder)
        except OcrError as error:
            problem = str(error)
    return Input(Path(STANDARD_INPUT), STANDARD_INPUT, problem, STANDARD_INPUT)


def _pages(found: Input, options: ReadOptions, renderer: Renderer) -> Iterator[PrintedPage]:
    """The pages of an input; a picture is opened by the engine itself, as it always was."""
    if found.error is not None:
        yield PrintedPage(str(found), DocumentError(found.error))
    elif options.pages.ranges or options.render.rotate is not None or may_have_pages(found.path):
        yield from _rendered(found, options, renderer)
    elif found.label:
        yield PrintedPage(str(found), found.path.read_bytes())
    else:
        yield PrintedPage(str(found), found.path)


def _rendered(found: Input, options: ReadOptions, renderer: Renderer) -> Iterator[PrintedPage]:
    try:
        document = renderer.open(found.path, options.password)
    except DocumentError as error:
        yield PrintedPage(str(found), error)
        return
    if document.left_out:
        complain(left_out_of(str(found), document.left_out))
    numbers = options.pages.of(document.pages)
    if not numbers:
        reason = f"It has {document.pages} pages and none of those asked for; see --pages."
        yield PrintedPage(str(found), DocumentError(reason))
    requests = ((number, document, number) for number in numbers)
    with closing(Ahead(renderer, requests, _AHEAD)) as ahead:
        for number, picture in ahead:
            source = picture.image if isinstance(picture, Rendered) else picture
            yield PrintedPage(str(found), source, number, document.pages)


def _remarks(reading: Reading) -> list[str]:
    """What a person should know of a page that was read, but maybe not as they hoped."""
    remarks = [_ENDINGS[reading.finish_reason]] if reading.finish_reason in _ENDINGS else []
    if not reading.text.strip():
        remarks.append("nothing was read; the page may be empty, or not what this model can read")
    return remarks
