"""Run a job: load the model once, then print pages, write documents, or ask what to read."""

from __future__ import annotations

import gc
import io
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ocr.cli.console import COULD_NOT_START, INTERRUPTED, complain, tell
from deepseek_ocr.cli.read_arguments import Job, Output, parse
from deepseek_ocr.devices import ascend
from deepseek_ocr.errors import OcrError
from deepseek_ocr.weights import registry

if TYPE_CHECKING:
    from deepseek_ocr.engine.ocr_engine import OcrEngine


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what `arguments` ask for; the exit status is in the help text."""
    job = parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        if job.report is not None:
            return _tell(job)
        return _print(job) if job.output is None else _write(job, job.output)
    except OcrError as error:
        complain(str(error))
        return COULD_NOT_START
    except (ImportError, OSError, RuntimeError) as error:
        if (told := ascend.advice(error)) is None:
            raise
        complain(told)
        return COULD_NOT_START
    except KeyboardInterrupt:
        complain("interrupted while loading.")
        return INTERRUPTED


def _tell(job: Job) -> int:
    """What is here, or what to fix; nothing is read but the doctor's own page."""
    if job.report == "doctor":
        from deepseek_ocr.cli import doctor

        return doctor.examine(job)
    from deepseek_ocr.cli import list_devices as devices

    return devices.show(job)


def _print(job: Job) -> int:
    if not (engines := _load(job)):
        return COULD_NOT_START
    from deepseek_ocr.cli import interactive, printing

    if not job.inputs:
        return interactive.ask(engines[0], job)
    return printing.print_all(engines[0], job)


def _write(job: Job, output: Output) -> int:
    checkpoint_folder(job)  # better to fail now than after listing
    from deepseek_ocr.cli.document_run import prepared, write_documents

    with prepared(job, output) as ready:
        if not (engines := _load(job)):
            return COULD_NOT_START
        return write_documents(engines, job, output, ready)


def _load(job: Job) -> list[OcrEngine]:
    """An engine for each device; none after saying why."""
    devices = job.output.devices if job.output else ()
    engines: list[OcrEngine] = []
    try:
        folder = checkpoint_folder(job)
        tell(f"loading {folder} …")
        gc.disable()  # nothing of what is imported is garbage: looking takes a sixth of the time
        try:
            from deepseek_ocr.cli.list_devices import warn_of_too_little
            from deepseek_ocr.engine.ocr_engine import OcrEngine  # imports torch: seconds
        finally:
            gc.freeze()  # nor will it be: two looks before the first page, 0.2 s each
            gc.enable()
        options = replace(job.settings.load_options(), adapter=job.adapter)
        for device in devices or (job.settings.device,):
            warn_of_too_little(job, folder, device)
            engine = OcrEngine.from_options(folder, replace(options, device=device))
            tell(f"on {engine.device}, {str(engine.dtype).removeprefix('torch.')}")
            engines.append(engine)
    except OcrError as error:
        complain(str(error))
        return []
    except Exception as error:  # a device that is out of memory raises what it likes
        complain(ascend.advice(error) or f"the model could not be loaded: {error}")
        return []
    if threading.current_thread() is threading.main_thread():
        # ocr.py lets an interruption end the program outright; from here on there is work to keep.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return engines


def checkpoint_folder(job: Job) -> Path:
    """Where the job's model is. Raises `CheckpointError` and `SettingsError`."""
    return registry.ensure(job.settings.model, Path(job.settings.checkpoints), fetch=False)
