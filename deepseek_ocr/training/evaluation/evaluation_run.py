"""One evaluation: pages are read, compared with what is known of them, and reported."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from deepseek_ocr import __version__, configuration, presets
from deepseek_ocr.errors import CheckpointError, InputError, OcrError
from deepseek_ocr.files import read_text, write_files
from deepseek_ocr.progress import track
from deepseek_ocr.settings import DecodeSettings
from deepseek_ocr.training.data.samples import Example, Rejection, Sample, examples_of, load_samples
from deepseek_ocr.training.evaluation import fact_report
from deepseek_ocr.training.evaluation.evaluation_options import EvaluationOptions
from deepseek_ocr.training.evaluation.evaluation_report import EvaluationRun
from deepseek_ocr.training.evaluation.fact_report import FactRun
from deepseek_ocr.training.evaluation.facts import load_facts
from deepseek_ocr.training.evaluation.journal import Journal, Stamp, key_of, stamp_of
from deepseek_ocr.training.evaluation.predictions import (
    Names,
    extra_texts,
    read_examples,
    read_prediction,
    sole_names,
)
from deepseek_ocr.training.evaluation.scoring import Prediction, Score, score
from deepseek_ocr.training.experiment_log import NAME as LOG
from deepseek_ocr.training.experiment_log import ExperimentLog
from deepseek_ocr.training.messages import warn

if TYPE_CHECKING:
    from deepseek_ocr.engine.ocr_engine import OcrEngine

REPORT = "report.md"

FIRST_NAMED = 5
"""Texts that belong to no page that are named on the screen; all are in metrics.json."""


def load_engine(folder: Path, adapter: Path | None, settings: configuration.Settings) -> OcrEngine:
    """The engine of a checkpoint, an adapter merged into it. Raises `CheckpointError` and
    `DeviceError`."""
    from deepseek_ocr.engine.ocr_engine import OcrEngine  # imports torch: seconds

    try:
        return OcrEngine.from_options(folder, replace(settings.load_options(), adapter=adapter))
    except OcrError:
        raise
    except Exception as error:  # a device that is out of memory raises what it likes
        raise CheckpointError(f"The model in {folder} could not be loaded: {error}") from error


def evaluate(options: EvaluationOptions) -> int:
    """Read what `options` name, compare, and write the report. Returns 0, or 1 if a page was not
    read or an entry cannot be used; both are named on standard error. Raises `OcrError`, and
    `OSError` for a file that changed meanwhile."""
    return _evaluate_facts(options) if options.facts else _evaluate_samples(options)


def _evaluate_samples(options: EvaluationOptions) -> int:
    assert options.test_file is not None
    samples, rejections = load_samples(options.data_root, options.test_file, warn)
    names = _names(options, samples, rejections)
    samples, twins = _unlike(samples)
    rejections += twins
    examples: list[Example] = []
    unsupported: list[str] = []
    for sample in samples[: options.limit]:
        for task in options.tasks:
            found = examples_of(sample, [task])
            examples += found
            unsupported += [] if found else [f"{sample.name} ({presets.task_name(task)})"]
    if not examples:
        asked = ", ".join(presets.task_name(task) for task in options.tasks)
        raise InputError(
            f"{options.test_file} holds nothing that can be used for --task {asked}: "
            f"{len(rejections)} entries cannot be used{_first(rejections)}, "
            f"{len(unsupported)} have no answer."
        )
    scores = _read_all(options, examples, names, score)
    extra, settings = _extra(options, names), _settings(options)
    run = EvaluationRun(settings, scores, rejections, unsupported, extra)
    return _finish(options, run, scores, "cannot be used")


def _evaluate_facts(options: EvaluationOptions) -> int:
    assert options.facts is not None
    known, rejections = load_facts(options.facts)
    facts = known[: options.limit]
    if not facts:
        raise InputError(
            f"{options.facts} holds no fact that can be run, {len(rejections)} lines cannot be used"
            f"{_first(rejections)}."
        )
    names = fact_report.names_of(fact.page for fact in known)
    pages = {fact_report.name_of(fact.page): fact.page for fact in facts}
    pictures = {n: fact_report.picture(options.data_root, p, names[n]) for n, p in pages.items()}
    task, prompt = options.tasks[0], presets.prompt_for(options.tasks[0])
    examples = [Example(path, task, prompt, "", name) for name, path in pictures.items()]
    scores = _read_all(options, examples, names, lambda one, read: Score(one, read, {}))
    readings = {score.example.name: score.prediction for score in scores}
    verdicts = fact_report.verdicts(facts, readings)
    run = FactRun(_settings(options), verdicts, rejections, _extra(options, names))
    return _finish(options, run, scores, "not run")


def _names(
    options: EvaluationOptions, samples: Sequence[Sample], rejections: Sequence[Rejection]
) -> Names:
    """What a text made elsewhere may be called, for every page that the test file names. Also for
    those that are not compared now: their texts are no other page's."""
    if options.predictions is None:
        return {}
    known: list[str] = []
    for sample in samples:
        known += [example.name for example in examples_of(sample, options.tasks)] or [sample.name]
    for rejection in rejections:
        path = PurePosixPath(rejection.name)
        known.append(path.with_suffix("").as_posix() if path.name else rejection.name)
    return sole_names({name: (name,) for name in known})


