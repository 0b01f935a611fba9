"""Where predictions come from: the model, or a folder of texts made elsewhere."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import tasks
from deepseek_ocr.errors import InputError
from deepseek_ocr.settings import CropSettings, DecodeSettings
from training.files import read_text
from training.samples import Example
from training.scoring import Prediction, Read, comparable

if TYPE_CHECKING:
    from deepseek_ocr.engine import OcrEngine, Reading

SUFFIXES = (".md", ".mmd", ".txt")
"""Of texts made elsewhere, in the order in which they are looked for."""

LARGEST_TEXT = 2 * 2**20
"""Bytes of a text made elsewhere; a page of the model has at most a hundredth of that."""


def model_reader(engine: OcrEngine, crop: CropSettings, decode: DecodeSettings) -> Read:
    """Reads with `engine`; a page that fails becomes a prediction that says why."""
    from deepseek_ocr.engine import Failure, Page

    def read(examples: Iterable[Example]) -> Iterator[Prediction]:
        waiting: deque[Example] = deque()

        def pages() -> Iterator[Page]:
            for example in examples:
                waiting.append(example)
                yield Page(example.image, example.prompt, crop, decode)

        for outcome in engine.read_many(pages()):
            example = waiting.popleft()
            if isinstance(outcome, Failure):
                yield Prediction("", error=str(outcome))
            else:
                yield _prediction(engine, example, outcome)

    return read


def _prediction(engine: OcrEngine, example: Example, reading: Reading) -> Prediction:
    reference = comparable(example.answer, tasks.TASKS[example.task].short)
    return Prediction(
        reading.text,
        finish_reason=reading.finish_reason,
        text_tokens=len(engine.codec.encode_text(reference)),
        vision_tokens=reading.counts.valid_vision,
        seconds=sum(asdict(reading.timings).values()),
    )


def folder_reader(folder: Path) -> Read:
    """Takes predictions from `folder`: NAME.md, NAME.mmd or NAME.txt for each example.

    NAME is the example's path in the data folder without the suffix; where there is no such
    file, its last part alone, if it is of one page only. A text that is not there is a prediction
    that says so.

    Raises `InputError` where there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the one that holds the predictions.")

    def read(examples: Iterable[Example]) -> Iterator[Prediction]:
        listed = list(examples)
        names = sole_names({example.name: (example.name,) for example in listed})
        for example in listed:
            yield read_prediction(folder, names[example.name])

    return read


def sole_names(names: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """For each page what it may be called, and behind that the last parts of these paths that no
    other page has: `2023/001` and `2024/001` are never both `001`."""
    last = {page: {PurePosixPath(name).name for name in some} for page, some in names.items()}
    owners = Counter(part for parts in last.values() for part in parts)
    return {
        page: tuple(
            dict.fromkeys(
                [*some, *(part for name in some if owners[part := PurePosixPath(name).name] == 1)]
            )
        )
        for page, some in names.items()
    }


def read_prediction(folder: Path, names: Iterable[str]) -> Prediction:
    """The first text in `folder` under one of `names`, which never lead out of the folder."""
    names = [name for name in names if ".." not in PurePosixPath(name).parts]
    for name in names:
        for suffix in SUFFIXES:
            path = folder / f"{name.lstrip('/')}{suffix}"
            if not path.is_file():
                continue
            try:
                text = read_text(path, LARGEST_TEXT)
            except InputError as error:
                return Prediction("", error=str(error))
            return Prediction(text)
    wanted = f"{names[0] if names else ''}{SUFFIXES[0]}"
    return Prediction("", error=f"{wanted} is not in {folder} (nor {', '.join(SUFFIXES[1:])}).")
