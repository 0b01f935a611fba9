"""Fine-tune a checkpoint on annotated pages.

    deepseek-ocr train --data_root DIR --train_file FILE --model_path NAME --output_dir DIR

`deepseek-ocr train --help` and `training/README.md` say the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek_ocr import presets
from deepseek_ocr.console import one_line
from deepseek_ocr.errors import InputError, OcrError
from deepseek_ocr.training.data.samples import (
    Example,
    Rejection,
    examples_of,
    load_samples,
    write_rejections,
)
from deepseek_ocr.training.finetune.train_options import TrainOptions, check_output, parse
from deepseek_ocr.weights import registry

DONE, SOME_REJECTED, COULD_NOT_START, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what `arguments` ask for; the exit status is in the help text."""
    options = parse(arguments)
    try:
        rejected = run(options)
    except OcrError as error:
        _tell(str(error))
        return COULD_NOT_START
    except KeyboardInterrupt:
        _tell(
            "interrupted; the same command with --resume goes on after the last finished epoch in "
            f"{options.output_dir}."
        )
        return INTERRUPTED
    except ImportError as error:
        _tell(f"{error}; training needs more packages than reading: see training/README.md.")
        return COULD_NOT_START
    except (RuntimeError, MemoryError) as error:
        from deepseek_ocr.devices.memory import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _tell(
            "out of memory; take fewer pages at once (--batch_size 1 with more --grad_accum), a "
            "smaller --resolution or --max_tokens, or --lora instead of --full."
        )
        return COULD_NOT_START
    return SOME_REJECTED if rejected else DONE


def run(options: TrainOptions) -> int:
    """Train, and give the number of entries that could not be used; 0 in several processes.

    Raises the errors of `errors.py`; what was finished before one stays in the output folder.
    """
    folder = registry.ensure(
        options.settings.model, Path(options.settings.checkpoints), fetch=False
    )
    check_output(options)
    train = usable_examples(options, options.train_file)
    validation = Usable([], [], 0)
    if options.val_file:
        validation = compared(usable_examples(options, options.val_file), options.val_pages)
    _check_usable(options, train, validation)
    from deepseek_ocr.training.finetune.training_run import Run  # imports torch: seconds

    training = Run.prepare(options, folder)
    examples, more = training.checked(train.examples)
    rejections = [*train.rejections, *more]
    training.tell_rejections(rejections, len(examples), train.entries, validation.rejections)
    training.train(examples, validation.examples)
    # A launcher takes any other status of one of its processes for a failure of them all.
    alone = training.accelerator.num_processes == 1
    return len(rejections) + len(validation.rejections) if alone else 0


@dataclass(frozen=True)
class Usable:
    """What the entries of a file teach, those that teach nothing, and how many there are."""

    examples: list[Example]
    rejections: list[Rejection]
    entries: int


def usable_examples(options: TrainOptions, file: Path) -> Usable:
    """What the samples listed in `file` teach for the tasks asked.

    Raises `InputError` where there is no such list.
    """
    samples, rejections = load_samples(options.data_root, file, _tell)
    entries = len(samples) + len(rejections)
    examples: list[Example] = []
    for sample in samples:
        found = examples_of(sample, options.tasks)
        examples += found
        if not found:
            names = ", ".join(presets.TASKS[task].short for task in options.tasks)
            rejections.append(Rejection(sample.name, f"its annotation has nothing for {names}."))
    return Usable(examples, rejections, entries)


def compared(validation: Usable, pages: int) -> Usable:
    """The examples of the first `pages` pages that have a text to compare; those of locating,
    whose answers are numbers, where there are no others. Answers without any text are rejected."""
    from deepseek_ocr.training.evaluation.scoring import comparable  # imports scipy: a second

    texts: list[Example] = []
    located: list[Example] = []
    rejections = list(validation.rejections)
    for one in validation.examples:
        short = presets.TASKS[one.task].short
        if not comparable(one.answer, short).strip():
            rejections.append(Rejection(one.page, f"its answer for {short} holds no text."))
        else:
            (located if short == "locate" else texts).append(one)
    chosen = texts or located
    first = set(list(dict.fromkeys(example.image for example in chosen))[:pages])
    chosen = [example for example in chosen if example.image in first]
    return Usable(chosen, rejections, validation.entries)


def _check_usable(options: TrainOptions, train: Usable, validation: Usable) -> None:
    """Raises `InputError` where one of the files holds nothing that can be used; what is wrong with
    each entry is then in `rejected.json`."""
    given = [("train", options.train_file, train)]
    if options.val_file:
        given.append(("validation", options.val_file, validation))
    for _, file, found in given:
        if found.examples:
            continue
        rejections = {name: one.rejections for name, _, one in given}
        write_rejections(options.output_dir, rejections)
        some = found.rejections
        first = f" First: {some[0].name}: {some[0].reason}" if some else ""
        raise InputError(
            f"{file} holds nothing for --task that can be used ({len(some)} rejected).{first}"
        )


def _tell(text: str) -> None:
    print(f"train: {one_line(text, most=1000)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
