"""Annotated pictures as lists of samples, and what each teaches for a task."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepseek_ocr import presets
from deepseek_ocr.errors import InputError
from deepseek_ocr.files import read_json, write_json
from deepseek_ocr.grounding.parser import Box
from deepseek_ocr.training.data.annotations import (
    Annotation,
    AnnotationError,
    LabelledRegion,
    annotation_to_json,
    describe_unknown,
    image_path,
    object_in,
    parse_annotation,
    unknown_keys,
)


@dataclass(frozen=True)
class Sample:
    """A picture and its annotation; `name` is its path in the data folder without the suffix."""

    image: Path
    annotation: Annotation
    name: str


@dataclass(frozen=True)
class Example:
    """One thing to learn: a picture, the prompt of `task` (long name), the answer without end
    token. `name` is the sample's; locating adds `#1`, `#2`, …"""

    image: Path
    task: str
    prompt: str
    answer: str
    name: str

    @property
    def page(self) -> str:
        """Name of the sample, which several examples of locating share."""
        located = presets.task_name(self.task) == "locate"
        return self.name.rpartition("#")[0] if located else self.name


@dataclass(frozen=True)
class Rejection:
    """A sample that cannot be used, and why."""

    name: str
    reason: str


def load_samples(
    data_root: Path, file: Path, tell: Callable[[str], None] | None = None
) -> tuple[list[Sample], list[Rejection]]:
    """The samples that `file` (train.json, test.json) lists, and the entries that cannot be used.

    The file is an array of annotations, each with `image`, a path below `data_root`. `tell` is
    given a sentence on unknown keys. Pictures are not opened here.

    Raises `InputError` if the file is missing or not such an array.
    """
    entries = read_json(file)
    if not isinstance(entries, list):
        raise InputError(f"{file} must hold an array of samples; deepseek-ocr split makes one.")
    samples: list[Sample] = []
    rejections: list[Rejection] = []
    unknown: Counter[str] = Counter()
    for at, entry in enumerate(entries):
        unknown.update(unknown_keys(entry))
        try:
            samples.append(_sample(data_root, entry))
        except AnnotationError as error:
            rejections.append(Rejection(_entry_name(entry, at), str(error)))
    if unknown and tell:
        tell(describe_unknown(unknown))
    return samples, rejections


def write_rejections(folder: Path, rejections: Mapping[str, Sequence[Rejection]]) -> None:
    """Name in `rejected.json` what cannot be used of each file ("train", "validation"). Raises
    `FileWriteError`."""
    rows = [{"file": file, **asdict(one)} for file, some in rejections.items() for one in some]
    write_json(folder / "rejected.json", rows)


def samples_to_json(data_root: Path, samples: Sequence[Sample]) -> bytes:
    """`samples` as a JSON array in UTF-8, one sample a line. Raises `ValueError` for a picture
    outside `data_root`."""

    def entry(sample: Sample) -> dict[str, Any]:
        image = sample.image.relative_to(data_root).as_posix()
        return {"image": image, **annotation_to_json(sample.annotation)}

    lines = (json.dumps(entry(sample), ensure_ascii=False) for sample in samples)
    return ("[\n" + ",\n".join(lines) + "\n]\n").encode("utf-8")


def examples_of(sample: Sample, task_names: Sequence[str]) -> list[Example]:
    """What `sample` teaches for the tasks named (long or short): [] if it supports none.

    Free OCR uses `text`; Markdown `regions` as grounded text, else `markdown`; figures `figure`,
    else `markdown` if there are no regions; locating gives one example a reference.

    Raises `SettingsError` for a task nobody knows.
    """
    examples: list[Example] = []
    for task in map(presets.task_title, task_names):
        if presets.task_name(task) == "locate":
            for number, one in enumerate(sample.annotation.reference, start=1):
                prompt, answer = presets.prompt_for(task, one.text), _tagged(one.text, one.boxes)
                name = f"{sample.name}#{number}"
                examples.append(Example(sample.image, task, prompt, answer, name))
        elif known := _answer(sample.annotation, presets.task_name(task)):
            prompt = presets.prompt_for(task)
            examples.append(Example(sample.image, task, prompt, known, sample.name))
    return examples


def grounded_text(regions: Sequence[LabelledRegion]) -> str:
    """Regions as the model writes them: tag, line break, text, a blank line between regions."""
    blocks = (
        _tagged(region.label, region.boxes) + (f"\n{region.text}" if region.text else "")
        for region in regions
    )
    return "\n\n".join(blocks)


def _tagged(label: str, boxes: tuple[Box, ...]) -> str:
    return f"<|ref|>{label}<|/ref|><|det|>{[list(box) for box in boxes]}<|/det|>"


def _answer(annotation: Annotation, short: str) -> str | None:
    if short == "ocr":
        return annotation.text
    if short == "markdown" and annotation.regions:
        return grounded_text(annotation.regions)
    if short == "figure" and (annotation.figure or annotation.regions):
        return annotation.figure
    return annotation.markdown


def _sample(data_root: Path, entry: object) -> Sample:
    values = object_in(entry, "the entry")
    relative = image_path(values.get("image"))
    annotation = parse_annotation(values)
    image = data_root / relative
    if not os.path.isfile(image):  # Path.is_file raises if a name is too long
        raise AnnotationError(f"the picture {relative} is not in {data_root}.")
    return Sample(image, annotation, relative.with_suffix("").as_posix())


def _entry_name(entry: object, at: int) -> str:
    image = entry.get("image") if isinstance(entry, dict) else None
    return image[:200] if isinstance(image, str) and image else f"entry {at + 1}"
