"""Fine-tune a checkpoint on annotated pages.

    python -m training.train --data_root DIR --train_file FILE --model_path NAME --output_dir DIR

`python -m training.train --help` and `training/README.md` say the rest.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import tasks
import weights
from deepseek_ocr.errors import InputError, OcrError
from training.options import TrainOptions, parse
from training.samples import Example, Rejection, examples_of, load_samples

DONE, SOME_REJECTED, COULD_NOT_START, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what `arguments` ask for; the exit status is in the help text."""
    options = parse(arguments)
    try:
        rejected = run(options)
    except OcrError as error:
        print(f"train: {error}", file=sys.stderr)
        return COULD_NOT_START
    except KeyboardInterrupt:
        print(
            f"train: interrupted; the same command with --resume goes on after the last finished "
            f"epoch in {options.output_dir}.",
            file=sys.stderr,
        )
        return INTERRUPTED
    return SOME_REJECTED if rejected else DONE


def run(options: TrainOptions) -> int:
    """Train, and give the number of samples that could not be used.

    Raises the errors of `errors.py`; what was finished before one stays in the output folder.
    """
    folder = weights.ensure(options.settings.model, Path(options.settings.checkpoints), fetch=False)
    examples, rejections = usable_examples(options, options.train_file)
    validation, unread = (
        usable_examples(options, options.val_file) if options.val_file else ([], [])
    )
    from training.run import Run  # imports torch: seconds

    training = Run.prepare(options, folder)
    examples, more = training.checked(examples)
    rejections += more
    training.tell_rejections(rejections, len(examples))
    if unread:
        training.log.line(f"validation: {len(unread)} entries cannot be used")
    training.train(examples, validation[: options.val_pages])
    return len(rejections)


def usable_examples(options: TrainOptions, file: Path) -> tuple[list[Example], list[Rejection]]:
    """What the samples listed in `file` teach for the tasks asked, and those that teach nothing.

    Raises `InputError` where nothing at all can be used.
    """
    samples, rejections = load_samples(options.data_root, file, _tell)
    examples: list[Example] = []
    for sample in samples:
        found = examples_of(sample, options.tasks)
        examples += found
        if not found:
            names = ", ".join(tasks.TASKS[task].short for task in options.tasks)
            rejections.append(Rejection(sample.name, f"its annotation has nothing for {names}."))
    if not examples:
        first = f" First: {rejections[0].name}: {rejections[0].reason}" if rejections else ""
        raise InputError(f"{file} holds nothing to train on ({len(rejections)} rejected).{first}")
    return examples, rejections


def _tell(text: str) -> None:
    print(f"train: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
