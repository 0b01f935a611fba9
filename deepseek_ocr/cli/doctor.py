"""`deepseek-ocr doctor`: checks the whole installation and says what to fix. Imports torch late:
that it cannot be imported is one of the findings."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from deepseek_ocr import __version__, presets
from deepseek_ocr.cli.example_pages import examples_folder
from deepseek_ocr.cli.flags import add_settings, load_settings, named
from deepseek_ocr.cli.terminal import DONE, SOME_FAILED, write
from deepseek_ocr.configuration import Settings
from deepseek_ocr.devices import ascend
from deepseek_ocr.errors import CheckpointError, OcrError
from deepseek_ocr.weights import catalog

ROOT = Path(__file__).resolve().parents[2]

OLDEST_PYTHON = (3, 11)

DISTRIBUTION = "cog-deepseek-ocr"

DESCRIPTION = """\
Check the whole installation: Python, packages, torch, devices, the checkpoint and the memory that
it takes. Then read a small page with the bundled model, and say what to fix.

exit status: 0 nothing to fix, 1 something must be fixed, 2 could not start
"""


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, and what to do if it is not well
    (`fix`). With `bad` pages cannot be read; without, they can."""

    what: str
    how: str
    fix: str = ""
    bad: bool = False

    def __str__(self) -> str:
        mark = "!!" if self.bad else "? " if self.fix else "ok"
        return f"{mark}  {self.what}: {self.how}" + (f"\n      {self.fix}" if self.fix else "")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sub-command."""
    text = "preset whose memory is looked at (default: gundam; pocket: tiny)"
    parser.add_argument("--size", type=named(presets.preset_title), help=text)
    add_settings(parser)


def run(flags: argparse.Namespace) -> int:
    """Print what is well and what is not; the exit status. Raises `SettingsError`."""
    settings = load_settings(flags)
    best = presets.preset_title(catalog.known_as(settings.model).preset)
    return examine(settings, flags.size or best)


def examine(settings: Settings, size: str) -> int:
    """Print what is well with `settings` and pages cut by the preset `size`, and what is not; the
    exit status is 1 if something must be fixed."""
    found: list[Finding] = []
    checks = {
        "python": _python(),
        "packages": _packages(),
        "torch": _torch(),
        "devices": _devices(settings),
        "checkpoint": _checkpoint(settings),
        "memory": _memory(settings, size),
        "reading": _reading(settings),
    }
    for title, check in checks.items():
        for finding in _guarded(title, check):
            write(f"{finding}\n")
            found.append(finding)
        if title == "torch" and found[-1].bad:
            break  # nothing further can be looked at
    bad = sum(finding.bad for finding in found)
    write("nothing to fix\n" if not bad else f"to fix: {bad}, marked !!\n")
    return SOME_FAILED if bad else DONE


def _guarded(title: str, check: Iterator[Finding]) -> Iterator[Finding]:
    """The findings of a check, each when it is known; an error is a finding too."""
    try:
        yield from check
    except OcrError as error:
        yield Finding(title, "not well", str(error), bad=True)
    except Exception as error:  # whatever is wrong is a finding
        fix = ascend.advice(error) or f"{type(error).__name__}: {error}"
        yield Finding(title, "fails", fix, bad=True)


def _python() -> Iterator[Finding]:
    version = platform.python_version()
    old = sys.version_info < OLDEST_PYTHON
    fix = "Python 3.11 or later is needed; make PYTHON=python3.12 demo" if old else ""
    yield Finding("python", f"{version} on {platform.platform()}", fix, bad=old)
    yield Finding("deepseek-ocr", __version__)


def _packages() -> Iterator[Finding]:
    """The packages that reading needs: against the pins of the file that this machine installs
    from in a checkout, else against the requirements of the installed distribution."""
    on_ascend = importlib.util.find_spec("torch_npu") is not None
    name = "requirements/npu.txt" if on_ascend else "requirements/checkout.txt"
    if (ROOT / name).is_file():
        wanted, source, all_of_it = pins(ROOT / name), name, f"-r {name}"
    else:
        wanted, source, all_of_it = requirements(), DISTRIBUTION, ""
    missing, other = [], {}
    for package, versions in wanted.items():
        try:
            have = importlib.metadata.version(package).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
            continue
        if not SpecifierSet(versions).contains(have, prereleases=True):
            other[package] = f"{package} {have} ({versions})"

    def install(packages: Iterable[str]) -> str:
        named = shlex.join(f"{package}{wanted[package]}" for package in packages)
        return f"python -m pip install {all_of_it or named}"

    if missing:
        yield Finding("packages", f"missing: {', '.join(missing)}", install(missing), bad=True)
    if other:
        found = ", ".join(other.values())
        yield Finding("packages", f"not as in {source}: {found}", install(other))
    if not missing and not other:
        yield Finding("packages", f"as in {source}")


def pins(path: Path) -> dict[str, str]:
    """Name and `==` version of every package pinned in the first section of a requirements file,
    up to the blank line that ends it; what tests and training need comes behind."""
    section = path.read_text(encoding="utf-8").strip().split("\n\n")[0]
    return dict(re.findall(r"^([\w.-]+)(==[\w.]+)", section, re.MULTILINE))


def requirements() -> dict[str, str]:
    """Name and versions of every package that the installed distribution needs without extras."""
    return {
        one.name: str(one.specifier)
        for one in map(Requirement, importlib.metadata.requires(DISTRIBUTION) or [])
        if one.marker is None or one.marker.evaluate({"extra": ""})
    }


def _torch() -> Iterator[Finding]:
    import torch
    import transformers  # imports torch-npu if that is installed

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    yield Finding("torch", f"{torch.__version__}, {built}; transformers {transformers.__version__}")


def _devices(settings: Settings) -> Iterator[Finding]:
    from deepseek_ocr.devices import cpu, nvidia, selection

    for kind, why in selection.absent().items():
        if kind == "npu" and importlib.util.find_spec("torch_npu") is not None:
            yield Finding(kind, "installed and not usable", why)
        if kind == "cuda" and (driver := nvidia.driver_version()) is not None:
            yield Finding(kind, f"the NVIDIA driver {driver} is here, and torch uses no card", why)
    device = selection.choose_device(settings.device)
    dtype = selection.choose_dtype(settings.dtype, device)
    about = selection.describe(device)
    name = str(dtype).removeprefix("torch.")
    slow = name not in about.types or (device.type == "cpu" and name == "float16")
    fix = f"{device} computes {name} slowly or not at all; use --dtype auto" if slow else ""
    yield Finding("device", f"{device} in {name}: {about.name}", fix)
    yield Finding("threads", f"{settings.threads or cpu.threads()} for the CPU part")


def _checkpoint(settings: Settings) -> Iterator[Finding]:
    yield Finding("checkpoint", f"{settings.model} in {settings.checkpoint_folder()}")


def _memory(settings: Settings, size: str) -> Iterator[Finding]:
    from deepseek_ocr.cli.device_report import memory_advice
    from deepseek_ocr.devices import memory, selection
    from deepseek_ocr.model.footprint import in_gb

    device = selection.choose_device(settings.device)
    free = memory.free_bytes(device)
    if free is None:
        yield Finding("memory", "how much is free is not known")
        return
    try:
        folder = settings.checkpoint_folder()
    except CheckpointError:
        return  # the checkpoint is a finding of its own
    advice = memory_advice(settings, presets.crop_for(size), folder, free)
    yield Finding("memory", f"{in_gb(free)} free on {device}", advice or "")


def _reading(settings: Settings) -> Iterator[Finding]:
    """A tiny read with the bundled model, on the chosen device."""
    from deepseek_ocr.engine.ocr_engine import OcrEngine

    folder = replace(settings, model="pocket").checkpoint_folder()
    engine = OcrEngine.from_options(folder, replace(settings.load_options(), slots=1))
    page, prompt, crop = "fruit.png", presets.prompt_for("ocr"), presets.crop_for("tiny")
    try:
        reading = engine.read(examples_folder() / page, prompt, crop)
    finally:
        engine.close()
    seconds = sum(vars(reading.timings).values())
    yield Finding("fast paths", str(engine.rehearsal))
    text = " ".join(reading.text.split())
    if text and reading.finish_reason == "stop":
        yield Finding("reading", f"{text!r} in {seconds:.2f} s on {engine.device}")
    else:
        yield Finding(
            "reading", f"{text!r}, ended by {reading.finish_reason}",
            "The bundled model should read two short lines; try --kernels plain and --dtype "
            "float32, and report which of them helps.", bad=True,
        )  # fmt: skip
