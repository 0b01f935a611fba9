"""Check a real checkpoint on this machine.

Loads it strictly, reads three example pages, looks for what stands on them, and writes a report
that can be sent to the project. Exit status: 0 all found, 1 something is missing, 2 could not
start.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_ocr import __version__, presets
from deepseek_ocr.cli.example_pages import examples_folder
from deepseek_ocr.cli.flags import add_settings, load_settings
from deepseek_ocr.cli.terminal import COULD_NOT_START, DONE, SOME_FAILED, complain, write_line
from deepseek_ocr.files import write_json

if TYPE_CHECKING:
    from deepseek_ocr.engine.ocr_engine import OcrEngine

DESCRIPTION = __doc__


@dataclass(frozen=True)
class Check:
    """A page, how to read it, and phrases that must be in the text (case does not matter)."""

    page: str
    task: str
    size: str
    phrases: tuple[str, ...]
    reference: str = ""


CHECKS = (
    Check("invoice.png", "ocr", "tiny", ("Invoice",)),
    Check("fruit.png", "ocr", "base", ("Apple 12", "Lemon 34")),
    Check(
        "letter.png", "markdown", "gundam",
        ("Harbour Lane Bakery", "half past five", "<td>Rye bread</td>", "213.50", "Thomas Abel",
         "<|ref|>table<|/ref|>"),
    ),
    Check("letter.png", "locate", "base", ("<|det|>[[",), reference="Thomas Abel"),
)  # fmt: skip


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sub-command."""
    text, default = "where to write the report (default: %(default)s)", "checkpoint-report.json"
    parser.add_argument("--report", type=Path, metavar="FILE", default=Path(default), help=text)
    add_settings(parser)


def run(flags: argparse.Namespace) -> int:
    """Read the example pages and write the report; the exit status is in the help."""
    try:
        flags.report.touch()  # better to fail now than after the reading
        settings = load_settings(flags)
        folder = settings.checkpoint_folder()
        began = time.perf_counter()
        from deepseek_ocr.engine.ocr_engine import OcrEngine

        engine = OcrEngine.from_options(folder, settings.load_options())
    except Exception as error:  # a device that is out of memory raises what it likes
        complain(str(error))
        return COULD_NOT_START
    load_seconds = time.perf_counter() - began
    write_line(f"loaded {folder} on {engine.device} in {load_seconds:.1f} s: every tensor fits")
    results = [run_check(engine, check) for check in CHECKS]
    report = {**_machine(engine), "load_seconds": load_seconds, "checks": results}
    write_json(flags.report, report)
    passed = all(result["passed"] for result in results)
    found = "all found" if passed else "something is missing"
    write_line(f"{found}; the report is {flags.report}, please attach it to an issue")
    return DONE if passed else SOME_FAILED


def run_check(engine: OcrEngine, check: Check) -> dict[str, Any]:
    """Read one page and say what was found on it; an error is a result too."""
    began = time.perf_counter()
    result: dict[str, Any] = {**asdict(check), "passed": False}
    prompt, crop = presets.prompt_for(check.task, check.reference), presets.crop_for(check.size)
    try:
        reading = engine.read(examples_folder() / check.page, prompt, crop)
    except Exception as error:  # an error is a result too
        result["error"] = f"{type(error).__name__}: {error}"
        missing: Sequence[str] = check.phrases
    else:
        text = reading.text.lower()
        missing = [phrase for phrase in check.phrases if phrase.lower() not in text]
        result |= {
            "passed": not missing, "missing": missing, "text": reading.text,
            "finish_reason": reading.finish_reason, "counts": asdict(reading.counts),
            "timings": asdict(reading.timings),
        }  # fmt: skip
    seconds = time.perf_counter() - began
    verdict = "ok" if not missing else f"missing: {', '.join(missing)}"
    write_line(f"{check.page:14}{check.task:10}{check.size:8}{seconds:8.1f} s  {verdict}")
    return result


def _machine(engine: OcrEngine) -> dict[str, str]:
    import torch
    import transformers

    name = platform.processor() or platform.machine()
    if engine.device.type == "cuda":
        name = torch.cuda.get_device_name(engine.device)
    return {
        "version": __version__, "torch": torch.__version__,
        "transformers": transformers.__version__, "python": platform.python_version(),
        "device": str(engine.device), "dtype": str(engine.dtype), "processor": name,
    }  # fmt: skip