def _read_all(
    options: EvaluationOptions,
    examples: Sequence[Example],
    names: Names,
    judge: Callable[[Example, Prediction], Score],
) -> list[Score]:
    """Read what an earlier run has not, a line in the journal each; all scores, in order."""
    settings, texts = options.settings, options.predictions
    if texts is not None and not os.path.isdir(texts):
        raise InputError(f"{texts} is not a folder; give the one that holds the predictions.")
    folder = settings.checkpoint_folder() if texts is None else None
    journal = Journal(options.output_dir, _identity(options, folder), resume=texts is None)
    before = journal.take_up(examples)
    waiting = [example for example in examples if key_of(example) not in before]
    used = "no model"
    read: Iterator[Prediction] = iter(())
    if texts is not None:
        read = (read_prediction(texts, names[example.name]) for example in waiting)
    elif folder is not None and waiting:
        engine = load_engine(folder, options.adapter, settings)
        used = f"{engine.device}, {engine.dtype}"
        decode = DecodeSettings(max_new_tokens=options.max_tokens)
        read = read_examples(engine, waiting, presets.crop_for(options.size), decode)
    journal.begin()
    log = ExperimentLog(options.output_dir)
    log.start("training.evaluate", _settings(options))
    log.line(f"used {used}")
    log.line(f"examples {len(examples)}, read before {len(before)}")
    known = {key_of(one): one for one in examples}
    scores = {key: judge(known[key], prediction) for key, prediction in before.items()}
    for example, prediction in zip(waiting, track(read, len(waiting), "reading"), strict=True):
        found = scores[key_of(example)] = judge(example, prediction)
        journal.add(found, options.data_root)
        if prediction.error is not None:
            warn(f"not read: {example.name}: {prediction.error}")
    ordered = [scores[key_of(example)] for example in examples]
    journal.rewrite(ordered, options.data_root)
    return ordered


def _extra(options: EvaluationOptions, names: Names) -> list[str]:
    """The texts of --predictions that were not used, told; what this program wrote is none."""
    if options.predictions is None:
        return []
    folder = options.predictions
    own = {os.path.realpath(options.output_dir / name) for name in (REPORT, LOG)}
    texts = extra_texts(folder, names)
    found = [name for name in texts if os.path.realpath(folder / name) not in own]
    if found:
        more = ", …" if len(found) > FIRST_NAMED else ""
        warn(
            f"{len(found)} texts in {folder} were not used, as no page has their name or another "
            f"text was taken first: {', '.join(found[:FIRST_NAMED])}{more}"
        )
    return found


def _finish(
    options: EvaluationOptions, run: EvaluationRun | FactRun, scores: list[Score], unusable: str
) -> int:
    """Write the report and tell what is `unusable`; 1 if something is or was not read, else 0."""
    write_files({options.output_dir / name: data for name, data in run.contents().items()})
    log = ExperimentLog(options.output_dir)
    counts = ", ".join(f"{name} {count}" for name, count in run.counts().items())
    for line in (*run.lines(), counts):
        log.line(line)
        print(line)
    print(f"{options.output_dir / REPORT} says more")
    for rejection in run.rejections:
        warn(f"{unusable}: {rejection.name}: {rejection.reason}")
    return int(bool(run.rejections) or any(one.prediction.error is not None for one in scores))


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


def _settings(options: EvaluationOptions) -> dict[str, Any]:
    """What the report and the log say of the run."""
    return {
        "read by": str(options.predictions or options.settings.model),
        "adapter": str(options.adapter or "none"),
        "held against": str(options.test_file or options.facts),
        "data_root": str(options.data_root),
        "tasks": ", ".join(presets.task_name(task) for task in options.tasks),
        "size": options.size if options.predictions is None else "unknown",
        "max_tokens": options.max_tokens,
        "device": options.settings.device,
        "dtype": options.settings.dtype,
        "quant": options.settings.quant,
        "limit": options.limit or "none",
    }


def _identity(options: EvaluationOptions, folder: Path | None) -> dict[str, Any]:
    """What must be equal for one run to go on with another's pages. Of the model and the adapter
    also sizes and times of their files, which change in training."""
    known = _settings(options)
    del known["tasks"], known["limit"]
    source = options.test_file or options.facts
    assert source is not None
    return known | {
        "version": __version__,
        "source": hashlib.sha256(read_text(source).encode("utf-8")).hexdigest(),
        "files": [_files_in(one) for one in (folder, options.adapter) if one is not None],
    }


def _files_in(folder: Path) -> dict[str, Stamp | None]:
    """Sizes and times of the files that hold a model; None if a link leads nowhere."""
    files = sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")])
    return {path.name: stamp_of(path) for path in files}
