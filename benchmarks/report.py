"""What a device does with pages: `python -m benchmarks.report --device npu [PATH ...]`.

Loads the model, reads every page once (after one that warms up and does not count), one after the
other, and prints a table in Markdown: seconds to load, seconds per page by length of the text,
characters per second, and how many pages ended by themselves with text. Without paths it reads the
example pages. Send the table, or paste it into docs/devices.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deepseek_ocr import configuration, presets
from deepseek_ocr.cli.flags import add_speed
from deepseek_ocr.errors import OcrError
from deepseek_ocr.weights import registry

ROOT = Path(__file__).resolve().parent.parent

LENGTHS = (("under 500", 0, 500), ("500 to 2,000", 500, 2000), ("over 2,000", 2000, sys.maxsize))
"""Classes of pages by characters written: from, below."""


@dataclass(frozen=True)
class Sample:
    """A page that was read: seconds, characters written, and how it ended ("failed" where it
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
    """Command line; status 1 where a page did not succeed, 2 where nothing could start."""
    flags = _parser().parse_args(arguments)
    try:
        settings = configuration.load(vars(flags))
        about, samples = measure(settings, flags)
    except OcrError as error:
        sys.stderr.write(f"report: {error}\n")
        return 2
    print("\n".join(table(about, samples)))
    if flags.json:
        content = {**about, "pages": [asdict(sample) for sample in samples]}
        flags.json.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return 0 if all(sample.succeeded for sample in samples) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("pages", nargs="*", type=Path, metavar="PATH", help="pictures of pages")
    parser.add_argument("--task", default=None, help="markdown, ocr, … (default: the model's)")
    parser.add_argument("--size", default=None, help="preset (default: the model's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every page there too")
    where = parser.add_argument_group("which model and where")
    for name in ("model", "checkpoints", "device", "vision-device", "dtype"):
        where.add_argument(f"--{name}", metavar="NAME")
    add_speed(where)
    return parser


def measure(
    settings: configuration.Settings, flags: argparse.Namespace
) -> tuple[dict[str, Any], list[Sample]]:
    """What was run on what, and every page. Raises `OcrError` where the model cannot be loaded."""
    folder = registry.ensure(settings.model, Path(settings.checkpoints), fetch=False)
    known = registry.known_as(settings.model)
    began = time.perf_counter()
    from deepseek_ocr.engine.ocr_engine import OcrEngine

    engine = OcrEngine.from_options(folder, replace(settings.load_options(), slots=1))
    load_seconds = time.perf_counter() - began
    pages = flags.pages or sorted((ROOT / "examples").glob("*.png"))
    prompt = presets.prompt_for(flags.task or known.task)
    crop = presets.crop_for(flags.size or known.preset)
    try:
        read(engine, pages[0], prompt, crop)
        samples = [read(engine, page, prompt, crop) for page in pages]
    finally:
        engine.close()
    return {**_about(engine, settings), "load_seconds": load_seconds}, samples


def read(engine: Any, page: Path, prompt: str, crop: Any) -> Sample:
    """Read a page and time it; a failure is a sample too."""
    began = time.perf_counter()
    try:
        reading = engine.read(page, prompt, crop)
    except Exception as error:  # whatever a device raises
        sys.stderr.write(f"{page.name}: {type(error).__name__}: {error}\n")
        return Sample(page.name, time.perf_counter() - began, 0, "failed")
    seconds = time.perf_counter() - began
    return Sample(page.name, seconds, len(reading.text), reading.finish_reason)


def table(about: dict[str, Any], samples: Sequence[Sample]) -> list[str]:
    """The report as lines of Markdown."""
    read_through = [sample for sample in samples if sample.succeeded]
    lines = [
        f"| {about['device']} ({about['name']}), {about['dtype']} | |",
        "|---|---|",
        f"| software | {about['software']} |",
        f"| model | {about['model']} |",
        f"| loading (with imports) | {about['load_seconds']:.1f} s |",
    ]
    for name, least, below in LENGTHS:
        some = [sample for sample in read_through if least <= sample.characters < below]
        if some:
            mean = sum(sample.seconds for sample in some) / len(some)
            lines.append(f"| a page of {name} characters | {mean:.1f} s (mean of {len(some)}) |")
    if read_through:
        seconds = sum(sample.seconds for sample in read_through)
        characters = sum(sample.characters for sample in read_through)
        lines.append(f"| all pages | {seconds / len(read_through):.1f} s a page, "
                     f"{characters / seconds:.0f} characters a second |")  # fmt: skip
    share = len(read_through) / len(samples)
    lines.append(f"| success | {len(read_through)} of {len(samples)} ({share:.0%}) |")
    return lines


def _about(engine: Any, settings: configuration.Settings) -> dict[str, Any]:
    import importlib.metadata

    from deepseek_ocr.devices import selection

    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", "torch-npu", "transformers"):
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": str(engine.device),
        "name": selection.describe(engine.device).name,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "model": f"{settings.model}, quant {settings.quant}",
        "software": ", ".join(versions),
    }


if __name__ == "__main__":
    raise SystemExit(main())
