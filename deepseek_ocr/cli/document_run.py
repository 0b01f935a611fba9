"""Documents into a folder: `deepseek-ocr read PATH… -o OUT`."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deepseek_ocr import presets
from deepseek_ocr.cli.document_progress import DocumentProgress
from deepseek_ocr.cli.printing import left_out_of
from deepseek_ocr.cli.read_options import STANDARD_INPUT, OutputOptions, ReadOptions
from deepseek_ocr.cli.terminal import DONE, INTERRUPTED, SOME_FAILED, complain
from deepseek_ocr.documents.inputs import Input, each_once, find, output_names, spool
from deepseek_ocr.documents.pipeline import read_documents
from deepseek_ocr.documents.plan import Plan
from deepseek_ocr.documents.renderer import Renderer
from deepseek_ocr.documents.run_store import Store, checkpoint_digest
from deepseek_ocr.documents.run_tally import Tally
from deepseek_ocr.engine.ocr_engine import OcrEngine
from deepseek_ocr.errors import SettingsError
from deepseek_ocr.formats.writing import WriteOptions

_MOST_WORKERS = 4
"""Rendering processes: each renders tens of pages a second."""


def write_documents(
    options: ReadOptions, output: OutputOptions, load: Callable[[], list[OcrEngine]]
) -> int:
    """Read every page that `options` name and write what was asked for; the exit status.

    `load` gives the engines, when all else is ready. Raises `OcrError` if there is nothing to read
    or nowhere to write, and what `load` raises.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deepseek-ocr-")))
        listed = _listed(options, folder)
        store = stack.enter_context(Store(output.folder, output.shard))
        workers = max(1, min(_MOST_WORKERS, (os.cpu_count() or 1) // 2))
        renderer = stack.enter_context(Renderer(options.render, workers))
        engines, names = load(), output_names(listed)
        inputs = [found for found in listed if output.shard.has(found.key)]
        watcher = DocumentProgress(len(inputs))
        try:
            with watcher:
                plan = _plan(options, output)
                tally = read_documents(inputs, engines, plan, store, renderer, watcher, names)
        except KeyboardInterrupt:
            _say_how_to_go_on(watcher.tally, output)
            return INTERRUPTED
        except OSError as error:
            advice = "Make room and run the same command again to go on."
            complain(f"{output.folder} takes nothing more: {error.strerror}. {advice}")
            return SOME_FAILED
        _sum_up(tally, output, inputs)
        return SOME_FAILED if tally.failures else DONE


def _listed(options: ReadOptions, folder: Path) -> list[Input]:
    """Everything that was named. Raises `OcrError` if that is nothing."""
    found = find(name for name in options.inputs if name != STANDARD_INPUT)
    inputs = [*found.inputs]
    if STANDARD_INPUT in options.inputs:
        if sys.stdin is None:
            raise SettingsError("Standard input is closed; give the path of a document.")
        inputs.append(spool(sys.stdin.buffer, folder))
    if found.left_out:
        complain(left_out_of(", ".join(options.inputs), len(found.left_out)))
    if not inputs:
        raise SettingsError("There are no pictures, PDFs or zips in what was named.")
    return each_once(inputs)


def _plan(options: ReadOptions, output: OutputOptions) -> Plan:
    settings = options.settings
    checkpoint = checkpoint_digest(settings.checkpoint_folder())
    about: dict[str, Any] = {"model": settings.model, "checkpoint": checkpoint}
    about["task"] = options.task
    if settings.quant != "none":
        about["quant"] = settings.quant
    if options.adapter is not None:
        about["adapter"] = checkpoint_digest(options.adapter)
    return Plan(
        prompt=options.prompt,
        attempts=presets.attempts(options.crop, options.decode, output.retries),
        formats=output.formats,
        pages=options.pages,
        password=options.password,
        options=WriteOptions(output.join_tables, settings.existing_text, settings.formulas),
        overwrite=output.overwrite,
        about=about,
    )


def _say_how_to_go_on(tally: Tally, output: OutputOptions) -> None:
    kept = _some(tally.done + tally.settled, "page")
    again = " without --overwrite" if output.overwrite else ""
    advice = f"Run the same command again{again} to go on from there."
    complain(f"interrupted; {kept} kept in {shlex.quote(str(output.folder))}. {advice}")


def _some(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _sum_up(tally: Tally, output: OutputOptions, inputs: list[Input]) -> None:
    words = _of_some(
        (1, f"{_some(tally.read, 'page')} read"),
        (tally.retried, f"{tally.retried} of them by another try"),
        (tally.cut, f"{tally.cut} cut (see finish_reason)"),
        (tally.done, f"{tally.done} read before"),
    )
    complain(f"{', '.join(words)}; {_some(tally.documents, 'document')} in {output.folder}.")
    for pages, what in (
        (tally.skipped, "of searchable PDFs kept the text of the original alone (--existing-text)"),
        (tally.replaced, "of searchable PDFs got new text for the old"),
        (tally.rebuilt, "of PDFs rebuilt from pictures; see above"),
    ):
        if pages:
            complain(f"{_some(pages, 'page')} {what}.")
    failures = _of_some(
        (tally.failed, f"{_some(tally.failed, 'page')} failed"),
        (tally.unopened, f"{tally.unopened} of {len(inputs)} inputs could not be opened"),
        (tally.unwritten, f"{_some(tally.unwritten, 'document')} could not be written"),
    )
    if failures:
        advice = "the reasons are in the manifest. The same command tries those again."
        complain(f"{', '.join(failures)}; {advice}")


def _of_some(*counted: tuple[int, str]) -> list[str]:
    """The texts whose count is not 0."""
    return [text for count, text in counted if count]
