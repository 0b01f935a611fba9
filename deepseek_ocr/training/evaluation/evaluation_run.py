"""Measure how well a model reads pages whose text is known.

    deepseek-ocr evaluate --data_root DIR --test_file FILE --model_path NAME --output_dir DIR

`deepseek-ocr evaluate --help` and `training/README.md` say the rest.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from deepseek_ocr import __version__, configuration, presets
from deepseek_ocr.console import one_line
from deepseek_ocr.errors import CheckpointError, InputError, OcrError
from deepseek_ocr.progress import track
from deepseek_ocr.settings import DecodeSettings
from deepseek_ocr.training.data.samples import Example, Rejection, Sample, examples_of, load_samples
from deepseek_ocr.training.evaluation import evaluation_report, fact_report
from deepseek_ocr.training.evaluation.evaluation_options import Job, parse
from deepseek_ocr.training.evaluation.facts import load_facts
from deepseek_ocr.training.evaluation.journal import Journal, Key, Stamp, key_of, stamp_of
from deepseek_ocr.training.evaluation.predictions import (
    Names,
    extra_texts,
    folder_reader,
    model_reader,
    sole_names,
)
from deepseek_ocr.training.evaluation.scoring import Prediction, Score, score, summarise
from deepseek_ocr.training.experiment_log import NAME as LOG
from deepseek_ocr.training.experiment_log import ExperimentLog, versions
from deepseek_ocr.files import read_text, write_files
from deepseek_ocr.weights import registry

if TYPE_CHECKING:
    from deepseek_ocr.engine.ocr_engine import OcrEngine

ALL_READ, SOME_FAILED, COULD_NOT_START, INTERRUPTED = 0, 1, 2, 130

REPORT = "report.md"

FIRST_NAMED = 5
"""Texts that belong to no page that are named on the screen; all are in metrics.json."""

Load = Callable[[Path, Path | None, configuration.Settings], "OcrEngine"]
"""Makes an engine of a checkpoint folder, an adapter folder or None, and settings."""


def load_engine(folder: Path, adapter: Path | None, settings: configuration.Settings) -> OcrEngine:
    """The engine of a checkpoint, an adapter merged into it.

    Raises `CheckpointError` and `DeviceError`.
    """
    from deepseek_ocr.engine.ocr_engine import OcrEngine  # imports torch: seconds

    try:
        return OcrEngine.from_options(folder, replace(settings.load_options(), adapter=adapter))
    except OcrError:
        raise
    except Exception as error:  # a device that is out of memory raises what it likes
        raise CheckpointError(f"The model in {folder} could not be loaded: {error}") from error


def main(arguments: Sequence[str] | None = None, load: Load = load_engine) -> int:
    """Evaluate what `arguments` name; the exit status is in the help text."""
    job = parse(arguments)
    try:
        return run_facts(job, load) if job.facts else run_samples(job, load)
    except OcrError as error:
        _complain(str(error))
        return COULD_NOT_START
    except OSError as error:  # of a file that nobody expected to fail
        what = error.filename or "a file"
        _complain(f"{what} cannot be used: {error.strerror or error}; check that path.")
        return COULD_NOT_START
    except KeyboardInterrupt:
        _complain(f"interrupted; the same command goes on where {job.output_dir} stopped.")
        return INTERRUPTED


def run_samples(job: Job, load: Load) -> int:
    """Read the samples of the test file, score them, write the report; the exit status.

    Raises `OcrError`.
    """
    assert job.test_file is not None
    samples, rejections = load_samples(job.data_root, job.test_file, _complain)
    names = _names(job, samples, rejections)
    samples, twins = _unlike(samples)
    rejections += twins
    examples: list[Example] = []
    unsupported: list[str] = []
    for sample in samples[: job.limit]:
        for task in job.tasks:
            found = examples_of(sample, [task])
            examples += found
            unsupported += [] if found else [f"{sample.name} ({presets.task_name(task)})"]
    if not examples:
        asked = ", ".join(presets.task_name(task) for task in job.tasks)
        raise InputError(
            f"{job.test_file} holds nothing that can be used for --task {asked}: "
            f"{len(rejections)} entries cannot be used{_first(rejections)}, "
            f"{len(unsupported)} have no answer."
        )
    scores = _read_all(job, examples, load, names, score)
    extra = _extra(job, names)
    run = evaluation_report.Run(_settings(job), scores, rejections, unsupported, versions(), extra)
    _write(
        job,
        evaluation_report.contents(run),
        evaluation_report.lines(summarise(scores)),
        evaluation_report.counts(run),
    )
    for rejection in rejections:
        _complain(f"cannot be used: {rejection.name}: {rejection.reason}")
    return SOME_FAILED if rejections or run.failures else ALL_READ


def run_facts(job: Job, load: Load) -> int:
    """Read the pages the facts are about, check the facts, write the report; the exit status.

    Raises `OcrError`.
    """
    assert job.facts is not None
    known, rejections = load_facts(job.facts)
    facts = known[: job.limit]
    if not facts:
        raise InputError(
            f"{job.facts} holds no fact that can be run, {len(rejections)} lines cannot be used"
            f"{_first(rejections)}."
        )
    names = fact_report.names_of(fact.page for fact in known)
    pages = {fact_report.name_of(fact.page): fact.page for fact in facts}
    examples = [
        Example(fact_report.picture(job.data_root, page, names[name]), job.tasks[0],
                presets.prompt_for(job.tasks[0]), "", name)
        for name, page in pages.items()
    ]  # fmt: skip
    scores = _read_all(job, examples, load, names, _unscored)
    readings = {score.example.name: score.prediction for score in scores}
    verdicts = fact_report.verdicts(facts, readings)
    run = fact_report.FactRun(_settings(job), verdicts, rejections, _extra(job, names))
    _write(job, fact_report.contents(run), fact_report.lines(run), fact_report.counts(run))
    failed = [score for score in scores if score.prediction.error is not None]
    for rejection in rejections:
        _complain(f"not run: {rejection.name}: {rejection.reason}")
    return SOME_FAILED if rejections or failed else ALL_READ


def _names(job: Job, samples: Sequence[Sample], rejections: Sequence[Rejection]) -> Names:
    """What a text made elsewhere may be called, for every page that the test file names.

    Also for those that are not compared now: their texts are no other page's.
    """
    if job.predictions is None:
        return {}
    known: list[str] = []
    for sample in samples:
        known += [example.name for example in examples_of(sample, job.tasks)] or [sample.name]
    for rejection in rejections:
        path = PurePosixPath(rejection.name)
        known.append(path.with_suffix("").as_posix() if path.name else rejection.name)
    return sole_names({name: (name,) for name in known})


def _read_all(
    job: Job,
    examples: Sequence[Example],
    load: Load,
    names: Names,
    judge: Callable[[Example, Prediction], Score],
) -> list[Score]:
    """Read what an earlier run has not, a line in the journal each; all scores, in order."""
    folder: Path | None = None
    read = folder_reader(job.predictions, names) if job.predictions else None
    if read is None:
        folder = registry.ensure(job.settings.model, Path(job.settings.checkpoints), fetch=False)
    journal = Journal(job.output_dir, _identity(job, folder), resume=read is None)
    before = journal.take_up(examples)
    waiting = [example for example in examples if key_of(example) not in before]
    used = "no model"
    if folder is not None and waiting:
        engine = load(folder, job.adapter, job.settings)
        used = f"{engine.device}, {engine.dtype}"
        decode = DecodeSettings(max_new_tokens=job.max_tokens)
        read = model_reader(engine, presets.crop_for(job.size), decode)
    journal.begin()
    log = ExperimentLog(job.output_dir)
    log.start("training.evaluate", _settings(job))
    log.line(f"used {used}")
    log.line(f"examples {len(examples)}, read before {len(before)}")
    scores: dict[Key, Score] = {}
    predictions = read(waiting) if read else iter(())
    tracked = track(predictions, len(waiting), "reading")
    for example, prediction in zip(waiting, tracked, strict=True):
        found = scores[key_of(example)] = judge(example, prediction)
        journal.add(found, job.data_root)
        if prediction.error is not None:
            _complain(f"not read: {example.name}: {prediction.error}")
    for example in examples:
        if (key := key_of(example)) in before:
            scores[key] = judge(example, before[key])
    ordered = [scores[key_of(example)] for example in examples]
    journal.rewrite(ordered, job.data_root)
    return ordered


def _extra(job: Job, names: Names) -> list[str]:
    """The texts of --predictions that were not used, told; what this program wrote is none."""
    if job.predictions is None:
        return []
    folder = job.predictions
    own = {os.path.realpath(job.output_dir / name) for name in (REPORT, LOG)}
    found = [
        name for name in extra_texts(folder, names) if os.path.realpath(folder / name) not in own
    ]
    if found:
        more = ", …" if len(found) > FIRST_NAMED else ""
        _complain(
            f"{len(found)} texts in {folder} were not used, as no page has their name or another "
            f"text was taken first: {', '.join(found[:FIRST_NAMED])}{more}"
        )
    return found


def _write(job: Job, files: dict[str, bytes], lines: list[str], counts: dict[str, int]) -> None:
    write_files({job.output_dir / name: data for name, data in files.items()})
    log = ExperimentLog(job.output_dir)
    for line in (*lines, ", ".join(f"{name} {count}" for name, count in counts.items())):
        log.line(line)
        print(line)
    print(f"{job.output_dir / REPORT} says more")


def _unscored(example: Example, prediction: Prediction) -> Score:
    return Score(example, prediction, {})


def _unlike(samples: Sequence[Sample]) -> tuple[list[Sample], list[Rejection]]:
    """The samples with a name of their own, and a rejection for each that repeats one."""
    known: dict[str, Sample] = {}
    rejections: list[Rejection] = []
    for sample in samples:
        if known.setdefault(sample.name, sample) is not sample:
            rejections.append(Rejection(sample.name, "another sample has the same name."))
    return list(known.values()), rejections


def _first(rejections: Sequence[Rejection]) -> str:
    return f" (the first, {rejections[0].name}: {rejections[0].reason})" if rejections else ""


def _settings(job: Job) -> dict[str, Any]:
    """What the report and the log say of the run."""
    return {
        "read by": str(job.predictions or job.settings.model),
        "adapter": str(job.adapter or "none"),
        "held against": str(job.test_file or job.facts),
        "data_root": str(job.data_root),
        "tasks": ", ".join(presets.task_name(task) for task in job.tasks),
        "size": job.size if job.predictions is None else "unknown",
        "max_tokens": job.max_tokens,
        "device": job.settings.device,
        "dtype": job.settings.dtype,
        "quant": job.settings.quant,
        "limit": job.limit or "none",
    }


def _identity(job: Job, folder: Path | None) -> dict[str, Any]:
    """What must be equal for one run to go on with another's pages.

    Of the model and the adapter also sizes and times of their files, which change in training.
    """
    known = {
        name: value for name, value in _settings(job).items() if name not in ("tasks", "limit")
    }
    source = job.test_file or job.facts
    assert source is not None
    return {
        **known,
        "version": __version__,
        "source": hashlib.sha256(read_text(source).encode("utf-8")).hexdigest(),
        "files": [_files_in(one) for one in (folder, job.adapter) if one is not None],
    }


def _files_in(folder: Path) -> dict[str, Stamp | None]:
    """Sizes and times of the files that hold a model; None where a link leads nowhere."""
    files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    return {path.name: stamp_of(path) for path in files}


def _complain(text: str) -> None:
    print(f"evaluate: {one_line(text, most=1000)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
