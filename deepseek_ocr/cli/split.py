"""`deepseek-ocr split`: divide a folder of annotated pictures into training and test."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepseek_ocr.cli.number_types import share
from deepseek_ocr.cli.terminal import (
    COULD_NOT_START,
    DONE,
    INTERRUPTED,
    SOME_FAILED,
    complain,
    write_line,
)

DESCRIPTION = "Split annotated pictures into train.json and test.json."

EPILOG = """\
examples:
  deepseek-ocr split --data_root scans --output_dir scans
  deepseek-ocr split --data_root scans --output_dir data --test_fraction 0.2 --seed 7

Beside NAME.png (or .jpg, .webp, .tif, …) lies NAME.json, an object such as {"text": "Invoice 498"};
deepseek_ocr/training/README.md describes all of it. The same folder and seed give the same split.

exit status: 0 all pairs are used, 1 some were rejected (see rejected.json), 2 nothing was written,
130 interrupted
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the sub-command."""
    add = parser.add_argument
    add("--data_root", type=Path, required=True, metavar="DIR",
        help="folder with pictures and annotations, searched with all folders in it")  # fmt: skip
    add("--output_dir", type=Path, required=True, metavar="DIR",
        help="where train.json, test.json and rejected.json go; may be the data folder",
    )  # fmt: skip
    add("--test_fraction", type=share, default=0.1, metavar="X",
        help="share of the samples for the test set, 0 to 1 (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, help="another seed, another split (default: %(default)s)")


def run(flags: argparse.Namespace) -> int:
    """Split what `flags` name; the exit status is in the help. Raises `OcrError`."""
    from deepseek_ocr.training.data.data_split import split_folder

    try:
        found, train, test = split_folder(
            flags.data_root, flags.output_dir, flags.test_fraction, flags.seed
        )
    except OSError as error:  # a folder that is not the user's
        complain(f"{error.filename} cannot be read: {error.strerror}.")
        return COULD_NOT_START
    except KeyboardInterrupt:
        complain("interrupted; nothing was written.")
        return INTERRUPTED
    write_line(
        f"{len(train)} samples in train.json, {len(test)} in test.json, "
        f"{len(found.rejections)} rejected (rejected.json), {found.twins} of a picture that is "
        "there already (kept on one side)"
    )
    return SOME_FAILED if found.rejections else DONE
