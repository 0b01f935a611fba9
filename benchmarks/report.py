"""What a device does with pages: `python -m benchmarks.report --device npu [PATH ...]`.

Loads the model, reads every page once (after one that warms up and does not count), one after the
other, and prints a table in Markdown: seconds to load, seconds per page by length of the text,
characters per second, and how many pages ended by themselves with text. Without paths it reads the
example pages. Send the table, or paste it into docs/devices.md.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import command
from deepseek_ocr import configuration, presets
from deepseek_ocr.errors import OcrError
from deepseek_ocr.settings import CropSettings
from deepseek_ocr.weights import catalog, registry

if TYPE_CHECKING:
    from deepseek_ocr.engine.ocr_engine import OcrEngine

LENGTHS = (("under 500", 0, 500), ("500 to 2,000", 500, 2000), ("over 2,000", 2000, sys.maxsize))
"""Classes of pages by characters written: from, below."""


@dataclass(frozen=True)
class PageTime:
    """A page that was read: seconds, characters written, and how it ended ("failed" if it
    raised)."""

    page: str
    seconds: float
    characters: int
    ended: str

    @property
    def succeeded(self) -> bool:
        """Whether the model ended by itself, with text."""
        return self.ended == "stop" and self.characters > 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; status 1 if a page did not succeed, 2 if nothing could start."""
    flags = _parser().parse_args(arguments)
    try:
        about, times = measure(configuration.load(vars(flags)), flags)
    except OcrError as error:
        sys.stderr.write(f"report: {error}\n")
        return 2
    print("\n".join(table(about, times)))
    command.write_json(flags.json, {**about, "pages": [asdict(one) for one in times]})
    return 0 if all(one.succeeded for one in times) else 1


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("report", __doc__)
    parser.add_argument("pages", nargs="*", type=Path, metavar="PATH", help="pictures of pages")
    parser.add_argument("--task", help="markdown, ocr, … (default: the model's)")
    parser.add_argument("--size", help="preset (default: the model's)")
    where = parser.add_argument_group("which model and where, as for deepseek-ocr read")
    for name in ("model", "checkpoints", "device", "vision-device", "dtype", "quant", "kernels"):
        where.add_argument(f"--{name}", metavar="NAME")
    return parser


def measure(
    settings: configuration.Settings, flags: argparse.Namespace
) -> tuple[dict[str, Any], list[PageTime]]:
    """What was run on what, and every page. Raises `OcrError` if the model cannot be loaded."""
    folder = registry.ensure(settings.model, Path(settings.checkpoints), fetch=False)
    known = catalog.known_as(settings.model)
    began = time.perf_counter()
    from deepseek_ocr.engine.ocr_engine import OcrEngine  # its seconds count too

    engine = OcrEngine.from_options(folder, replace(settings.load_options(), slots=1))
    load_seconds = time.perf_counter() - began
    from benchmarks import machine
    from deepseek_ocr.devices import selection

    versions = machine.packages() | {"Python": platform.python_version()}
    names = ("Python", "torch", "torch-npu", "transformers")
    about = {
        "device": str(engine.device),
        "name": selection.describe(engine.device).name,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "model": f"{settings.model}, quant {settings.quant}",
        "software": ", ".join(f"{name} {versions[name]}" for name in names if versions[name]),
        "load_seconds": load_seconds,
    }
    pages = flags.pages or sorted(command.EXAMPLES.glob("*.png"))
    prompt = presets.prompt_for(flags.task or known.task)
    crop = presets.crop_for(flags.size or known.preset)
    try:
        read(engine, pages[0], prompt, crop)
        return about, [read(engine, page, prompt, crop) for page in pages]
    finally:
        engine.close()


def read(engine: OcrEngine, page: Path, prompt: str, crop: CropSettings) -> PageTime:
    """Read a page and time it; a failure has a time too."""
    began = time.perf_counter()
    try:
        reading = engine.read(page, prompt, crop)
    except Exception as error:  # whatever a device raises
        sys.stderr.write(f"{page.name}: {type(error).__name__}: {error}\n")
        return PageTime(page.name, time.perf_counter() - began, 0, "failed")
    seconds = time.perf_counter() - began
    return PageTime(page.name, seconds, len(reading.text), reading.finish_reason)


def table(about: dict[str, Any], times: Sequence[PageTime]) -> list[str]:
    """The report as lines of Markdown."""
    read_through = [one for one in times if one.succeeded]
    lines = [
        f"| {about['device']} ({about['name']}), {about['dtype']} | |",
        "|---|---|",
        f"| software | {about['software']} |",
        f"| model | {about['model']} |",
        f"| loading (with imports) | {about['load_seconds']:.1f} s |",
    ]
    for name, least, below in LENGTHS:
        some = [one for one in read_through if least <= one.characters < below]
        if some:
            mean = sum(one.seconds for one in some) / len(some)
            lines.append(f"| a page of {name} characters | {mean:.1f} s (mean of {len(some)}) |")
    if read_through:
        seconds = sum(one.seconds for one in read_through)
        characters = sum(one.characters for one in read_through)
        lines.append(f"| all pages | {seconds / len(read_through):.1f} s a page, "
                     f"{characters / seconds:.0f} characters a second |")  # fmt: skip
    share = len(read_through) / len(times)
    lines.append(f"| success | {len(read_through)} of {len(times)} ({share:.0%}) |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
