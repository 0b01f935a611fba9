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
from training.samples import Example, Rejection, examples_of, load_samples, write_rejections

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
    """Train, and give the number of samples that could not be used; 0 in several processes.

    Raises the errors of `errors.py`; what was finished before one stays in the output folder.
    """
    folder = weights.ensure(options.settings.model, Path(options.settings.checkpoints), fetch=False)
    examples, rejections = usable_examples(options, "train", options.train_file)
    validation, unread = (
        usable_examples(options, "validation", options.val_file) if options.val_file else ([], [])
    )
    from training.run import Run  # imports torch: seconds

    training = Run.prepare(options, folder)
    examples, more = training.checked(examples)
    rejections += more
    training.tell_rejections(rejections, len(examples), unread)
    training.train(examples, compared(validation, options.val_pages))
    # A launcher takes any other status of one of its processes for a failure of them all.
    return len(rejections) + len(unread) if training.accelerator.num_processes == 1 else 0


def compared(validation: list[Example], pages: int) -> list[Example]:
    """The examples of the first `pages` pages that have a text to compare; those of locating,
    whose answers are numbers, where there are no others."""
    texts = [one for one in validation if tasks.TASKS[one.task].short != "locate"] or validation
    first = set(list(dict.fromkeys(example.image for example in texts))[:pages])
    return [example for example in texts if example.image in first]


def usable_examples(
    options: TrainOptions, name: str, file: Path
) -> tuple[list[Example], list[Rejection]]:
    """What the samples listed in `file`, called `name` in `rejected.json`, teach for the tasks
    asked, and those that teach nothing.

    Raises `InputError` where nothing at all can be used, and `OutputError`.
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
        write_rejections(options.output_dir, {name: rejections})
        first = f" First: {rejections[0].name}: {rejections[0].reason}" if rejections else ""
        raise InputError(f"{file} holds nothing to train on ({len(rejections)} rejected).{first}")
    return examples, rejections


def _tell(text: str) -> None:
    print(f"train: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
