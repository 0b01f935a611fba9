"""`ocr.py --doctor`: checks the whole installation and says what to fix. Imports torch late: that
it cannot be imported is one of the findings."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr import __version__, presets
from deepseek_ocr.cli.console import ALL_READ, SOME_FAILED, write
from deepseek_ocr.cli.read_arguments import Job
from deepseek_ocr.devices import ascend
from deepseek_ocr.errors import OcrError
from deepseek_ocr.weights import registry

ROOT = Path(__file__).resolve().parents[2]

OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, and what to do where it is not well
    (`fix`). With `bad` pages cannot be read; without, they can."""

    what: str
    how: str
    fix: str = ""
    bad: bool = False

    def __str__(self) -> str:
        mark = "!!" if self.bad else "? " if self.fix else "ok"
        return f"{mark}  {self.what}: {self.how}" + (f"\n      {self.fix}" if self.fix else "")


def examine(job: Job) -> int:
    """Print what is well and what is not; the exit status is 1 where something must be fixed."""
    found: list[Finding] = []
    for check in (_python, _packages, _torch, _devices, _checkpoint, _memory, _reading):
        try:
            new = list(check(job))
        except OcrError as error:
            new = [Finding(_title(check), "not well", str(error), bad=True)]
        except Exception as error:  # whatever is wrong is a finding
            fix = ascend.advice(error) or f"{type(error).__name__}: {error}"
            new = [Finding(_title(check), "fails", fix, bad=True)]
        for finding in new:
            write(f"{finding}\n")
        found += new
        if check is _torch and any(finding.bad for finding in new):
            break  # nothing further can be looked at
    bad = sum(finding.bad for finding in found)
    write("nothing to fix\n" if not bad else f"to fix: {bad}, marked !!\n")
    return SOME_FAILED if bad else ALL_READ


def _title(check: Callable[[Job], Iterator[Finding]]) -> str:
    return check.__name__.strip("_")


def _python(job: Job) -> Iterator[Finding]:
    version = platform.python_version()
    old = sys.version_info < OLDEST_PYTHON
    fix = "Python 3.11 or later is needed; make PYTHON=python3.12 demo" if old else ""
    yield Finding("python", f"{version} on {platform.platform()}", fix, bad=old)
    yield Finding("deepseek-ocr", __version__)


def _packages(job: Job) -> Iterator[Finding]:
    """The packages that reading needs, against the pins of the file that this machine installs
    from."""
    on_ascend = importlib.util.find_spec("torch_npu") is not None
    name = "requirements/npu.txt" if on_ascend else "requirements/checkout.txt"
    missing, other = [], []
    for package, wanted in pins(ROOT / name).items():
        try:
            have = importlib.metadata.version(package).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
            continue
        if have != wanted:
            other.append(f"{package} {have} (pinned {wanted})")
    install = f"python -m pip install -r {name}"
    if missing:
        yield Finding("packages", f"missing: {', '.join(missing)}", install, bad=True)
    if other:
        yield Finding("packages", f"not as pinned: {', '.join(other)}", install)
    if not missing and not other:
        yield Finding("packages", f"as pinned in {name}")


def pins(path: Path) -> dict[str, str]:
    """Name and version of every package pinned in the first section of a requirements file, up to
    the blank line that ends it; what tests and training need comes behind."""
    section = path.read_text(encoding="utf-8").strip().split("\n\n")[0]
    return dict(re.findall(r"^([\w.-]+)==([\w.]+)", section, re.MULTILINE))


def _torch(job: Job) -> Iterator[Finding]:
    import torch
    import transformers  # imports torch-npu where that is installed

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    yield Finding("torch", f"{torch.__version__}, {built}; transformers {transformers.__version__}")


def _devices(job: Job) -> Iterator[Finding]:
    from deepseek_ocr.devices import cpu, nvidia, selection

    for kind, why in selection.absent().items():
        if kind == "npu" and importlib.util.find_spec("torch_npu") is not None:
            yield Finding(kind, "installed and not usable", why)
        if kind == "cuda" and (driver := nvidia.driver_version()) is not None:
            yield Finding(kind, f"the NVIDIA driver {driver} is here, and torch uses no card", why)
    device = selection.choose_device(job.settings.device)
    dtype = selection.choose_dtype(job.settings.dtype, device)
    about = selection.describe(device)
    name = str(dtype).removeprefix("torch.")
    slow = name not in about.types or (device.type == "cpu" and name == "float16")
    fix = f"{device} computes {name} slowly or not at all; use --dtype auto" if slow else ""
    yield Finding("device", f"{device} in {name}: {about.name}", fix)
    yield Finding("threads", f"{job.settings.threads or cpu.threads()} for the CPU part")


def _checkpoint(job: Job) -> Iterator[Finding]:
    folder = _folder(job)
    yield Finding("checkpoint", f"{job.settings.model} in {folder}")


def _folder(job: Job) -> Path:
    return registry.ensure(job.settings.model, Path(job.settings.checkpoints), fetch=False)


def _memory(job: Job) -> Iterator[Finding]:
    from deepseek_ocr.cli.list_devices import PRESETS, load_of
    from deepseek_ocr.devices import memory, selection
    from deepseek_ocr.model import footprint
    from deepseek_ocr.model.checkpoint import read_config

    device = selection.choose_device(job.settings.device)
    free = memory.free_bytes(device)
    if free is None:
        yield Finding("memory", "nobody says how much is free")
        return
    try:
        sizes = footprint.Footprint(read_config(_folder(job)))
    except OcrError:
        return  # the checkpoint is a finding of its own
    told = footprint.too_little(sizes, job.crop, load_of(job, device), PRESETS, free)
    yield Finding("memory", f"{footprint.in_gb(free)} free on {device}", told or "")


def _reading(job: Job) -> Iterator[Finding]:
    """A tiny read with the bundled model, on the chosen device."""
    from deepseek_ocr.engine.ocr_engine import OcrEngine

    settings = job.settings
    folder = registry.ensure("pocket", Path(settings.checkpoints), fetch=False)
    engine = OcrEngine.load(
        folder, settings.device, settings.dtype, kernels=settings.kernels, slots=1,
        vision_device=settings.vision_device, strict=settings.strict,
    )  # fmt: skip
    try:
        reading = engine.read(
            ROOT / "examples" / "fruit.png", presets.prompt_for("ocr"), presets.crop_for("tiny")
        )
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
