"""Fine-tune a checkpoint on annotated pages: what the files teach, then the run itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr import presets
from deepseek_ocr.errors import InputError
from deepseek_ocr.training.data.samples import (
    Example,
    Rejection,
    examples_of,
    load_samples,
    write_rejections,
)
from deepseek_ocr.training.finetune.train_options import TrainOptions, check_output
from deepseek_ocr.training.messages import warn


@dataclass(frozen=True)
class UsableExamples:
    """What the entries of a file teach, those that teach nothing, and how many there are."""

    examples: list[Example]
    rejections: list[Rejection]
    entries: int


def fine_tune(options: TrainOptions) -> int:
    """Train, and return how many entries could not be used; 0 if there are several processes.
    Raises the errors of `errors.py`; what was finished before one stays in the output folder."""
    folder = options.settings.checkpoint_folder()
    check_output(options)
    train = usable_examples(options, options.train_file)
    validation = UsableExamples([], [], 0)
    if options.val_file:
        found = usable_examples(options, options.val_file)
        validation = comparable_examples(found, options.val_pages)
    _check_usable(options, train, validation)
    from deepseek_ocr.training.finetune.training_run import TrainingRun  # imports torch: seconds

    run = TrainingRun(options, folder)
    examples, more = run.checked(train.examples)
    rejections = [*train.rejections, *more]
    run.report_rejections(rejections, len(examples), train.entries, validation.rejections)
    run.train(examples, validation.examples)
    # A launcher takes any other status of one of its processes for a failure of them all.
    alone = run.accelerator.num_processes == 1
    return len(rejections) + len(validation.rejections) if alone else 0


def usable_examples(options: TrainOptions, file: Path) -> UsableExamples:
    """What the samples listed in `file` teach for the tasks of `options`. Raises `InputError` if
    `file` is not such a list."""
    samples, rejections = load_samples(options.data_root, file, warn)
    entries = len(samples) + len(rejections)
    names = ", ".join(presets.task_name(task) for task in options.tasks)
    examples: list[Example] = []
    for sample in samples:
        found = examples_of(sample, options.tasks)
        examples += found
        if not found:
            rejections.append(Rejection(sample.name, f"its annotation has nothing for {names}."))
    return UsableExamples(examples, rejections, entries)


def comparable_examples(validation: UsableExamples, pages: int) -> UsableExamples:
    """The examples of the first `pages` pages that have a text to compare. Those of locating, whose
    answers are numbers, are used only if there are no others. Answers without text are rejected."""
    from deepseek_ocr.training.evaluation.scoring import comparable  # imports scipy: a second

    texts: list[Example] = []
    located: list[Example] = []
    rejections = list(validation.rejections)
    for one in validation.examples:
        short = presets.task_name(one.task)
        if not comparable(one.answer, short).strip():
            rejections.append(Rejection(one.page, f"its answer for {short} holds no text."))
        else:
            (located if short == "locate" else texts).append(one)
    chosen = texts or located
    first = set(list(dict.fromkeys(example.image for example in chosen))[:pages])
    chosen = [example for example in chosen if example.image in first]
    return UsableExamples(chosen, rejections, validation.entries)


def _check_usable(options: TrainOptions, train: UsableExamples, validation: UsableExamples) -> None:
    """Raises `InputError` if one of the files holds nothing that can be used; what is wrong with
    each entry is then in `rejected.json`."""
    for file, found in ((options.train_file, train), (options.val_file, validation)):
        if file is None or found.examples:
            continue
        given = {"train": train.rejections, "validation": validation.rejections}
        write_rejections(options.output_dir, given)
        some = found.rejections
        first = f" First: {some[0].name}: {some[0].reason}" if some else ""
        raise InputError(
            f"{file} holds nothing for --task that can be used ({len(some)} rejected).{first}"
        )
