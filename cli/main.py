"""Run a job: load the model once, read every page, print, and say what failed."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import weights
from cli.arguments import STANDARD_INPUT, Job, parse
from deepseek_ocr.errors import ImageError, OcrError

if TYPE_CHECKING:
    from deepseek_ocr.engine import OcrEngine, Reading

ALL_READ, SOME_FAILED, COULD_NOT_START, INTERRUPTED = 0, 1, 2, 130

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that could steer a terminal; a page's text must not."""

_ENDINGS = {
    "loop": "the model went in circles and was stopped; try another --size, or --temperature 0.2",
    "length": "the answer reached its longest length and may be cut; see --max-new-tokens",
}


class _OutputError(Exception):
    """Standard output takes nothing more."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Read what `arguments` name; the exit status is in the help text."""
    job = parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        engine = _load(job)
    except KeyboardInterrupt:
        _complain("interrupted while loading.")
        return INTERRUPTED
    if engine is None:
        return COULD_NOT_START
    if threading.current_thread() is threading.main_thread():
        # ocr.py lets an interruption end the program outright; from here on there is work to keep.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    pages: list[dict[str, Any]] = []
    try:
        status = _read_all(engine, job, pages)
    except KeyboardInterrupt:
        _complain("interrupted; what was read so far is kept.")
        status = INTERRUPTED
    except _OutputError as error:
        return _output_is_gone(error)
    try:
        if job.format == "json":
            _write_json(pages)
    except _OutputError as error:
        return _output_is_gone(error)
    return status


def _load(job: Job) -> OcrEngine | None:
    """The engine, or None after saying why there is none."""
    try:
        folder = weights.ensure(job.settings.model, Path(job.settings.checkpoints), fetch=False)
        _tell(f"loading {folder} …")
        from deepseek_ocr.engine import OcrEngine  # imports torch: seconds

        engine = OcrEngine.load(folder, job.settings.device, job.settings.dtype)
    except OcrError as error:
        _complain(str(error))
        return None
    except Exception as error:  # a device that is out of memory raises what it likes
        _complain(f"the model could not be loaded: {error}")
        return None
    _tell(f"on {engine.device}, {str(engine.dtype).removeprefix('torch.')}")
    return engine


def _read_all(engine: OcrEngine, job: Job, pages: list[dict[str, Any]]) -> int:
    """Read every image of the job, adding each as JSON data to `pages`."""
    from deepseek_ocr.engine import Failure
    from deepseek_ocr.exports import page_to_json

    failed = 0
    for number, name in enumerate(job.images):
        if job.format != "json" and len(job.images) > 1:
            _write(f"{'' if number == 0 else chr(10)}==> {name} <==\n")
        try:
            reading = _read_one(engine, job, name)
            pages.append(page_to_json(reading, name))
        except _OutputError:
            raise
        except Exception as error:  # one bad page must not stop the others
            failed += 1
            pages.append(page_to_json(Failure(error), name))
            message = str(Failure(error))
            _complain(message if message.startswith(name) else f"{name}: {message}")
    if failed and len(job.images) > 1:
        _complain(f"{failed} of {len(job.images)} pages failed.")
    return SOME_FAILED if failed else ALL_READ


def _read_one(engine: OcrEngine, job: Job, name: str) -> Reading:
    """Read one page and print it in the job's format (JSON is printed when all are read)."""
    from deepseek_ocr.engine import Delta

    source: Any = name
    if name == STANDARD_INPUT:
        if sys.stdin is None:
            raise ImageError("Standard input is closed; give the path of a picture.")
        source = sys.stdin.buffer
    reading: Reading | None = None
    for event in engine.stream(source, job.prompt, job.crop, job.decode):
        if not isinstance(event, Delta):
            reading = event
        elif job.format == "txt":
            _write(event.text)
    assert reading is not None
    if job.format == "txt" and not reading.text.endswith("\n"):
        _write("\n")
    if job.format == "md":
        _write(f"{reading.markdown}\n")
    for remark in _remarks(reading):
        _complain(f"{name}: {remark}.")
    return reading


def _remarks(reading: Reading) -> list[str]:
    """What a person should know of a page that was read, but maybe not as they hoped."""
    remarks = [_ENDINGS[reading.finish_reason]] if reading.finish_reason in _ENDINGS else []
    if not reading.text.strip():
        remarks.append("nothing was read; the page may be empty, or not what this model can read")
    if reading.more_pages:
        remarks.append("the file holds more pages; only the first was read, so split it")
    return remarks


def _write_json(pages: list[dict[str, Any]]) -> None:
    from deepseek_ocr.exports import document_to_json

    _write(json.dumps(document_to_json(pages), ensure_ascii=False, indent=2) + "\n")


def _write(text: str) -> None:
    """Print at once; a terminal gets no control characters out of a page."""
    if sys.stdout is None:
        raise _OutputError("it is closed")
    if sys.stdout.isatty():
        text = _CONTROL.sub("\ufffd", text)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        raise _OutputError(error.strerror) from error


def _output_is_gone(error: _OutputError) -> int:
    """Say so, unless whoever read our output has just seen enough (`| head`)."""
    if not isinstance(error.__cause__, BrokenPipeError):
        _complain(f"standard output cannot be written: {error}.")
    sys.stdout = None  # nothing is left to flush to
    return SOME_FAILED


def _tell(text: str) -> None:
    """Progress for a person; silent when nobody watches."""
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(f"ocr.py: {text}\n")


def _complain(text: str) -> None:
    if sys.stderr is not None:
        lines = _CONTROL.sub("\ufffd", text)
        sys.stderr.write(f"ocr.py: {lines}\n")
