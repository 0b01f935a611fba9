"""Where predictions come from: the model, or a folder of texts made elsewhere."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from deepseek_ocr import presets
from deepseek_ocr.errors import InputError
from deepseek_ocr.files import read_text
from deepseek_ocr.settings import CropSettings, DecodeSettings
from deepseek_ocr.training.data.samples import Example
from deepseek_ocr.training.evaluation.scoring import Prediction, comparable

if TYPE_CHECKING:
    from deepseek_ocr.engine.ocr_engine import OcrEngine

TEXT_SUFFIXES = (".md", ".mmd", ".txt")
"""Of texts made elsewhere, in the order in which they are looked for."""

LARGEST_TEXT = 2 * 2**20
"""Bytes of a text made elsewhere; a page of the model has at most a hundredth of that."""

MOST_FILES = 200_000
"""Files and folders that are looked at in search of texts that belong to no page."""

Names = Mapping[str, tuple[str, ...]]
"""For each page what its text may be called: paths in the folder of texts, without a suffix."""


def read_examples(
    engine: OcrEngine, examples: Sequence[Example], crop: CropSettings, decode: DecodeSettings
) -> Iterator[Prediction]:
    """What `engine` reads of each example; a page that fails becomes a prediction that says why."""
    from deepseek_ocr.engine.results import Failure, Page

    pages = (Page(example.image, example.prompt, crop, decode) for example in examples)
    for outcome, example in zip(engine.read_many(pages), examples, strict=True):
        if isinstance(outcome, Failure):
            yield Prediction("", error=str(outcome))
            continue
        reference = comparable(example.answer, presets.task_name(example.task))
        yield Prediction(
            outcome.text,
            finish_reason=outcome.finish_reason,
            text_tokens=len(engine.codec.encode_text(reference)),
            vision_tokens=outcome.counts.valid_vision,
            seconds=sum(asdict(outcome.timings).values()),
        )


def sole_names(names: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """For each page what it may be called, and behind that the last parts of these paths that no
    other page has: `2023/001` and `2024/001` are never both `001`. `names` must hold every page
    that is known, also those that are not read now."""
    last = {page: [PurePosixPath(name).name for name in some] for page, some in names.items()}
    owners = Counter(part for parts in last.values() for part in set(parts))
    sole = {page: [part for part in parts if owners[part] == 1] for page, parts in last.items()}
    return {page: tuple(dict.fromkeys([*some, *sole[page]])) for page, some in names.items()}


def find_text(folder: Path, names: Iterable[str]) -> Path | None:
    """The first text in `folder` under one of `names`, None if there is none. Names never lead out
    of the folder; a link there may."""
    for name in names:
        if ".." in PurePosixPath(name).parts:
            continue
        for suffix in TEXT_SUFFIXES:
            path = folder / f"{name.lstrip('/')}{suffix}"
            if os.path.isfile(path):  # pathlib's own raises for a name that is too long
                return path
    return None


def read_prediction(folder: Path, names: Sequence[str]) -> Prediction:
    """The first text in `folder` under one of `names`, or a prediction that says what is wrong."""
    path = find_text(folder, names)
    if path is None:
        wanted = f"{names[0] if names else ''}{TEXT_SUFFIXES[0]}"
        rest = ", ".join(TEXT_SUFFIXES[1:])
        return Prediction("", error=f"{wanted} is not in {folder} (nor {rest}).")
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        return Prediction(
            "", error=f"{path} is a link that leads out of {folder}; put the text itself there."
        )
    try:
        return Prediction(read_text(path, LARGEST_TEXT))
    except InputError as error:
        return Prediction("", error=str(error))


def extra_texts(folder: Path, names: Names) -> list[str]:
    """Paths in `folder`, sorted, of the texts that are of none of the pages in `names`. The second
    of two texts of one page is one of them. Of the first `MOST_FILES` files and folders."""
    used = {find_text(folder, some) for some in names.values()}
    below = (  # what links lead to is not looked into
        Path(parent, name)
        for parent, folders, files in os.walk(folder)
        for name in (*folders, *files)
    )
    texts = (path for path in islice(below, MOST_FILES) if path.suffix in TEXT_SUFFIXES)
    extra = (path for path in texts if path not in used and os.path.isfile(path))
    return sorted(path.relative_to(folder).as_posix() for path in extra)
